"""Compare two programs value by value: same operations, same literals, same shapes.

A stock class built from other sizes may compute something else: an attention scale that follows
from `head_dim`, an embedding scale that follows from `hidden_size`, other rotary frequencies.
Every value is given a number that stands for the whole computation behind it, shared by both
programs, so that order, names and dead code do not matter. Views that neither reorder nor repeat
anything are looked through: GQA with one query head a group is traced without its `expand`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Arg, Dim, Graph, Loc, Op, Ref, TensorType
from prunec.ir.text import print_op

__all__ = ["same_buffers", "same_program"]

_HELP = "use --layout per-layer, which keeps the computation, or leave this group whole"
_MAX_SHOWN = 3

_RESHAPES = frozenset(
    f"aten.{name}"
    for name in (
        "alias.default", "clone.default", "contiguous.default", "flatten.using_ints",
        "reshape.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "unflatten.int",
        "unsqueeze.default", "view.default", "_unsafe_view.default",
    )
)  # fmt: skip
# These keep the order too, as long as they keep all entries and repeat none.
_MAYBE_IDENTITY = frozenset(
    f"aten.{name}" for name in ("expand.default", "slice.Tensor", "to.dtype", "to.dtype_layout")
)


@dataclass
class _Numbers:
    """Numbers for values, equal when the computations behind them are."""

    by_key: dict[Hashable, int] = field(default_factory=dict)
    types: list[TensorType] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)

    def of(self, key: Hashable, type_: TensorType, root: int | None = None) -> int:
        """The number of a key; `root` is the value that this one is a mere view of."""
        if key not in self.by_key:
            self.by_key[key] = len(self.types)
            self.types.append(type_)
            self.roots.append(self.by_key[key] if root is None else root)
        return self.by_key[key]

    def view(self, source: int, type_: TensorType) -> int:
        """The number of `source` seen with another shape, in the same order."""
        root = self.roots[source]
        if (self.types[root].shape, self.types[root].dtype) == (type_.shape, type_.dtype):
            return root
        return self.of(("view", root, type_.shape), type_, root)


def same_program(wanted: Graph, found: Graph, within: tuple[str, ...] = ()) -> list[Diagnostic]:
    """Where `found`, traced from a rebuilt model, differs from the rewritten program `wanted`.

    `within` restricts the comparison to operations of modules below these paths. At most three
    differences are told, the first in program order. Parameters are compared by shape too.
    """
    numbers = _Numbers()
    ours, theirs = _number(wanted, numbers), _number(found, numbers)
    present = {numbers.roots[number] for number in theirs.values()}

    def known(name: str) -> bool:
        return numbers.roots[ours[name]] in present

    told = [
        _difference(op, wanted, found, ours, theirs)
        for op in wanted.ops
        if _inside(op, within) and not all(map(known, op.results)) and all(map(known, op.operands))
    ]
    outputs = [] if within else _outputs(wanted, found, ours, theirs)
    return (_parameters(wanted, found) + told + ([] if told else outputs))[:_MAX_SHOWN]


def same_buffers(
    wanted: Mapping[str, npt.NDArray[Any]], found: Mapping[str, npt.NDArray[Any]]
) -> list[Diagnostic]:
    """Which values that the rebuilt model computes for itself differ from those the program keeps.

    `wanted` are buffers outside the checkpoint and constants of the program, sliced; `found` the
    values from the rebuilt model. They must agree to the last bit.
    """
    return [
        Diagnostic(
            "P608",
            f"the stock model computes other values for {name} than those that are kept",
            where=name,
            help=_HELP,
        )
        for name, value in wanted.items()
        if name not in found or not np.array_equal(value, found[name], equal_nan=True)
    ]


def _number(graph: Graph, numbers: _Numbers) -> dict[str, int]:
    """Number every value of a graph, keyed by its reference."""
    found: dict[str, int] = {}
    for value in graph.inputs:
        found[value.name] = numbers.of(("input", value.name), value.type)
    for parameter in graph.parameters.values():
        name = min((parameter.name, *parameter.aliases))
        key = ("parameter", name, parameter.type.shape, parameter.type.dtype)
        found[parameter.ref] = numbers.of(key, parameter.type)
    for op in graph.ops:
        found |= _number_op(op, found, numbers)
    return found


def _number_op(op: Op, found: Mapping[str, int], numbers: _Numbers) -> dict[str, int]:
    source = op.args[0] if op.args else None
    if isinstance(source, Ref):
        number = found[source.name]
        if op.name in _RESHAPES or _keeps_all(op, numbers.types[number]):
            return {op.result: numbers.view(number, op.types[0])}
    args = _canonical(op.args, found)
    kwargs = tuple(sorted((name, _canonical(value, found)) for name, value in op.kwargs))
    types = tuple((t.dtype, t.shape) for t in op.types)
    return {
        result: numbers.of((op.name, i, args, kwargs, types), type_)
        for i, (result, type_) in enumerate(zip(op.results, op.types, strict=True))
    }


def _keeps_all(op: Op, source: TensorType) -> bool:
    """Whether an operation that might drop, repeat or convert entries does none of it."""
    if op.name not in _MAYBE_IDENTITY or op.types[0].dtype != source.dtype:
        return False
    return _without_units(op.types[0].shape) == _without_units(source.shape)


def _without_units(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(dim for dim in shape if dim != 1)


def _canonical(arg: Arg, found: Mapping[str, int]) -> Hashable:
    """An argument with references as numbers; literals with their type, so that 1 is not 1.0."""
    match arg:
        case Ref(name):
            return ("value", found[name])
        case tuple():
            return tuple(_canonical(item, found) for item in arg)
        case _:
            return (type(arg).__name__, repr(arg))


def _inside(op: Op, within: tuple[str, ...]) -> bool:
    module = op.loc.module
    return not within or any(module == path or module.startswith(path + ".") for path in within)


def _difference(
    op: Op, wanted: Graph, found: Graph, ours: Mapping[str, int], theirs: Mapping[str, int]
) -> Diagnostic:
    """Describe an operation that the rebuilt model lacks, beside the nearest one that it has."""
    operands = {ours[name] for name in op.operands}
    near = [o for o in found.ops if o.name == op.name and o.loc.module == op.loc.module]
    near.sort(key=lambda o: -len(operands & {theirs[name] for name in o.operands}))
    other = f"it has  {_shown(near[0])}" if near else f"it has no {op.name} there"
    return Diagnostic(
        "P607",
        f"the stock model would compute something else in {op.loc.module or wanted.name}: {other}",
        where=str(op.loc),
        snippet=_shown(op),
        help=_HELP,
    )


def _shown(op: Op) -> str:
    bare = replace(op, types=tuple(replace(t, axes=()) for t in op.types), loc=Loc())
    return print_op(bare).strip()


def _parameters(wanted: Graph, found: Graph) -> list[Diagnostic]:
    """Parameters whose shape differs, or which only one of the programs has."""
    shapes = {
        name: p.type.shape for p in found.parameters.values() for name in (p.name, *p.aliases)
    }
    wrong = [p for p in wanted.parameters.values() if shapes.get(p.name) != p.type.shape]
    return [
        Diagnostic(
            "P606",
            f"the rebuilt model has shape {list(shapes.get(p.name, ()))} for {p.name},"
            f" which should have {list(p.type.shape)}",
            where=p.name,
            help="use --layout per-layer",
        )
        for p in wrong
    ]


def _outputs(
    wanted: Graph, found: Graph, ours: Mapping[str, int], theirs: Mapping[str, int]
) -> list[Diagnostic]:
    """Outputs that stand for other computations, although no operation is missing."""
    theirs_by_name = {name: theirs[value] for name, value in found.outputs}
    wrong = [name for name, value in wanted.outputs if theirs_by_name.get(name) != ours[value]]
    return [
        Diagnostic("P607", f"the stock model returns something else as {n}", where=n, help=_HELP)
        for n in wrong
    ]
