"""Less of the layers that change the residual stream more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.allocators.evidence import Evidence
from prunec.passes.allocators.ladder import descend, top_up
from prunec.passes.coupling import Group

__all__ = ["BlockInfluence"]


@dataclass(frozen=True)
class BlockInfluence:
    """Pruning ratios around the mean: in proportion to exp(alpha cos), where cos compares the
    residual stream before and after a layer.

    SlimLLM, ICML 2025, layer-based importance ratio: the ratio of a layer is the mean ratio times
    the number of layers times the softmax of alpha cos. To first order in alpha that is the
    schedule of Adapt-Pruner, arXiv 2502.03460, section 3: the mean less an amplitude times the
    importance, which is -cos centred over the layers.

    Departures. Attention and feed-forward part are layers of their own, each with its cosine. The
    mean is what meets the budget, and roles give way in the order of `LADDER`; no layer is
    exempt (the paper's code spares two of 32), for the softmax spares it. A layer on no residual
    stream takes the mean influence.
    """

    alpha: float = 10.0
    needs: ClassVar[frozenset[str]] = frozenset({"influence"})
    evaluations: ClassVar[int] = 0

    def allocate(self, groups: Sequence[Group], budget: Budget, evidence: Evidence) -> Counts:
        known = [evidence.influence[g.name] for g in groups if g.name in evidence.influence]
        mean = sum(known) / len(known) if known else 0.0

        def factor(group: Group) -> float:
            return math.exp(self.alpha * (mean - evidence.influence.get(group.name, mean)))

        return top_up(groups, descend(groups, budget, factor), budget)
