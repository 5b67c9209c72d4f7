"""Rewrite a program for the indices that stay: shapes, and every literal that follows from them.

The parameters themselves are not touched: `kept` says for each which indices of which dimension
stay, and whoever holds the weights slices them one at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prunec.ir.axes import (
    Atom,
    Axis,
    Indices,
    Product,
    Selection,
    Sum,
    atoms,
    kept_positions,
    new_size,
    size,
)
from prunec.ir.graph import Arg, Graph, Op, TensorType
from prunec.passes.coupling import Coupling

UNIT = Atom("1", 1)

__all__ = ["Rewritten", "kept_indices", "rewrite"]

Kept = dict[str, dict[int, Indices]]


@dataclass(frozen=True)
class Rewritten:
    """The smaller program, and for each parameter touched the kept indices by dimension."""

    graph: Graph
    kept: Kept


def kept_indices(coupling: Coupling, selections: Mapping[str, Selection]) -> Kept:
    """For each parameter that loses something: dimension -> ascending kept indices."""
    found: Kept = {}
    cache: dict[Axis, Indices] = {}
    for parameter in coupling.graph.parameters.values():
        for dim, axis in enumerate(parameter.type.axes):
            if not any(atom.name in selections for atom in atoms(axis)):
                continue
            if axis not in cache:
                cache[axis] = kept_positions(axis, selections)
            found.setdefault(parameter.name, {})[dim] = cache[axis]
    return found


def rewrite(coupling: Coupling, selections: Mapping[str, Selection]) -> Rewritten:
    """Give the program the sizes that the selections leave.

    Keeping everything returns the same graph, and rewriting in two steps equals doing it at once.
    """
    counts = {name: selection.count for name, selection in selections.items()}
    if all(coupling.by_name[n].size == k for n, k in counts.items()):
        return Rewritten(coupling.graph, {})
    graph = coupling.graph

    def typed(type_: TensorType) -> TensorType:
        if not any(a.name in counts for axis in type_.axes for a in atoms(axis)):
            return type_
        shape = tuple(
            new_size(axis, counts) if isinstance(dim, int) else _symbolic(dim, axis, counts)
            for dim, axis in zip(type_.shape, type_.axes, strict=True)
        )
        return replace(type_, shape=shape, axes=tuple(_shrunk(a, counts) for a in type_.axes))

    def rewritten(op: Op) -> Op:
        types = tuple(map(typed, op.types))
        literals = coupling.literals.get(op.result, {})
        args, kwargs = list(op.args), dict(op.kwargs)
        for path, axes in literals.items():
            value = sum(new_size(axis, counts) for axis in axes)
            head, *rest = path
            if isinstance(head, int):
                args[head] = _put(args[head], rest, value)
            else:
                kwargs[head] = _put(kwargs[head], rest, value)
        return replace(op, args=tuple(args), kwargs=tuple(kwargs.items()), types=types)

    smaller = replace(
        graph,
        inputs=tuple(replace(value, type=typed(value.type)) for value in graph.inputs),
        parameters={name: replace(p, type=typed(p.type)) for name, p in graph.parameters.items()},
        ops=tuple(map(rewritten, graph.ops)),
    )
    return Rewritten(smaller, kept_indices(coupling, selections))


def _symbolic(dim: str, axis: Axis, counts: Mapping[str, int]) -> str:
    """A run-time size with a static factor, such as `6*batch`, follows that factor."""
    before, after = size(axis), new_size(axis, counts)
    if before == after:
        return dim
    factors = axis.factors if isinstance(axis, Product) else (axis,)
    static = [f for f in factors if any(a.name in counts for a in atoms(f))]
    old = math.prod(size(f) for f in static)
    new = math.prod(new_size(f, counts) for f in static)
    number = re.search(r"(?<![^*])\d+(?![^*])", dim)  # of all static factors, of which some shrink
    assert number is not None, (dim, axis)
    assert int(number[0]) % old == 0, (dim, axis)
    return f"{dim[: number.start()]}{int(number[0]) // old * new}{dim[number.end() :]}"


def _put(arg: Arg, path: list[int | str], value: int) -> Arg:
    """Replace the literal at `path`; one counted from the end stays negative."""
    if not path:
        return value
    step, *rest = path
    if step == "negative":
        return -value
    assert isinstance(arg, tuple)
    assert isinstance(step, int)
    return (*arg[:step], _put(arg[step], rest, value), *arg[step + 1 :])


def _shrunk(axis: Axis, counts: Mapping[str, int]) -> Axis:
    """The axis with the new sizes, in normal form: no units in products, nothing nested alike."""
    match axis:
        case Atom(name, size):
            return Atom(name, counts.get(name, size)) if counts.get(name, size) != 1 else UNIT
        case Product(factors):
            parts = [p for f in factors for p in _flat(_shrunk(f, counts), Product)]
            parts = [p for p in parts if p != UNIT]
            return _joined(parts, Product)
        case Sum(terms):
            parts = [p for t in terms for p in _flat(_shrunk(t, counts), Sum)]
            if all(p == UNIT for p in parts):
                return Atom("+".join(a.name for a in atoms(axis)), len(parts))
            return _joined(parts, Sum)


def _flat(axis: Axis, kind: type[Product] | type[Sum]) -> tuple[Axis, ...]:
    if isinstance(axis, kind):
        return axis.factors if isinstance(axis, Product) else axis.terms
    return (axis,)


def _joined(parts: list[Axis], kind: type[Product] | type[Sum]) -> Axis:
    if len(parts) > 1:
        return kind(tuple(parts))
    return parts[0] if parts else UNIT
