"""The program: values, operations and parameters, immutable, with no framework behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from prunec.ir.axes import Axis

__all__ = [
    "Arg",
    "Attr",
    "Dim",
    "Graph",
    "Loc",
    "Op",
    "Parameter",
    "Ref",
    "TensorType",
    "Value",
    "references",
    "renamed",
]

Dim = int | str
"""A static size, or the text of a symbolic one, such as `s0` or `2*s1`."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """What is known of a value. `dtype` is `f32`, `bf16`, `i64`, `bool` ...; `index` is a
    scalar size computed at run time. `axes` is empty until `infer` has run."""

    dtype: str
    shape: tuple[Dim, ...] = ()
    axes: tuple[Axis, ...] = ()


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of a value by name: `%...` for results and inputs, `@...` for parameters."""

    name: str


@dataclass(frozen=True, slots=True)
class Attr:
    """A literal that is neither number, text nor list, such as dtype float32."""

    kind: str
    value: str


Arg = Ref | Attr | bool | int | float | str | None | tuple["Arg", ...]


@dataclass(frozen=True, slots=True)
class Loc:
    """Where in the user's model a thing comes from: module path and source line."""

    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        return "   ".join(part for part in (self.module, self.source) if part)


@dataclass(frozen=True, slots=True)
class Value:
    """A named graph input."""

    name: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Parameter:
    """A stored tensor. `name` is the name in the state dict; `aliases` are tied names.

    `kind` is `parameter`, `buffer` (persistent or not) or `constant` (lifted from the code).
    """

    name: str
    type: TensorType
    kind: str = "parameter"
    aliases: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        return "@" + self.name


MEASURES = frozenset({"onnx.Shape", "onnx.Size"})
"""Operations of whose operands only the sizes matter, though their results are data."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `name` is dialect-qualified (`aten.linear.default`); keyword arguments
    keep their order. `pointwise` says that it works entry by entry with broadcasting."""

    name: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    results: tuple[str, ...]
    types: tuple[TensorType, ...]
    loc: Loc = Loc()
    pointwise: bool = False

    @property
    def result(self) -> str:
        return self.results[0]

    @property
    def measures(self) -> bool:
        """Whether it reads no more of its operands than their sizes."""
        return self.name in MEASURES or all(type_.dtype == "index" for type_ in self.types)

    @property
    def operands(self) -> list[str]:
        """Names of all values used, in order, with repeats."""
        found: list[str] = []
        for arg in self.args:
            if isinstance(arg, Ref):
                found.append(arg.name)
            elif isinstance(arg, tuple):
                found += references(arg)
        if self.kwargs:
            for _, arg in self.kwargs:
                found += references(arg)
        return found

    def kwarg(self, name: str, default: Arg = None) -> Arg:
        for key, value in self.kwargs:
            if key == name:
                return value
        return default


def references(arg: Arg) -> Iterator[str]:
    """Names of the values an argument uses."""
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, tuple):
        for item in arg:
            yield from references(item)


def renamed(op: Op, name: Callable[[str], str]) -> Op:
    """The operation with every value, used or made, under the name that `name` gives it."""

    def arg(value: Arg) -> Arg:
        if isinstance(value, Ref):
            return Ref(name(value.name))
        return tuple(map(arg, value)) if isinstance(value, tuple) else value

    return replace(
        op,
        args=tuple(map(arg, op.args)),
        kwargs=tuple((key, arg(value)) for key, value in op.kwargs),
        results=tuple(map(name, op.results)),
    )


@dataclass(frozen=True)
class Graph:
    """A straight-line program in topological order.

    `symbols` gives each symbolic size its example value, a prime that no static size contains.
    `outputs` maps the output's public name to the value.
    """

    name: str
    inputs: tuple[Value, ...]
    parameters: Mapping[str, Parameter]
    ops: tuple[Op, ...]
    outputs: tuple[tuple[str, str], ...]
    symbols: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """Type of every value, keyed by its reference (`%x`, `@w`)."""
        found = {value.name: value.type for value in self.inputs}
        found |= {p.ref: p.type for p in self.parameters.values()}
        for op in self.ops:
            found |= dict(zip(op.results, op.types, strict=True))
        return found

    @cached_property
    def producers(self) -> dict[str, int]:
        """Position in `ops` of the operation that makes each result."""
        return {name: i for i, op in enumerate(self.ops) for name in op.results}

    @cached_property
    def uses(self) -> dict[str, tuple[int, ...]]:
        """Positions in `ops` of the operations that use each value, ascending."""
        found: dict[str, list[int]] = {}
        for i, op in enumerate(self.ops):
            for name in dict.fromkeys(op.operands):
                found.setdefault(name, []).append(i)
        return {name: tuple(where) for name, where in found.items()}

    def parameter(self, ref: str) -> Parameter | None:
        """The parameter a reference names, or None when it names a computed value."""
        return self.parameters.get(ref[1:]) if ref.startswith("@") else None

    def with_ops(self, ops: tuple[Op, ...]) -> Graph:
        return self if ops == self.ops else replace(self, ops=ops)
