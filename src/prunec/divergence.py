"""How far a pruned program is from the dense one, without rewriting it.

The program runs with zeros where its consumers read what a plan prunes, on a few windows. Where it
gives logits the distance is the mean Kullback-Leibler divergence over their positions; else the
squared difference of its outputs over their squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from prunec.backends.forward import Forward
from prunec.ir.axes import Selection, kept_positions
from prunec.loading import Overlaid
from prunec.outputs import Outputs, SquaredError
from prunec.passes.compress import select
from prunec.passes.coupling import Coupling, Group, Place
from prunec.passes.profile import Array, Weights
from prunec.passes.score import Scores

__all__ = ["MaskedDivergence"]

LOGITS = "logits"

Inputs = Mapping[str, Array]


class MaskedDivergence:
    """`self(counts)`: the distance when each group keeps its indices of highest score; infinite
    when the outputs are not finite.

    A group that no layer consumes is masked in all its parameters. Nothing is refitted, and a
    norm over a pruned axis still counts what is masked. Each call is one pass over the windows.
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
        masked = _Masked(self.coupling, self.weights, self.groups, selections)
        program = Forward(self.coupling.graph, Overlaid(self.weights, masked), self.windows)
        total = _Logits() if _gives_logits(self.coupling) else SquaredError()
        for window in range(len(self.windows)):
            for dense, small in zip(self.dense.pieces(window), program.pieces(window), strict=True):
                total.add(dense, small)
        found = total.mean()
        return found if math.isfinite(found) else math.inf


def _gives_logits(coupling: Coupling) -> bool:
    graph = coupling.graph
    shapes = {name: graph.types[value].shape for name, value in graph.outputs}
    return LOGITS in shapes and shapes[LOGITS][-1] != 1


class _Masked(Mapping[str, Array]):
    """Weights that the selections prune, with zeros there, made when asked for."""

    def __init__(
        self,
        coupling: Coupling,
        base: Weights,
        groups: Sequence[Group],
        selections: Mapping[str, Selection],
    ) -> None:
        self.coupling, self.base, self.selections = coupling, base, selections
        self.dims: dict[str, set[int]] = {}
        for group in groups:
            if group.name not in selections:
                continue
            for place in _places(coupling, group):
                self.dims.setdefault(place.parameter, set()).add(place.dim)

    def __getitem__(self, name: str) -> Array:
        array = np.array(self.base[name])
        for dim in sorted(self.dims[name]):
            kept = kept_positions(self.coupling.axes(name)[dim], self.selections)
            gone = np.setdiff1d(np.arange(array.shape[dim]), kept)
            array[(slice(None),) * dim + (gone,)] = 0
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.dims)

    def __len__(self) -> int:
        return len(self.dims)


def _places(coupling: Coupling, group: Group) -> Iterator[Place]:
    if group.consumers:
        yield from (consumer.weight for consumer in group.consumers)
        return
    for place in group.places:
        if coupling.graph.parameters[place.parameter].kind == "parameter":
            yield place


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
