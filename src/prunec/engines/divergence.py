"""How far a pruned program is from the dense one, without rewriting it.

The program runs with zeros where its consumers read what a plan prunes, on a few windows. Where it
gives logits the distance is the mean Kullback-Leibler divergence over their positions; else the
squared difference of its outputs over their squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from prunec.backends.forward import Forward
from prunec.engines.masking import LOGITS, MaskedWeights, gives_logits
from prunec.engines.outputs import Outputs, SquaredError
from prunec.passes.compress import select
from prunec.passes.coupling import Coupling, Group
from prunec.passes.profile import Array, Weights
from prunec.passes.rewrite import rewrite
from prunec.passes.routing import routes
from prunec.passes.score import Scores
from prunec.runs.loading import Overlaid, SlicedWeights

__all__ = ["MaskedDivergence"]

Inputs = Mapping[str, Array]


class MaskedDivergence:
    """`self(counts)`: the distance when each group keeps its indices of highest score; infinite
    when the outputs are not finite.

    A group that no layer consumes is masked in all its parameters, and experts are left out, so
    that tokens go to those that stay. Nothing is refitted, and a norm over a pruned axis still
    counts what is masked. Each call is one pass over the windows.
    """

    def __init__(
        self,
        coupling: Coupling,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        weights: Weights,
        windows: Sequence[Inputs],
    ) -> None:
        self.coupling, self.groups, self.scores = coupling, groups, scores
        self.weights, self.windows = weights, windows
        self.dense = Forward(coupling.graph, weights, windows)

    def __call__(self, counts: Mapping[str, int]) -> float:
        selections = {
            g.name: select(self.scores[g.name], counts[g.name], g)
            for g in self.groups
            if counts[g.name] < g.size
        }
        # what the program chooses from cannot be masked: it would choose the zeros
        sliced = {g.name for g in self.groups if routes(self.coupling, g)} & selections.keys()
        others = [group for group in self.groups if group.name not in sliced]
        masked = MaskedWeights(self.coupling, self.weights, others, selections)
        smaller = rewrite(self.coupling, {name: selections[name] for name in sliced})
        weights = SlicedWeights(Overlaid(self.weights, masked), smaller.kept)
        program = Forward(smaller.graph, weights, self.windows)
        total = _Logits() if gives_logits(self.coupling.graph) else SquaredError()
        for window in range(len(self.windows)):
            for dense, small in zip(self.dense.pieces(window), program.pieces(window), strict=True):
                total.add(dense, small)
        found = total.mean()
        return found if math.isfinite(found) else math.inf


class _Logits:
    """Sum of the divergences of next-token (or class) distributions, dense from pruned."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, dense: Outputs, small: Outputs) -> None:
        wanted, found = (o[LOGITS].float().log_softmax(-1) for o in (dense, small))
        parts = (wanted.exp() * (wanted - found)).sum(-1)
        self.total += float(parts.sum(dtype=torch.float64))
        self.count += parts.numel()

    def mean(self) -> float:
        return self.total / self.count
