"""The torch engine with workers: plans of a search are judged beside one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from prunec.backends.forward import Forward
from prunec.engines.damage import Damage, Windows
from prunec.engines.divergence import MaskedDivergence
from prunec.engines.engine import Batches
from prunec.engines.torch_engine import TorchEngine
from prunec.engines.workers import Pool, Workers
from prunec.ir.graph import Graph
from prunec.measuring.breakdown import writes_text
from prunec.passes.allocators import Divergence
from prunec.passes.coupling import Coupling, Group
from prunec.passes.profile import Weights
from prunec.passes.regions import Region
from prunec.passes.score import Scores

if TYPE_CHECKING:
    from prunec.runs.loading import Loaded

__all__ = ["FannedEngine"]


class FannedEngine(TorchEngine):
    """Everything but the judging of plans is done here."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.depths: Pool | None = None

    def divergence(
        self,
        loaded: Loaded,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        windows: Batches,
    ) -> Divergence:
        own = dict(loaded.weights)
        return self.workers.pool(_Widths(loaded.coupling, groups, scores, own, windows))

    def distances(
        self, loaded: Loaded, windows: Batches, sets: Sequence[Sequence[Region]]
    ) -> list[float]:
        """The engine is that of `loaded`, which is sent once."""
        if self.depths is None:
            job = _Depths(loaded.graph, dict(loaded.weights), writes_text(loaded))
            self.depths = self.workers.pool(job)
        return self.depths([(loaded.without(gone).graph, windows) for gone in sets])


@dataclass(frozen=True)
class _Widths:
    """Judges counts, as `MaskedDivergence` does."""

    coupling: Coupling
    groups: Sequence[Group]
    scores: Mapping[str, Scores]
    weights: Weights
    windows: Batches

    def open(self) -> Callable[[Mapping[str, int]], float]:
        return MaskedDivergence(self.coupling, self.groups, self.scores, self.weights, self.windows)


@dataclass(frozen=True)
class _Depths:
    """Judges programs without some regions, as `torch_distance.distances` does."""

    graph: Graph
    weights: Weights
    text: bool

    def open(self) -> Callable[[tuple[Graph, Windows]], float]:
        ran: dict[int, tuple[Windows, Forward]] = {}

        @torch.no_grad()
        def judge(piece: tuple[Graph, Windows]) -> float:
            graph, windows = piece
            if not _same(ran.get(len(windows), ((), None))[0], windows):
                ran[len(windows)] = windows, Forward(self.graph, self.weights, windows)
            dense = ran[len(windows)][1]
            score = Damage(windows, self.text)
            program = Forward(graph, self.weights, windows)
            program.tail.weights = dense.tail.weights
            for window in range(len(windows)):
                score(None, window, dense.result(window))
                score("smaller", window, program.result(window))
            found = score.found("smaller")
            value = found.error if math.isnan(found.loss) else found.divergence
            return value if math.isfinite(value) else math.inf

        return judge


def _same(ours: Windows, theirs: Windows) -> bool:
    return len(ours) == len(theirs) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(ours, theirs, strict=True)
    )
