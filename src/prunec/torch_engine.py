"""Run programs with torch: those that were traced from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from prunec.backends.torch_feeling import loss_per_error
from prunec.backends.torch_gradients import TorchGradients
from prunec.backends.torch_routing import watch_routes
from prunec.backends.torch_stream import TorchStream
from prunec.breakdown import source_rows
from prunec.checking import verify
from prunec.divergence import MaskedDivergence
from prunec.engine import Batches
from prunec.loading import Loaded
from prunec.passes.coupling import Group, Place
from prunec.passes.profile import Slopes, Stream
from prunec.passes.routing import Routed, find_routers
from prunec.passes.score import Scores
from prunec.progress import Progress
from prunec.reports import Check, SourceRow
from prunec.scratch import Scratch

if TYPE_CHECKING:
    from prunec.run import Outcome

__all__ = ["TorchEngine"]


class TorchEngine:
    """Implements `prunec.engine.Engine`."""

    def stream(
        self, loaded: Loaded, batches: Batches, budget: int
    ) -> AbstractContextManager[Stream]:
        return TorchStream(loaded.graph, loaded.weights, batches, budget, replaced=Scratch())

    def slopes(
        self, loaded: Loaded, batches: Batches, budget: int, places: Iterable[Place]
    ) -> dict[Place, Slopes]:
        return TorchGradients(loaded.graph, loaded.weights, batches, budget).slopes(places)

    def routed(
        self, loaded: Loaded, batches: Batches, groups: Sequence[Group]
    ) -> dict[str, Routed]:
        routers = find_routers(loaded.coupling, groups)
        return watch_routes(loaded.graph, loaded.weights, batches, routers) if routers else {}

    def felt(
        self, loaded: Loaded, batches: Batches, budget: int, results: Sequence[str]
    ) -> dict[str, float]:
        return loss_per_error(loaded.graph, loaded.weights, batches, results, budget)

    def divergence(
        self,
        loaded: Loaded,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        windows: Batches,
    ) -> Callable[[Mapping[str, int]], float]:
        return MaskedDivergence(loaded.coupling, groups, scores, loaded.weights, windows)

    def rows(self, pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
        return source_rows(pruned, progress)

    def verify(self, pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
        return verify(pruned, stage, progress)
