"""What an allocator is, and what it may know of the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.coupling import Group
from prunec.passes.score import Scores

__all__ = ["NEEDS", "Allocator", "Divergence", "Evidence"]

Divergence = Callable[[Sequence[Mapping[str, int]]], list[float]]
"""How far the programs with these counts are from the dense one, each at least 0."""


@dataclass(frozen=True)
class Evidence:
    """What was measured on the dense program, each by the name of the group.

    `scores` are those of the criterion, shape (size,) or (parent size, size). `curves[g][c]` is
    the error when c indices of g stay under each index of its parent, shape (size + 1,), zero at
    full size; groups whose criterion cannot tell are missing. `influence` is the block influence
    of the layers that consume the group: 1 - cos of the residual stream before and after, mean
    over tokens; groups that lie on no residual stream are missing. `weight` says how much loss a
    unit of the group's error costs, 1 where it is missing. `divergence` measures whole plans.
    """

    scores: Mapping[str, Scores] = field(default_factory=dict)
    curves: Mapping[str, Scores] = field(default_factory=dict)
    influence: Mapping[str, float] = field(default_factory=dict)
    weight: Mapping[str, float] = field(default_factory=dict)
    divergence: Divergence | None = None


NEEDS = tuple(part.name for part in fields(Evidence))
"""What an allocator may ask for."""


class Allocator(Protocol):
    """Says how many indices of each group stay, so that the budget is met."""

    @property
    def needs(self) -> frozenset[str]:
        """What must be gathered before, out of `NEEDS`; empty: the groups alone."""

    @property
    def evaluations(self) -> int:
        """At most how often it asks for the divergence."""

    def allocate(self, groups: Sequence[Group], budget: Budget, evidence: Evidence) -> Counts:
        """A count for every group. `groups` are in the order of the program, and the budget can
        be met. The counts meet it."""
