"""Allocators: how many indices of each group stay, so that the cost meets the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.passes.coupling import Group
from prunec.passes.score import Scores

__all__ = ["LADDER", "Budget", "GlobalRanking", "Uniform", "least_counts"]

Counts = dict[str, int]

LADDER: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"neuron", "channel"}), 1 / 3),
    (frozenset({"query_head", "expert"}), 1 / 2),
    (frozenset({"kv_head", "head_dim", "hidden", "feature"}), 1 / 2),
    (frozenset({"neuron", "channel"}), 0.0),
    (frozenset({"query_head", "expert", "kv_head", "head_dim", "hidden", "feature"}), 0.0),
)
"""Roles in the order in which they give up indices, and how far each goes before the next takes
over: neurons cost the least quality per parameter and attention the most."""


@dataclass(frozen=True)
class Budget:
    """The target as a function: `cost(counts)` must come down to `limit`.

    `round_to` is the multiple that widths are rounded to where a group is wide enough.
    """

    cost: Callable[[Mapping[str, int]], int]
    limit: float
    round_to: int = 1
    allowed: Mapping[str, Sequence[int]] | None = None

    def met(self, counts: Mapping[str, int]) -> bool:
        return self.cost(counts) <= self.limit

    def rounded(self, group: Group, count: float) -> int:
        """The nearest count that the runtime and the layout can hold, at least one."""
        step = self.round_to if group.size >= 8 * self.round_to else 1
        found = min(group.size, max(1, step * round(count / step)))
        choices = (self.allowed or {}).get(group.name)
        if choices is None:
            return found
        return min([*choices, group.size], key=lambda c: (abs(c - found), -c))


def least_counts(groups: Sequence[Group], budget: Budget) -> Counts:
    """The smallest plan: one index of everything, or the least that the layout holds."""
    return {group.name: budget.rounded(group, 0) for group in groups}


@dataclass(frozen=True)
class Uniform:
    """The same fraction of every group of a role; roles give way in the order of `LADDER`."""

    def allocate(
        self, groups: Sequence[Group], budget: Budget, scores: Mapping[str, Scores] | None = None
    ) -> Counts:
        counts = {group.name: group.size for group in groups}
        for roles, floor in LADDER:
            chosen = [g for g in groups if g.role in roles]
            lowest = self._at(counts, chosen, floor, budget)
            if not budget.met(lowest):
                counts = lowest
                continue
            counts = self._search(counts, chosen, floor, budget)
            break
        # heads come in coarse steps: give what they freed too much back to the first rung
        first = [g for g in groups if g.role in LADDER[0][0]]
        low = {g.name: counts[g.name] for g in first}
        return self._raise(counts, first, low, budget)

    def _raise(
        self, counts: Counts, groups: Sequence[Group], low: Counts, budget: Budget
    ) -> Counts:
        """Widen groups in equal shares of what they lost, as far as the target allows."""

        def at(share: float) -> Counts:
            grown = {
                g.name: max(
                    low[g.name],
                    budget.rounded(g, low[g.name] + share * (g.size - low[g.name])),
                )
                for g in groups
            }
            return counts | grown

        good, bad = 0.0, 1.0
        for _ in range(40):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if budget.met(at(middle)) else (good, middle)
        return at(good)

    def _at(
        self, counts: Counts, groups: Sequence[Group], fraction: float, budget: Budget
    ) -> Counts:
        found = dict(counts)
        for group in groups:
            # an earlier rung may have gone lower already
            found[group.name] = min(
                counts[group.name], budget.rounded(group, fraction * group.size)
            )
        return found

    def _search(
        self, counts: Counts, groups: Sequence[Group], low: float, budget: Budget
    ) -> Counts:
        """Bisect for the largest fraction that meets the target."""
        high = 1.0
        for _ in range(40):
            middle = (low + high) / 2
            if budget.met(self._at(counts, groups, middle, budget)):
                low = middle
            else:
                high = middle
        return self._at(counts, groups, low, budget)


@dataclass(frozen=True)
class GlobalRanking:
    """One ranking over all groups: scores are standardised within each group and weighed by the
    parameters that an index frees (FLAP, AAAI 2024, section 3.3). Every group keeps `floor` of
    its indices."""

    floor: float = 0.2

    def allocate(
        self, groups: Sequence[Group], budget: Budget, scores: Mapping[str, Scores] | None = None
    ) -> Counts:
        assert scores is not None
        standard = {g.name: _standardised(scores[g.name]) for g in groups}
        levels = np.sort(np.concatenate(list(standard.values())))
        low, high = 0, len(levels)
        while low < high:
            middle = (low + high) // 2
            if budget.met(self._above(groups, standard, levels[middle], budget)):
                high = middle
            else:
                low = middle + 1
        at = levels[min(low, len(levels) - 1)]
        return self._above(groups, standard, at, budget)

    def _above(
        self, groups: Sequence[Group], standard: Mapping[str, Scores], level: float, budget: Budget
    ) -> Counts:
        found = {}
        for group in groups:
            count = int((standard[group.name] > level).sum())
            count = max(count, round(self.floor * group.size))
            found[group.name] = budget.rounded(group, count)
        return found


def _standardised(scores: Scores) -> Scores:
    """Scores of one group with mean 0 and deviation 1; ragged ones averaged over the parent."""
    flat = np.sort(scores, axis=-1).mean(0) if scores.ndim == 2 else scores
    deviation = float(flat.std())
    standard: Scores = (flat - flat.mean()) / (deviation if deviation > 0 else 1.0)
    return standard
