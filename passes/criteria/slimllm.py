"""SlimLLM's criteria: heads by the similarity they leave behind, channels in the feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.criteria.obs import second_moments
from prunec.passes.criteria.weight import Magnitude
from prunec.passes.profile import Weights
from prunec.passes.readers import Reader, feeders, readers
from prunec.passes.score import (
    Chosen,
    Observed,
    Scores,
    fold,
    folded,
    group_shape,
    lost_score,
    members,
)

__all__ = ["SlimLLM"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SlimLLM:
    """Guo et al., SlimLLM, ICML 2025 (arXiv 2505.22689): Pearson similarity with greedy search for
    heads, feature space importance for channels; details as in its published code.

    Units with several columns in a consumer (heads): the negative Pearson similarity, summed in
    absolute value over the outputs, between the output Y = XW' and Y without the unit. `choose`
    then tries, for each unit that left, every exchange with one that stays, and takes the best
    that raises the similarity of what stays to Y.

    Units with one column (neurons, channels): ||X_j|| * || |V'W_j| * sigmoid(l / mean l) ||, V and
    l the eigenvectors and eigenvalues of the covariance of Y; to which come, for each layer that
    makes the unit, || W_i * ||X|| || over its row i and the norms of its inputs.

    All of it is computed from second moments. Departures: the terms of the layers that make the
    unit need their inputs (`watches`); when these were not observed the sum is without them. Query
    heads are exchanged under their own KV head only. A group that no layer consumes falls back to
    magnitude.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"squares", "sums", "gram"})

    def watches(self, coupling: Coupling, group: Group) -> tuple[Consumer, ...]:
        """The layers that make the group, where it is one of channels."""
        for consumer in group.consumers:
            axis = coupling.axes(consumer.weight.parameter)[consumer.weight.dim]
            if not _one_each(members(axis, group), group_shape(coupling, group)):
                return ()
        return feeders(coupling, group)

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        found = readers(coupling, group, weights, observed)
        if not found:
            return Magnitude().score(coupling, group, weights, observed)
        shape = group_shape(coupling, group)
        if _single(found, shape):
            total = sum((_feature(r, shape) for r in found), start=np.zeros(shape))
            return total + _fed(coupling, group, weights, observed)
        return _Heads(found, shape).scores()

    def choose(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed, count: int
    ) -> Chosen:
        scores = self.score(coupling, group, weights, observed)
        found = readers(coupling, group, weights, observed)
        order = np.argsort(-scores, axis=-1, kind="stable")
        if not found or _single(found, scores.shape):
            return Chosen(np.sort(order[..., :count], axis=-1), lost_score(scores))
        return Chosen(_Heads(found, scores.shape).exchanged(order, count), lost_score(scores))


def _single(found: list[Reader], shape: tuple[int, ...]) -> bool:
    """Whether no index has more than one column in a consumer."""
    return all(_one_each(reader.where, shape) for reader in found)


def _one_each(where: Indices, shape: tuple[int, ...]) -> bool:
    return bool(folded(np.ones(where.shape[1]), where, shape).max() <= 1)


def _feature(reader: Reader, shape: tuple[int, ...]) -> Scores:
    """Norm of each column in the feature space of the output, times that of its input."""
    weight = reader.matrix()
    inner = second_moments(reader.moments, centred=True)
    values, vectors = np.linalg.eigh(weight @ inner @ weight.T)
    values = np.abs(values)
    mean = float(values.mean())
    gates = 1 / (1 + np.exp(-(values / mean if mean > 0 else values)))
    norms = np.linalg.norm((vectors.T @ weight) * gates[:, None], axis=0)
    return folded(norms * reader.moments.norms, reader.where, shape)


def _fed(coupling: Coupling, group: Group, weights: Weights, observed: Observed) -> Scores:
    """Terms of the layers that make the group: norms of weights times inputs, row by row."""
    total = np.zeros(group_shape(coupling, group))
    seen = {(c.op, c.weight): m for c, m in observed}
    for feeder in feeders(coupling, group):
        moments = seen.get((feeder.op, feeder.weight))
        if moments is None:
            continue
        weight = weights[feeder.weight.parameter].astype(np.float64)
        across = feeder.weight.dim
        (own,) = {p.dim for p in group.places if p.parameter == feeder.weight.parameter} - {across}
        others = tuple(d for d in range(weight.ndim) if d not in (own, across))
        squares = np.square(weight).sum(others)
        squares = squares if own < across else squares.T
        axis = coupling.axes(feeder.weight.parameter)[own]
        total += fold(np.sqrt(squares @ moments.squares), axis, group, coupling)
    return total


class _Heads:
    """Second moments between what each unit adds to each output; what belongs to no unit is one
    more, which always stays.

    For a consumer with W (m, n) and the covariance C of its inputs, `pairs[i, j, o]` is the
    covariance of the parts that units i and j add to output o, shape (h + 1, h + 1, m).
    """

    def __init__(self, found: list[Reader], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.count = int(np.prod(shape))
        self.pairs = np.concatenate([self._pairs(reader) for reader in found], axis=2)
        self.whole = self.pairs.sum((0, 1))

    def _pairs(self, reader: Reader) -> Matrix:
        weight = reader.matrix()
        inner = second_moments(reader.moments, centred=True)
        unit = reader.where.max(0)
        unit = np.where(unit < 0, self.count, unit)
        blocks = [np.flatnonzero(unit == i) for i in range(self.count + 1)]
        found = np.empty((self.count + 1, self.count + 1, len(weight)))
        for j, columns in enumerate(blocks):
            spread = (weight[:, columns] @ inner[columns]) * weight
            for i, others in enumerate(blocks):
                found[i, j] = spread[:, others].sum(1)
        return found

    def scores(self) -> Scores:
        """Negative similarity of the rest when one unit has left."""
        everything = np.ones(self.count + 1, dtype=bool)
        found = np.empty(self.count)
        for i in range(self.count):
            everything[i] = False
            found[i] = -self.similarity(everything)
            everything[i] = True
        return found.reshape(self.shape)

    def similarity(self, stays: npt.NDArray[np.bool_]) -> float:
        """Sum over outputs of |correlation| between Y and the part of Y that stays."""
        rows = self.pairs[stays]
        across = rows.sum((0, 1))
        own = np.maximum(rows[:, stays].sum((0, 1)), 0)
        scale = np.sqrt(own * np.maximum(self.whole, 0))
        return float(np.abs(np.divide(across, scale, np.zeros_like(scale), where=scale > 0)).sum())

    def exchanged(self, order: Indices, count: int) -> Indices:
        """The first `count` of each row after the exchanges, ascending."""
        flat = np.arange(self.count).reshape(self.shape)
        ranked = np.take_along_axis(flat, order, axis=-1).reshape(-1, self.shape[-1])
        stays = np.zeros(self.count + 1, dtype=bool)
        stays[self.count] = True
        stays[ranked[:, :count]] = True
        # the least important first, as the published code goes through them
        for row in ranked:
            for new in row[count:][::-1]:
                self._exchange(stays, row, int(new))
        kept = np.flatnonzero(stays[: self.count]) % self.shape[-1]
        return kept.reshape(*self.shape[:-1], count)

    def _exchange(self, stays: npt.NDArray[np.bool_], row: Indices, new: int) -> None:
        """Put `new` in the place of the unit of its row where that helps the most, if it does."""
        best, best_old = self.similarity(stays), -1
        stays[new] = True
        for old in row[stays[row]]:
            if old == new:
                continue
            stays[old] = False
            found = self.similarity(stays)
            stays[old] = True
            if found > best:
                best, best_old = found, int(old)
        stays[best_old if best_old >= 0 else new] = False
