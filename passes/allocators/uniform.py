"""The same share of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.allocators.evidence import Evidence
from prunec.passes.allocators.ladder import descend
from prunec.passes.coupling import Group

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """The same fraction of every group of a role; roles give way in the order of `LADDER`.

    Groups of one role and size keep one count, so that layers stay alike: what remains of the
    budget is less than one index of each.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    evaluations: ClassVar[int] = 0

    def allocate(
        self, groups: Sequence[Group], budget: Budget, evidence: Evidence | None = None
    ) -> Counts:
        return descend(groups, budget, lambda group: 1.0)
