"""The consumers of a group as matrices over the inputs they read.

A linear layer is one matrix. A convolution is one per tap of its kernel, stacked: every tap reads
the same channels, so they share second moments (edges and overlaps of taps are left out). A
grouped convolution is one matrix a group, each with the inputs of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices, atoms
from prunec.ir.diagnostics import fail
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.definite import subtract
from prunec.passes.profile import Array, Moments, Weights
from prunec.passes.score import Observed, Scores, members

__all__ = ["Reader", "bias_of", "feeders", "readers"]

Matrix = npt.NDArray[np.float64]

CHUNK = 1 << 22
"""Entries of a weight that are converted to float64 at a time."""


@dataclass(frozen=True)
class Reader:
    """One matrix of a consumer: `weight` (m, n) as stored, `where` (k, n) says which index of the
    group's flattened scores each column belongs to (-1: none), `moments` those of its n inputs.

    `source` tells what it reads: readers with the same source read the same numbers.
    """

    consumer: Consumer
    weight: Array
    where: Indices
    moments: Moments
    source: tuple[str, int, int]

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    def rows(self) -> Iterator[Matrix]:
        """The weight a few rows at a time; PrunecError when an entry is not finite."""
        step = max(1, CHUNK // max(self.width, 1))
        for start in range(0, len(self.weight), step):
            yield self._finite(self.weight[start : start + step].astype(np.float64))

    def _finite(self, part: Matrix) -> Matrix:
        if np.isfinite(part).all():
            return part
        name = self.consumer.weight.parameter
        raise fail(
            "P311",
            f"{name} holds values that are not finite, so what it reads cannot be scored",
            where=name,
            help="check the original checkpoint; it may be damaged, or overflow in its own format",
        )

    def absolute(self) -> Scores:
        """Sum of |W| down each column, (n,)."""
        found: Scores = sum((np.abs(r).sum(0) for r in self.rows()), start=np.zeros(self.width))
        return found

    def squares(self) -> Scores:
        """Sum of squares down each column, (n,)."""
        start = np.zeros(self.width)
        found: Scores = sum((np.einsum("mn,mn->n", r, r) for r in self.rows()), start=start)
        return found

    def outer(self) -> Matrix:
        """W'W, (n, n)."""
        found: Matrix = np.zeros((self.width, self.width))
        for part in self.rows():
            subtract(found, part.T, -part.T)
        return found

    def matrix(self) -> Matrix:
        """The whole weight in float64, (m, n)."""
        return self._finite(self.weight.astype(np.float64))


def readers(coupling: Coupling, group: Group, weights: Weights, observed: Observed) -> list[Reader]:
    """All matrices through which the group's consumers read it."""
    own = {(c.op, c.weight) for c in group.consumers}
    found: list[Reader] = []
    for consumer, moments in observed:
        if (consumer.op, consumer.weight) in own:
            found += _of(coupling, group, weights, consumer, moments)
    return found


def _of(
    coupling: Coupling, group: Group, weights: Weights, consumer: Consumer, moments: Moments
) -> list[Reader]:
    name = consumer.weight.parameter
    dim = _dimension(coupling, group, consumer)
    stored = weights[name]
    moved = np.moveaxis(stored, dim, -1)
    width, inputs = stored.shape[dim], len(moments.squares)
    source = (consumer.input, consumer.input_dim)
    if inputs == width:
        where = members(coupling.axes(name)[dim], group)
        return [Reader(consumer, moved.reshape(-1, width), where, moments, (*source, 0))]
    # grouped: outputs (g o) read inputs (g i), and the weight has i alone
    parts = inputs // width
    axis = coupling.graph.types[consumer.input].axes[consumer.input_dim]
    where = members(axis, group)
    return [
        Reader(
            consumer,
            np.ascontiguousarray(rows).reshape(-1, width),
            where[:, g * width : (g + 1) * width],
            moments.part(g * width, (g + 1) * width),
            (*source, g),
        )
        for g, rows in enumerate(np.split(moved, parts))
    ]


def _dimension(coupling: Coupling, group: Group, consumer: Consumer) -> int:
    """The dimension of the stored weight that carries the group; a layer may read it transposed."""
    axes = coupling.axes(consumer.weight.parameter)
    dims = [d for d, axis in enumerate(axes) if any(a.name == group.name for a in atoms(axis))]
    return consumer.weight.dim if consumer.weight.dim in dims else dims[0]


def bias_of(coupling: Coupling, consumer: Consumer) -> str | None:
    """The parameter that the same operation adds to its result, and that nothing else uses."""
    graph = coupling.graph
    op = graph.ops[graph.producers[consumer.op]]
    for operand in op.operands:
        parameter = graph.parameter(operand)
        if parameter is None or parameter.name == consumer.weight.parameter:
            continue
        if len(parameter.type.shape) == 1 and len(graph.uses[parameter.ref]) == 1:
            return parameter.name
    return None


def feeders(coupling: Coupling, group: Group) -> tuple[Consumer, ...]:
    """The layers that produce the group, as consumers of what they read.

    A producer whose weight or input cannot be told from the types is left out.
    """
    found = (_feeder(coupling, group, producer) for producer in group.producers)
    return tuple(feeder for feeder in found if feeder is not None)


def _feeder(coupling: Coupling, group: Group, producer: str) -> Consumer | None:
    graph = coupling.graph
    op = graph.ops[graph.producers[producer]]
    own = {place for place in group.places if "@" + place.parameter in op.operands}
    values = [name for name in dict.fromkeys(op.operands) if name.startswith("%")]
    for place in own:
        for dim, axis in enumerate(coupling.axes(place.parameter)):
            if dim == place.dim:
                continue
            for value in values:
                axes = graph.types[value].axes
                if axis in axes:
                    weight = type(place)(place.parameter, dim)
                    return Consumer(producer, weight, value, axes.index(axis))
    return None
