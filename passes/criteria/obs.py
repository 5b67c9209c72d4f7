"""Optimal Brain Surgeon: what the output of the consumers loses, once the rest is refitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prunec.ir.axes import Indices
from prunec.passes.coupling import Coupling, Group
from prunec.passes.criteria.weight import Magnitude
from prunec.passes.definite import subtract
from prunec.passes.obs import Quadratic, Sweep, damped, sweep
from prunec.passes.obs_search import improve
from prunec.passes.paged import diagonal, loaded
from prunec.passes.profile import Moments, Weights
from prunec.passes.readers import Reader, bias_of, readers
from prunec.passes.score import (
    Chosen,
    Lost,
    Observed,
    Ranked,
    Scores,
    group_shape,
    lost_score,
)

__all__ = ["Obs"]


@dataclass(frozen=True)
class Obs:
    """Indices in the order of a sweep that removes what costs the least, each time with the
    others refitted: the score is the time of removal, and the curve the error at every count.

    ZipLM, NeurIPS 2023, section 3.1, algorithm 1; for heads a block is the head's columns, as
    there and in SlimGPT, NeurIPS 2024 (whose batched greedy pruning approximates this order). With
    `swaps`, `choose` afterwards exchanges pairs as long as the error falls, in the spirit of the
    local search of OSSCAR, ICML 2024.

    Departures: consumers with a bias of their own are judged by the covariance of their inputs,
    since the bias makes up for the mean; several consumers add their errors; query heads leave
    one under each KV head in turn, so that counts agree. The ridge is that of the restorer. A
    group that no layer consumes falls back to magnitude, without a curve.
    """

    ridge: float = 1e-2
    swaps: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"squares", "sums", "gram"})

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        return self.rank(coupling, group, weights, observed).scores

    def rank(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Ranked:
        read = readers(coupling, group, weights, observed)
        if not read:
            return Ranked(Magnitude().score(coupling, group, weights, observed), None)
        problems = self._problems(coupling, group, read)
        del read  # whole weights
        found = sweep(_handed_over(problems), _rows(coupling, group), reuse=True)
        return Ranked(_scores(found, group_shape(coupling, group)), _curve(found, group))

    def choose(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed, count: int
    ) -> Chosen:
        """What stays at this count: the sweep's choice, improved by exchanges."""
        shape = group_shape(coupling, group)
        read = readers(coupling, group, weights, observed)
        if not read:
            scores = Magnitude().score(coupling, group, weights, observed)
            kept = np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., :count], axis=-1)
            return Chosen(kept, lost_score(scores))
        rows = _rows(coupling, group)
        problems = self._problems(coupling, group, read)
        del read  # whole weights
        found = sweep(_handed_over(problems), rows, reuse=True)
        order = found.order
        kept = order[len(order) - count * int(np.prod(shape[:-1])) :]
        if self.swaps:
            read = readers(coupling, group, weights, observed)
            kept = improve(self._problems(coupling, group, read), kept, self.swaps, rows)
        kept = np.sort(kept).reshape(*shape[:-1], count) % group.size
        return Chosen(kept, Lost("error", _curve(found, group)))

    def _problems(self, coupling: Coupling, group: Group, read: list[Reader]) -> list[Quadratic]:
        """One for each value that is read; consumers of the same value are stacked."""
        size = int(np.prod(group_shape(coupling, group)))
        shared: dict[tuple[tuple[str, int, int], bool], list[Reader]] = {}
        for reader in read:
            biased = bias_of(coupling, reader.consumer) is not None
            shared.setdefault((reader.source, biased), []).append(reader)
        return [self._problem(same, biased, size) for (_, biased), same in shared.items()]

    def _problem(self, same: list[Reader], biased: bool, size: int) -> Quadratic:
        second = second_moments(same[0].moments, biased)
        outer = sum((r.outer() for r in same[1:]), start=same[0].outer())
        if diagonal(second).sum() <= 0:  # nothing comes in, so nothing is lost
            outer = np.zeros_like(outer)
        # a column that belongs to two indices counts with one of them
        where = same[0].where.max(0)
        blocks = [np.flatnonzero(where == i) for i in range(size)]
        return Quadratic(damped(second, self.ridge), outer, blocks)


def _handed_over(problems: list[Quadratic]) -> Iterator[Quadratic]:
    """One after the other, and nobody else holds them."""
    while problems:
        yield problems.pop(0)


def second_moments(moments: Moments, centred: bool) -> Scores:
    """X'X, or that of X without its mean."""
    assert moments.gram is not None, "the Gram matrix was not asked for"
    if not centred:
        return moments.gram
    found = loaded(moments.gram)
    subtract(found, moments.sums[:, None] / max(moments.tokens, 1), moments.sums[:, None])
    return found


def _rows(coupling: Coupling, group: Group) -> Indices | None:
    """The parent's index of each block, where counts must agree."""
    if group.parent is None:
        return None
    return np.repeat(np.arange(coupling.sizes[group.parent]), group.size)


def _scores(found: Sweep, shape: tuple[int, ...]) -> Scores:
    """Time of removal, the highest for what would go last."""
    scores = np.empty(len(found.order))
    scores[found.order] = np.arange(len(found.order))
    return scores.reshape(shape)


def _curve(found: Sweep, group: Group) -> Scores:
    """Error by the count that stays under each parent."""
    rows = len(found.order) // group.size
    curve: Scores = found.errors[::rows][::-1].copy()
    return curve
