"""More of late layers than of early ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.allocators.evidence import Evidence
from prunec.passes.allocators.ladder import descend, top_up
from prunec.passes.coupling import Group

__all__ = ["LogDepth", "depths"]


@dataclass(frozen=True)
class LogDepth:
    """Pruning ratios that grow with the logarithm of depth.

    SlimGPT, NeurIPS 2024, incremental pruning ratio: r_i = r_0 + (r_(n-1) - r_0) log(i + 1) /
    log(n) for layers i = 0 ... n - 1, since an error made early grows on its way. `first` is r_0 /
    r_(n-1); the paper's code has 0.06 / 0.3 where a fifth is pruned.

    Departures. Attention and feed-forward part are layers of their own, and r_(n-1) is what meets
    the budget, where the paper chooses it by hand; roles give way in the order of `LADDER`.
    """

    first: float = 0.2
    needs: ClassVar[frozenset[str]] = frozenset()
    evaluations: ClassVar[int] = 0

    def allocate(
        self, groups: Sequence[Group], budget: Budget, evidence: Evidence | None = None
    ) -> Counts:
        depth = depths(groups)
        scale = math.log(1 + max(depth.values(), default=0)) or 1.0

        def factor(group: Group) -> float:
            return self.first + (1 - self.first) * math.log(1 + depth[group.name]) / scale

        return top_up(groups, descend(groups, budget, factor), budget)


def depths(groups: Sequence[Group]) -> Mapping[str, int]:
    """The number of each group's layer, from 0; groups that share a consumer share the layer.

    The groups are in the order of the program, those that share a consumer side by side.
    """
    found: dict[str, int] = {}
    at, reached = -1, set[str]()
    for group in groups:
        ops = {consumer.op for consumer in group.consumers}
        if at < 0 or not ops & reached:
            at, reached = at + 1, set()
        reached |= ops
        found[group.name] = at
    return found
