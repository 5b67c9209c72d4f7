"""One ranking over all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.allocators.evidence import Evidence
from prunec.passes.allocators.ladder import first_rung, top_up
from prunec.passes.coupling import Group
from prunec.passes.score import Scores

__all__ = ["Global"]


@dataclass(frozen=True)
class Global:
    """Everything whose standardised score lies above one threshold stays.

    FLAP, AAAI 2024, adaptive structure search: scores are standardised within each group, (s -
    mean) / deviation, and ranked over all groups. What an index frees does not enter its rank:
    as in the paper's code it only counts towards the target, where the threshold is set.

    Departures. Units are standardised as they are pruned (a head's score among the heads of its
    layer), where the paper standardises columns and averages them over a head. A group under a
    parent, whose counts agree, has at each rank the mean score of that rank. Every group keeps
    `floor` of its indices; the floor is halved until the budget can be met. The paper takes the
    threshold nearest to the target; here the target is met, and what a head removed last freed too
    much is given back in the order of the ranking, to neurons and channels first.
    """

    floor: float = 0.2
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})
    evaluations: ClassVar[int] = 0

    def allocate(self, groups: Sequence[Group], budget: Budget, evidence: Evidence) -> Counts:
        ranks = {g.name: standardised(evidence.scores[g.name]) for g in groups}
        floor = self._floor(groups, ranks, budget)
        counts = _cut(groups, ranks, {}, floor, budget)
        counts = _cut(first_rung(groups), ranks, counts, floor, budget)
        return top_up(groups, counts, budget, lambda group, count: _next(ranks[group.name], count))

    def _floor(self, groups: Sequence[Group], ranks: Mapping[str, Scores], budget: Budget) -> float:
        floor = self.floor
        while floor * max(g.size for g in groups) >= 0.5:
            if budget.met(_above(groups, ranks, np.inf, floor, budget)):
                return floor
            floor /= 2
        return 0.0


def _cut(
    moving: Sequence[Group],
    ranks: Mapping[str, Scores],
    counts: Counts,
    floor: float,
    budget: Budget,
) -> Counts:
    """The lowest threshold for the groups that move with which all meet the budget; the others
    keep their counts, and no group falls below its own."""
    if not moving:
        return counts
    levels = np.unique(np.concatenate([ranks[g.name] for g in moving]))
    thresholds = np.concatenate([[-np.inf], levels])

    def at(place: int) -> Counts:
        found = _above(moving, ranks, float(thresholds[place]), floor, budget)
        return counts | {n: max(c, counts.get(n, 0)) for n, c in found.items()}

    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.met(at(middle)) else (middle + 1, high)
    return at(high)


def _above(
    groups: Sequence[Group],
    ranks: Mapping[str, Scores],
    threshold: float,
    floor: float,
    budget: Budget,
) -> Counts:
    """How many of each group lie above the threshold, but at least the floor."""
    found = {}
    for group in groups:
        rank = ranks[group.name]
        count = len(rank) - int(np.searchsorted(rank, threshold, side="right"))
        found[group.name] = budget.rounded(group, max(count, floor * group.size))
    return found


def _next(rank: Scores, count: int) -> float:
    """The best of what is left out when `count` stay."""
    return float(rank[len(rank) - count - 1])


def standardised(scores: Scores) -> Scores:
    """Scores of one group, ascending, with mean 0 and deviation 1, shape (size,); those under a
    parent averaged over it, rank by rank."""
    flat = np.sort(scores, axis=-1)
    if flat.ndim == 2:
        flat = flat.mean(0)
    deviation = float(flat.std())
    standard: Scores = (flat - flat.mean()) / (deviation if deviation > 0 else 1.0)
    return standard
