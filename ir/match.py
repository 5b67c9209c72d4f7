"""Match the dimensions of operands with the patterns of a signature, and build the results."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from prunec.ir.graph import TensorType
from prunec.ir.signature import ELLIPSIS, Dimension, Pattern, Signature
from prunec.ir.unify import AxisId

if TYPE_CHECKING:
    from prunec.ir.infer import Dims, Typing

__all__ = ["Match"]


@cache
def _spread(pattern: Pattern, rank: int) -> tuple[slice | None, tuple[tuple[int, Dimension], ...]]:
    """Pair the dimensions of an operand with a pattern's entries: those that `...` takes, if
    there is one, and the place and the entry of each other."""
    if ELLIPSIS not in pattern:
        return None, tuple(enumerate(pattern))
    at = pattern.index(ELLIPSIS)
    tail = pattern[at + 1 :]
    if at + len(tail) > rank:
        return None, tuple(enumerate(pattern[len(pattern) - rank :]))
    first = rank - len(tail)
    return slice(at, first), (*enumerate(pattern[:at]), *enumerate(tail, first))


class Match:
    """Binds the labels of a signature to axes, one operand after the other."""

    def __init__(self, typing: Typing, signature: Signature, sizes: dict[str, int]) -> None:
        self.typing, self.signature, self.sizes = typing, signature, sizes
        self.labels: dict[str, AxisId] = {}
        self.places: dict[str, list[tuple[int, int]]] = {}
        self.rest: Dims = []
        self.shared: list[tuple[AxisId, tuple[tuple[int, int], ...]]] = []

    def fits(self, dims: Dims, pattern: Pattern) -> bool:
        """Whether the pattern is for this rank; behind `...` dimensions may lack, as they
        broadcast from the right."""
        return len(dims) == len(pattern) or ELLIPSIS in pattern

    def operand(self, position: int, dims: Dims, pattern: Pattern) -> None:
        rest, entries = _spread(pattern, len(dims))
        if rest is not None:
            self._broadcast(dims[rest])
        for place, dim in entries:
            axis = dims[place]
            if dim == "_":
                self.typing.axes.pin(axis, "a spatial dimension or a kernel window")
            elif isinstance(dim, tuple):
                self._product(axis, dim)
                for label in dim:
                    self.places.setdefault(label, []).append((position, place))
            else:
                self.bind(dim, axis)
                self.places.setdefault(dim, []).append((position, place))

    def _broadcast(self, rest: Dims) -> None:
        if not self.rest:
            self.rest = list(rest)
            return
        axes = self.typing.axes
        shared = min(len(rest), len(self.rest))
        for i in range(1, shared + 1):
            if axes.size(rest[-i]) > 1 and axes.size(self.rest[-i]) > 1:
                self.shared.append((rest[-i], ((0, -i), (1, -i))))
        self.rest = self.typing.unify(self.rest, rest)

    def bind(self, label: str, axis: AxisId) -> None:
        axes = self.typing.axes
        known = self.labels.get(label)
        if known is None or axes.size(known) == 1:
            self.labels[label] = axis
        else:
            axes.unify(known, axis)

    def _product(self, axis: AxisId, labels: tuple[str, ...]) -> None:
        axes = self.typing.axes
        known = {
            label: self.sizes.get(label) or axes.size(self.labels[label])
            for label in labels
            if label in self.sizes or label in self.labels
        }
        total = math.prod(known.values())
        for label in labels:
            self.labels.setdefault(label, axes.atom(known.get(label, axes.size(axis) // total)))
        axes.unify(axis, axes.product([self.labels[label] for label in labels]))

    def result(self, pattern: Pattern, type_: TensorType) -> Dims:
        dims: Dims = []
        for dim in pattern:
            if dim == ELLIPSIS:
                dims += self.rest
            elif dim == "_":
                own = type_.shape[len(dims) : len(dims) + 1]
                dims += self.typing.fresh(own, "a spatial dimension")
            elif isinstance(dim, tuple):
                dims.append(self.typing.axes.product([self.labels[label] for label in dim]))
            else:
                dims.append(self.labels[dim])
        return dims
