"""The text form of a graph: readable, deterministic, and `parse(print_graph(g)) == g`.

    graph tiny(s0=5, s1=7) {
      input %tokens : i64[s0, s1]
      parameter @embed.weight : f32[vocab:131, hidden:48] alias @head.weight
      buffer @inv_freq : f32[rot:4]
      %x = aten.embedding.default(@embed.weight, %tokens) : f32[s0=batch:5, s1=time:7, hidden:48]
      %q, %k = aten.split.Tensor(%x, 24, dim=-1) : f32[s0, s1, 24], f32[s0, s1, 24]
      %r = aten.relu.default(%q) : f32[s0, s1, 24] pointwise loc("layers.0.act", "model.py:12")
      output logits = %r
    }

A dimension is a size (`48`), a symbol or a multiple of one (`s0`, `2*s1`), any other symbolic
size in quotes (`"s0 + 1"`), or an axis: atom `kv:3`, product `(kv:3 d:64)`, sum
`{a:32 + b:32}`, unit `1`. `s0=batch:5` gives both where the axis does not imply the size.

Arguments are values (`%x`, `@w`), numbers (`inf` and `nan` too), `"text"`, `true`, `false`,
`none`, lists `[1, 2]` and attributes `dtype<f32>`. A name with unusual characters is quoted,
as in `%"onnx::MatMul_3"`. A `#` starts a comment, unless it stands in a name before a digit.
Line breaks are free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from prunec.ir.axes import Atom, Axis, Product, Sum, size
from prunec.ir.graph import Arg, Attr, Dim, Graph, Loc, Op, Parameter, Ref, TensorType, Value
from prunec.ir.parser import UNIT, parse

__all__ = [
    "parse",
    "print_arg",
    "print_axis",
    "print_dim",
    "print_graph",
    "print_op",
    "print_parameter",
    "print_type",
    "print_value",
]

WORD = re.compile(r"[A-Za-z_](?:[\w./]|#\d)*", re.ASCII)
NAME = re.compile(r"[\w./]+", re.ASCII)
DIM = re.compile(r"(\d+\*)?[A-Za-z_]\w*", re.ASCII)
KEYWORDS = frozenset({"alias", "axes", "loc", "pointwise"})
INDENT = "  "


def print_graph(graph: Graph, *, locations: bool = True) -> str:
    """The whole graph, ending in a line break; without `locations` it no longer says where
    in the model's source each operation comes from."""
    symbols = ", ".join(f"{word(name)}={value}" for name, value in graph.symbols.items())
    lines = [
        *map(print_value, graph.inputs),
        *(print_parameter(p) for p in graph.parameters.values()),
        *(print_op(op, locations=locations) for op in graph.ops),
        *(f"output {word(name)} = {reference(value)}" for name, value in graph.outputs),
    ]
    body = "".join(f"{INDENT}{line}\n" for line in lines)
    return f"graph {word(graph.name)}({symbols}) {{\n{body}}}\n"


def print_value(value: Value) -> str:
    """A graph input on one line."""
    return f"input {reference(value.name)} : {print_type(value.type)}"


def print_parameter(parameter: Parameter) -> str:
    """A parameter on one line."""
    text = f"{word(parameter.kind)} {reference(parameter.ref)} : {print_type(parameter.type)}"
    if not parameter.aliases:
        return text
    return text + " alias " + ", ".join(reference("@" + alias) for alias in parameter.aliases)


def print_op(op: Op, *, locations: bool = True) -> str:
    """One operation on one line."""
    arguments = [
        *map(print_arg, op.args),
        *(f"{word(name)}={print_arg(value)}" for name, value in op.kwargs),
    ]
    text = f"{word(op.name)}({', '.join(arguments)})"
    if op.results:
        text = f"{', '.join(map(reference, op.results))} = {text}"
    if op.types:
        text += f" : {', '.join(map(print_type, op.types))}"
    if op.pointwise:
        text += " pointwise"
    if locations and op.loc != Loc():
        text += f" loc({json.dumps(op.loc.module)}, {json.dumps(op.loc.source)})"
    return text


def print_arg(arg: Arg) -> str:
    match arg:
        case Ref(name):
            return reference(name)
        case Attr(kind, value):
            return f"{word(kind)}<{word(value)}>"
        case None:
            return "none"
        case bool():
            return "true" if arg else "false"
        case int() | float():
            return repr(arg)
        case str():
            return json.dumps(arg)
        case tuple():
            return f"[{', '.join(map(print_arg, arg))}]"


def print_type(type_: TensorType) -> str:
    dtype = word(type_.dtype)
    if type_ == TensorType("index"):
        return dtype
    if not type_.axes:
        return f"{dtype}[{', '.join(map(print_dim, type_.shape))}]"
    if len(type_.axes) != len(type_.shape):  # malformed, but the verifier has to show it
        plain = ", ".join(map(print_dim, type_.shape))
        return f"{dtype}[{plain}] axes[{', '.join(map(print_axis, type_.axes))}]"
    return f"{dtype}[{', '.join(typed_dims(type_))}]"


def typed_dims(type_: TensorType) -> Iterable[str]:
    # `[1, 1]` would read as a type without axes, so one of them is spelt out
    bare = any(axis != UNIT for axis in type_.axes)
    for dim, axis in zip(type_.shape, type_.axes, strict=True):
        if dim == size(axis) and (bare or axis != UNIT):
            yield print_axis(axis)
        else:
            yield f"{print_dim(dim)}={print_axis(axis)}"


def print_dim(dim: Dim) -> str:
    if isinstance(dim, int):
        return str(dim)
    return dim if DIM.fullmatch(dim) else json.dumps(dim)


def print_axis(axis: Axis) -> str:
    match axis:
        case Atom() if axis == UNIT:
            return "1"
        case Atom(name, extent):
            return f"{word(name)}:{extent}"
        case Product(factors):
            return f"({' '.join(map(print_axis, factors))})"
        case Sum(terms):
            return f"{{{' + '.join(map(print_axis, terms))}}}"


def reference(name: str) -> str:
    """A value's name. One without sigil is malformed; `?` lets the verifier show it."""
    sigil, rest = (name[0], name[1:]) if name[:1] in ("%", "@") and name else ("?", name)
    return sigil + (rest if NAME.fullmatch(rest) else json.dumps(rest))


def word(text: str) -> str:
    """A name without sigil, quoted when it does not read as one word."""
    return text if WORD.fullmatch(text) and text not in KEYWORDS else json.dumps(text)
