"""Laws of the text form and of the verifier, on random graphs and on random text."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.ir.axes import Atom, Axis, Product, Sum, size
from prunec.ir.diagnostics import PrunecError
from prunec.ir.graph import Arg, Attr, Graph, Loc, Op, Parameter, Ref, TensorType, Value
from prunec.ir.parser import UNIT
from prunec.ir.text import parse, print_arg, print_graph, print_type
from prunec.ir.verify import verify

TRICKY = [
    "a",
    "model.layers.0.w",
    "onnx::MatMul_3",
    "/x/y.1",
    "x y",
    "",
    '"',
    "\\",
    "\n",
    "é",
    "#",
    "b/kv#2",
    "s0#",
    "s0//2",
]
RESERVED = ["loc", "alias", "axes", "pointwise", "input", "output", "true", "inf", "nan", "graph"]
texts = st.sampled_from([*TRICKY, *RESERVED]) | st.text(max_size=5)
values = texts.map(lambda text: "%" + text)
stored = texts.map(lambda text: "@" + text)


def nested(axes: st.SearchStrategy[Axis]) -> st.SearchStrategy[Axis]:
    parts = st.lists(axes, max_size=3).map(tuple)
    return parts.map(Product) | parts.map(Sum)


axes = st.recursive(st.builds(Atom, texts, st.integers(0, 9)) | st.just(UNIT), nested, max_leaves=5)
dims = st.integers(-1, 9) | st.sampled_from(["s0", "2*s1", "s0 + 1", "Max(1, s0)", "4"]) | texts


@st.composite
def types(draw: st.DrawFn) -> TensorType:
    dtype = draw(st.sampled_from(["f32", "index", "loc"]) | texts)
    found = draw(st.lists(axes, max_size=3).map(tuple))
    if draw(st.booleans()):
        return TensorType(dtype, tuple(draw(st.lists(dims, max_size=3))), found)
    shape = tuple(size(axis) if draw(st.booleans()) else draw(dims) for axis in found)
    return TensorType(dtype, shape, found)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.builds(Attr, texts, texts)
)
arguments: st.SearchStrategy[Arg] = st.recursive(
    scalars | st.builds(Ref, values | stored | texts),
    lambda items: st.lists(items, max_size=3).map(tuple),
    max_leaves=6,
)


@st.composite
def ops(draw: st.DrawFn) -> Op:
    results = tuple(draw(st.lists(values, max_size=2)))
    return Op(
        name=draw(st.sampled_from(["aten.relu.default", "onnx.Relu"]) | texts),
        args=tuple(draw(st.lists(arguments, max_size=3))),
        kwargs=tuple(draw(st.lists(st.tuples(texts, arguments), max_size=2))),
        results=results,
        types=tuple(draw(st.lists(types(), min_size=len(results), max_size=len(results)))),
        loc=draw(st.builds(Loc, texts, texts)),
        pointwise=draw(st.booleans()),
    )


def parameters(names: list[str]) -> st.SearchStrategy[dict[str, Parameter]]:
    kinds = st.sampled_from(["parameter", "buffer", "constant"]) | texts
    aliases = st.lists(texts, max_size=2).map(tuple)
    return st.fixed_dictionaries(
        {name: st.builds(Parameter, st.just(name), types(), kinds, aliases) for name in names}
    )


graphs = st.builds(
    Graph,
    name=texts,
    inputs=st.lists(st.builds(Value, values, types()), max_size=2).map(tuple),
    parameters=st.lists(texts, max_size=2, unique=True).flatmap(parameters),
    ops=st.lists(ops(), max_size=3).map(tuple),
    outputs=st.lists(st.tuples(texts, values | stored), max_size=2).map(tuple),
    symbols=st.dictionaries(texts, st.integers(), max_size=2),
)


def exact(thing: Any) -> str:
    """Tells 1 from 1.0 and True, and finds nan equal to itself, where `==` does not."""
    return repr(thing)


@given(graphs)
def test_parse_inverts_print(graph: Graph) -> None:
    text = print_graph(graph)
    assert exact(parse(text)) == exact(graph)
    assert print_graph(parse(text)) == text


@given(graphs)
def test_printing_keeps_one_operation_a_line(graph: Graph) -> None:
    statements = len(graph.inputs) + len(graph.parameters) + len(graph.ops) + len(graph.outputs)
    assert len(print_graph(graph).splitlines()) == statements + 2


@given(graphs)
def test_verify_reports_and_never_raises(graph: Graph) -> None:
    assert all(d.code.startswith("P9") and d.message for d in verify(graph))


@given(graphs, st.data())
def test_damaged_text_is_parsed_or_diagnosed(graph: Graph, data: st.DataObject) -> None:
    text = print_graph(graph)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 5, len(text))))
    patch = data.draw(st.text(alphabet='%@"()[]{}<>:=,+*#-0a. \n', max_size=3))
    damaged = text[:start] + patch + text[end:]
    try:
        parse(damaged)
    except PrunecError as error:
        (diagnostic,) = error.diagnostics
        assert diagnostic.where.startswith("<text>:")


@given(st.text())
def test_any_text_is_parsed_or_diagnosed(text: str) -> None:
    with pytest.raises(PrunecError):
        parse(text)


@pytest.mark.parametrize(
    ("arg", "text"),
    [
        (Ref("%x"), "%x"),
        (Ref("%onnx::x"), '%"onnx::x"'),
        (Attr("dtype", "f32"), "dtype<f32>"),
        (True, "true"),
        (1, "1"),
        (1.0, "1.0"),
        (1e-06, "1e-06"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (None, "none"),
        ('a"\n', r'"a\"\n"'),
        ((1, (2.0, Ref("@w"))), "[1, [2.0, @w]]"),
        ((), "[]"),
    ],
)
def test_arguments(arg: Arg, text: str) -> None:
    assert print_arg(arg) == text


KV, D = Atom("kv", 3), Atom("d", 8)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (TensorType("index"), "index"),
        (TensorType("f32"), "f32[]"),
        (TensorType("f32", (3, "s0", "s0 + 1")), 'f32[3, s0, "s0 + 1"]'),
        (TensorType("f32", (3, 1), (KV, UNIT)), "f32[kv:3, 1]"),
        (TensorType("f32", (1,), (UNIT,)), "f32[1=1]"),
        (
            TensorType("f32", (24, 11), (Product((KV, D)), Sum((KV, D)))),
            "f32[(kv:3 d:8), {kv:3 + d:8}]",
        ),
        (TensorType("f32", ("s0",), (KV,)), "f32[s0=kv:3]"),
    ],
)
def test_types(type_: TensorType, text: str) -> None:
    assert print_type(type_) == text


def test_a_long_graph_is_read_in_linear_time() -> None:
    line = "  %y = aten.relu.default(%x) : f32[batch, 48] pointwise\n"
    text = "graph g(batch=5) {\n" + line * 5000 + "}\n"
    assert len(parse(text).ops) == 5000


def test_nesting_without_end_is_diagnosed() -> None:
    with pytest.raises(PrunecError, match="nested too deeply"):
        parse("graph g() { %y = a.b(" + "[" * 100_000)


HEADER = sys.modules[verify.__module__].__doc__ or ""
INVARIANTS = {int(n) for n in re.findall(r"^ ?(\d+)\. ", HEADER, re.MULTILINE)}
CASES = Path(__file__).parent / "ir" / "verify"


def test_every_invariant_has_a_case_that_breaks_it() -> None:
    assert len(INVARIANTS) == 19
    shown = "".join(path.read_text() for path in CASES.glob("*.ir"))
    untested = {n for n in INVARIANTS if f"error[P9{n:02}]" not in shown}
    assert untested == {2}, "text cannot break 2; the test below does"


def test_a_parameter_stands_under_its_own_name() -> None:
    weight = Parameter("w", TensorType("f32", (4,)))
    graph = Graph("g", (), {"v": weight}, (), ())
    (found,) = verify(graph)
    assert found.code == "P902"
    assert found.where == "w"
    assert found.snippet == "> parameter @w : f32[4]"
