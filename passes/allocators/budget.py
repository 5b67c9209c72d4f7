"""The target as a function of counts, and the counts that runtime and layout can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prunec.passes.coupling import Group

__all__ = ["Budget", "Counts", "least_counts"]

Counts = dict[str, int]
"""How many indices of each group stay (under each index of its parent)."""

WIDE = 8
"""A group is rounded to a multiple when it holds at least so many of it."""


@dataclass(frozen=True)
class Budget:
    """The target as a function: `cost(counts)` must come down to `limit`.

    The cost never falls when a count grows. `round_to` is the multiple that widths are rounded to
    where a group is wide enough; `allowed` names the only counts of some groups, which may stay
    whole too. No count is below the group's own `least`.
    """

    cost: Callable[[Mapping[str, int]], float]
    limit: float
    round_to: int = 1
    allowed: Mapping[str, Sequence[int]] | None = None

    def met(self, counts: Mapping[str, int]) -> bool:
        return self.cost(counts) <= self.limit

    def rounded(self, group: Group, count: float) -> int:
        """The nearest count that the runtime and the layout can hold, the larger of two."""
        choices = (self.allowed or {}).get(group.name)
        if choices is None:
            step = self._step(group)
            below = int(max(count, group.least) // step) * step
            choices = [c for c in (below, below + step) if c < group.size]
        fit = [c for c in choices if c >= group.least]
        return min([*fit, group.size], key=lambda c: (abs(c - count), -c))

    def levels(self, group: Group) -> tuple[int, ...]:
        """All counts that `rounded` gives, ascending; the last is the whole group."""
        choices = (self.allowed or {}).get(group.name)
        if choices is None:
            step = self._step(group)
            choices = range(step, group.size, step)
        return tuple(sorted({*(c for c in choices if c >= group.least), group.size}))

    def _step(self, group: Group) -> int:
        return self.round_to if group.size >= WIDE * self.round_to else 1


def least_counts(groups: Sequence[Group], budget: Budget) -> Counts:
    """The smallest plan: the least of everything that runtime and layout hold, mostly one."""
    return {group.name: budget.rounded(group, 0) for group in groups}
