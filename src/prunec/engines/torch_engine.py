"""Run programs with torch: those that were traced from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from prunec.backends.forward import Forward
from prunec.backends.torch_ends import observe_ends
from prunec.backends.torch_feeling import loss_per_square
from prunec.backends.torch_gradients import TorchGradients
from prunec.backends.torch_routing import watch_routes
from prunec.backends.torch_stream import TorchStream
from prunec.backends.torch_variants import bypass, run_variants
from prunec.engines.damage import damage_of
from prunec.engines.divergence import MaskedDivergence
from prunec.engines.engine import Batches, Told
from prunec.engines.torch_distance import distances
from prunec.measuring.breakdown import source_rows
from prunec.output.checking import verify
from prunec.passes.allocators import Divergence
from prunec.passes.coupling import Group, Place
from prunec.passes.dce import dce
from prunec.passes.depth import Ends
from prunec.passes.profile import Slopes, Stream
from prunec.passes.regions import Region
from prunec.passes.remove import bypassed
from prunec.passes.routing import Routed, find_routers
from prunec.passes.score import Scores
from prunec.planning.evidence import PROBED, spread
from prunec.progress import Progress
from prunec.reports.data import Check, SourceRow
from prunec.resume.scratch import Scratch
from prunec.runs.loading import Loaded

if TYPE_CHECKING:
    from prunec.runs.run import Outcome

__all__ = ["TorchEngine"]


class TorchEngine:
    """Implements `prunec.engines.engine.Engine`."""

    def stream(
        self, loaded: Loaded, batches: Batches, budget: int, *, targets: bool = False
    ) -> AbstractContextManager[Stream]:
        dense = loaded.whole.graph if targets else None
        return TorchStream(loaded.graph, loaded.weights, batches, budget, dense, Scratch())

    def slopes(
        self, loaded: Loaded, batches: Batches, budget: int, places: Iterable[Place], told: Told
    ) -> dict[Place, Slopes]:
        return TorchGradients(loaded.graph, loaded.weights, batches, budget, told).slopes(places)

    def routed(
        self, loaded: Loaded, batches: Batches, groups: Sequence[Group]
    ) -> dict[str, Routed]:
        routers = find_routers(loaded.coupling, groups)
        return watch_routes(loaded.graph, loaded.weights, batches, routers) if routers else {}

    def felt(
        self, loaded: Loaded, batches: Batches, budget: int, results: Sequence[str], told: Told
    ) -> dict[str, float]:
        few = spread(batches, PROBED)
        return loss_per_square(loaded.graph, loaded.weights, batches, few, results, budget, told)

    def divergence(
        self,
        loaded: Loaded,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        windows: Batches,
    ) -> Divergence:
        measure = MaskedDivergence(loaded.coupling, groups, scores, loaded.weights, windows)
        return lambda plans: [measure(counts) for counts in plans]

    def losses(
        self,
        loaded: Loaded,
        windows: Batches,
        gone: Sequence[Region],
        left: Sequence[Region],
        step: Callable[[], None],
    ) -> dict[str, float]:
        score = damage_of(loaded, windows, divergence=False)
        graph, stand_ins = bypassed(loaded.graph, gone)
        graph = dce(graph)
        moved = [replace(r, entry=stand_ins.get(r.entry, r.entry)) for r in left]
        variants = [bypass(graph, region) for region in moved]
        run_variants(graph, loaded.weights, windows, variants, score, step)
        return {region.name: score.found(region.name).worth for region in left}

    @torch.no_grad()
    def without(
        self,
        loaded: Loaded,
        windows: Batches,
        sets: Sequence[Sequence[Region]],
        step: Callable[[], None],
    ) -> list[float]:
        found = []
        for gone in sets:
            score = damage_of(loaded, windows, divergence=False)
            forward = Forward(loaded.without(gone).graph, loaded.weights, windows)
            for number in range(len(windows)):
                score(None, number, forward.result(number))
            found.append(score.found(None).worth)
            step()
        return found

    def distances(
        self, loaded: Loaded, windows: Batches, sets: Sequence[Sequence[Region]]
    ) -> list[float]:
        return distances(loaded, windows, sets)

    def ends(
        self,
        loaded: Loaded,
        windows: Batches,
        regions: Sequence[Region],
        features: Callable[[str], int],
        step: Callable[[], None],
    ) -> Ends:
        return observe_ends(loaded.graph, loaded.weights, windows, regions, features, step)

    def rows(self, pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
        return source_rows(pruned, progress)

    def verify(self, pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
        return verify(pruned, stage, progress)
