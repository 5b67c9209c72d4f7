"""Verify that a graph is well formed. Each invariant has a number; P9nn reports number nn.

Names
 1. An input or result is named `%...`, and no two inputs or results share a name.
 2. A parameter stands in `parameters` under its own name, which is not empty.
 3. A parameter's kind is `parameter`, `buffer` or `constant`.
 4. An alias is used once, and is no parameter's name.
 5. Public names of outputs are unique.

Operations
 6. An operation's name is dialect-qualified: `aten.linear.default`, `onnx.MatMul`.
 7. An operation has as many types as results.
 8. An operation gives a keyword argument once.
 9. What an operation uses is an input, a parameter, or the result of an earlier operation.
10. An output is an input, a parameter or a result.
11. Each tensor that a pointwise operation uses broadcasts to each of its results.

Types
12. A dtype is one of `DTYPES`; an `index` has no dimensions.
13. Symbols that inputs have in their shapes have distinct prime example sizes.
14. A size is not negative; a symbolic one is an expression of declared symbols.

Axes
15. All values with dimensions have axes, or none has; there is one axis for each dimension.
16. An axis has the size of its dimension, symbolic ones at the symbols' example sizes.
17. Atoms of one name have one size everywhere.
18. A product has two or more factors, none of them a product or a unit.
19. A sum has two or more terms, none of them a sum or empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prunec.ir.axes import Atom, Axis, Product, Sum, atoms, size
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Dim, Graph, Parameter, TensorType, Value
from prunec.ir.sizes import dim_size
from prunec.ir.text import (
    print_axis,
    print_dim,
    print_op,
    print_parameter,
    print_type,
    print_value,
)

__all__ = ["DTYPES", "verify"]

FLOATS = "f64 f32 f16 bf16 f8e4m3fn f8e4m3fnuz f8e5m2 f8e5m2fnuz f8e8m0fnu f4e2m1"
INTEGERS = "i64 i32 i16 i8 i4 i2 u64 u32 u16 u8 u4 u2"
DTYPES = frozenset(f"{FLOATS} {INTEGERS} bool c32 c64 c128 string index".split())
KINDS = ("parameter", "buffer", "constant")

Place = int | Value | Parameter | str
"""Where: the position of an operation, an input, a parameter; or the graph as a whole."""


@dataclass(frozen=True, slots=True)
class Breach:
    """One place where an invariant does not hold."""

    invariant: int
    message: str
    place: Place = ""


def verify(graph: Graph) -> list[Diagnostic]:
    """What is wrong with the graph: nothing, unless a frontend or pass has a mistake."""
    return [diagnose(graph, breach) for check in CHECKS for breach in check(graph)]


# Names


def check_names(graph: Graph) -> Iterator[Breach]:
    seen: set[str] = set()
    for place, name in definitions(graph):
        if not name.startswith("%") or len(name) == 1:
            yield Breach(1, f"{name!r} is no name of a value: it needs % and a word", place)
        if name in seen:
            yield Breach(1, f"{name} is defined twice", place)
        seen.add(name)


def check_parameters(graph: Graph) -> Iterator[Breach]:
    used: set[str] = set()
    for key, parameter in graph.parameters.items():
        if key != parameter.name or not key:
            yield Breach(2, f"parameter {parameter.name!r} is filed under {key!r}", parameter)
        if parameter.kind not in KINDS:
            yield Breach(3, f"{parameter.kind!r} is no kind of parameter", parameter)
        for alias in parameter.aliases:
            if alias in used or alias in graph.parameters:
                yield Breach(4, f"alias @{alias} is already taken", parameter)
            used.add(alias)


def check_outputs(graph: Graph) -> Iterator[Breach]:
    known = {name for _, name in definitions(graph)} | parameter_refs(graph)
    public: set[str] = set()
    for name, value in graph.outputs:
        if name in public:
            yield Breach(5, f"two outputs are named {name!r}")
        if value not in known:
            yield Breach(10, f"output {name!r} is {value}, which is not defined")
        public.add(name)


# Operations


def check_ops(graph: Graph) -> Iterator[Breach]:
    for i, op in enumerate(graph.ops):
        dialect, dot, rest = op.name.partition(".")
        if not (dialect and dot and rest):
            yield Breach(6, f"operation {op.name!r} does not name its dialect", i)
        if len(op.results) != len(op.types):
            yield Breach(7, f"{len(op.results)} results and {len(op.types)} types", i)
        names = [name for name, _ in op.kwargs]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Breach(8, f"keyword argument {name!r} is given twice", i)


def check_uses(graph: Graph) -> Iterator[Breach]:
    later = {name for op in graph.ops for name in op.results}
    known = {value.name for value in graph.inputs} | parameter_refs(graph)
    for i, op in enumerate(graph.ops):
        for name in dict.fromkeys(op.operands):
            if name not in known:
                state = "only defined later" if name in later else "not defined"
                yield Breach(9, f"{name} is used and {state}", i)
        known.update(op.results)


def check_pointwise(graph: Graph) -> Iterator[Breach]:
    types = {name: type_ for _, name, type_ in typed(graph)}
    for i, op in enumerate(graph.ops):
        if not op.pointwise:
            continue
        for result in op.types:
            for name in dict.fromkeys(op.operands):
                if name in types and not broadcasts(types[name], result, graph):
                    shapes = f"{print_type(types[name])} does not broadcast to {print_type(result)}"
                    yield Breach(11, f"{name}: {shapes}", i)


def broadcasts(small: TensorType, large: TensorType, graph: Graph) -> bool:
    if len(small.shape) > len(large.shape):
        return False
    pairs = zip(reversed(small.shape), reversed(large.shape), strict=False)
    sizes = ((example(a, graph), example(b, graph)) for a, b in pairs)
    return all(a in (1, b) for a, b in sizes)


# Types


def check_dtypes(graph: Graph) -> Iterator[Breach]:
    for place, name, type_ in typed(graph):
        if type_.dtype not in DTYPES:
            yield Breach(12, f"{name}: {type_.dtype!r} is no dtype", place)
        if type_.dtype == "index" and type_.shape:
            yield Breach(12, f"{name}: an index has no dimensions", place)


def check_symbols(graph: Graph) -> Iterator[Breach]:
    owner: dict[int, str] = {}
    given = {str(dim) for value in graph.inputs for dim in value.type.shape}
    named = {word for dim in given for word in re.findall(r"[A-Za-z_]\w*", dim)}
    for symbol, value in graph.symbols.items():
        if symbol not in named:  # a size of its own, computed from those of the inputs
            continue
        if value < 2 or any(value % d == 0 for d in range(2, int(value**0.5) + 1)):
            yield Breach(13, f"symbol {symbol} has the example size {value}, not a prime")
        if value in owner:
            yield Breach(13, f"symbols {owner[value]} and {symbol} have one example size, {value}")
        owner[value] = symbol


def check_sizes(graph: Graph) -> Iterator[Breach]:
    for place, name, type_ in typed(graph):
        for dim in type_.shape:
            value = example(dim, graph)
            if value is None:
                text = print_dim(dim)
                yield Breach(14, f"{name}: {text} is no expression of declared symbols", place)
            elif value < 0:
                yield Breach(14, f"{name}: dimension {print_dim(dim)} is negative", place)


def example(dim: Dim, graph: Graph) -> int | None:
    """The size at the symbols' example sizes, None when the text is no expression of them."""
    if isinstance(dim, int):
        return dim
    try:
        return dim_size(dim, graph.symbols)
    except (ArithmeticError, KeyError, SyntaxError, TypeError, ValueError):
        return None


# Axes


def check_axes(graph: Graph) -> Iterator[Breach]:
    inferred = any(type_.axes for _, _, type_ in typed(graph))
    for place, name, type_ in typed(graph):
        axes, shape = type_.axes, type_.shape
        if len(axes) != len(shape) and (axes or inferred):
            yield Breach(15, f"{name}: {len(shape)} dimensions and {len(axes)} axes", place)
            continue
        for dim, axis in zip(shape, axes, strict=False):
            extent = example(dim, graph)
            if extent not in (None, size(axis)):
                text = f"axis {print_axis(axis)} has size {size(axis)}, its dimension {extent}"
                yield Breach(16, f"{name}: {text}", place)


def check_atoms(graph: Graph) -> Iterator[Breach]:
    sizes: dict[str, int] = {}
    for place, name, type_ in typed(graph):
        for atom in (a for axis in type_.axes for a in atoms(axis)):
            known = sizes.setdefault(atom.name, atom.size)
            if known != atom.size:
                text = f"axis {atom.name} has size {atom.size}, elsewhere {known}"
                yield Breach(17, f"{name}: {text}", place)


def check_terms(graph: Graph) -> Iterator[Breach]:
    for place, name, type_ in typed(graph):
        for axis in type_.axes:
            for number, fault in faults(axis):
                yield Breach(number, f"{name}: {fault}, axis {print_axis(axis)}", place)


def faults(axis: Axis) -> Iterator[tuple[int, str]]:
    """Departures of a term from its normal form, with the number of the invariant."""
    match axis:
        case Atom():
            return
        case Product(parts):
            number, noun, neutral = 18, "product", 1
        case Sum(parts):
            number, noun, neutral = 19, "sum", 0
    if len(parts) < 2:
        yield number, f"a {noun} of {len(parts)} parts"
    if any(type(part) is type(axis) for part in parts):
        yield number, f"a {noun} in a {noun}"
    if any(size(part) == neutral for part in parts):
        yield number, f"a part of size {neutral} in a {noun}"
    for part in parts:
        yield from faults(part)


# Walking and showing


def definitions(graph: Graph) -> Iterator[tuple[Place, str]]:
    """Every name that an input or operation defines, and where."""
    for value in graph.inputs:
        yield value, value.name
    for i, op in enumerate(graph.ops):
        for name in op.results:
            yield i, name


def typed(graph: Graph) -> Iterator[tuple[Place, str, TensorType]]:
    """Every value with its type; unlike `Graph.types` it bears a wrong number of types."""
    for value in graph.inputs:
        yield value, value.name, value.type
    for parameter in graph.parameters.values():
        yield parameter, parameter.ref, parameter.type
    for i, op in enumerate(graph.ops):
        for name, type_ in zip(op.results, op.types, strict=False):
            yield i, name, type_


def parameter_refs(graph: Graph) -> set[str]:
    return {parameter.ref for parameter in graph.parameters.values()}


def diagnose(graph: Graph, breach: Breach) -> Diagnostic:
    where, snippet = show(graph, breach.place)
    return Diagnostic(
        code=f"P9{breach.invariant:02}",
        message=breach.message,
        where=where,
        snippet=snippet,
        help=f"invariant {breach.invariant} of prunec.ir.verify does not hold: "
        "the frontend or pass that ran last has a mistake",
    )


def show(graph: Graph, place: Place) -> tuple[str, str]:
    """Where a breach is, and the printed lines around it."""
    match place:
        case int():
            lines = [
                ("> " if i == place else "  ") + print_op(graph.ops[i], locations=False)
                for i in range(max(place - 1, 0), min(place + 2, len(graph.ops)))
            ]
            return str(graph.ops[place].loc) or f"graph {graph.name}", "\n   |  ".join(lines)
        case Value():
            return f"graph {graph.name}", f"> {print_value(place)}"
        case Parameter():
            return place.name, f"> {print_parameter(place)}"
        case str():
            return f"graph {graph.name}", ""


CHECKS: tuple[Callable[[Graph], Iterator[Breach]], ...] = (
    check_names,
    check_parameters,
    check_outputs,
    check_ops,
    check_uses,
    check_pointwise,
    check_dtypes,
    check_symbols,
    check_sizes,
    check_axes,
    check_atoms,
    check_terms,
)
