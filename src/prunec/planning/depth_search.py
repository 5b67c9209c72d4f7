"""Search for the regions that go by the distance between the programs with and without them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunec.passes.depth import Met
from prunec.passes.evopress import EvoPress, Names
from prunec.passes.regions import Region
from prunec.progress import Progress
from prunec.resume.state import State
from prunec.runs.loading import Loaded

__all__ = ["Distance", "evolved"]

STAGES = (16, 4, 1)
"""By stage of selection, of how many windows one is looked at."""

STEP = "evopress"


def evolved(
    loaded: Loaded,
    windows: Sequence[Mapping[str, Any]],
    regions: Sequence[Region],
    met: Met,
    seed: int,
    state: State | None,
    progress: Progress,
) -> list[Region] | None:
    """The regions without which the program stays nearest to the dense one, of those sets that
    were met; None when the target is missed without all of them.

    What was judged goes into the state of the run: one that was interrupted draws the same sets
    again, and judges the others.
    """
    search = EvoPress(seed)
    distance = Distance(loaded, windows, regions, state)
    with progress.step("Searching regions", search.generations) as advance:
        return search.search(regions, distance, met, lambda: advance(1))


class Distance:
    """`self(sets, stage)`: how far the outputs without each set of regions are from the dense ones
    (see `Engine.distances`), on the windows of one stage of selection."""

    def __init__(
        self,
        loaded: Loaded,
        windows: Sequence[Mapping[str, Any]],
        regions: Sequence[Region],
        state: State | None = None,
    ) -> None:
        self.loaded, self.windows, self.regions, self.state = loaded, windows, regions, state
        self.known: dict[tuple[Names, int], float] = dict(self._stored())

    def __call__(self, sets: Sequence[Names], stage: int) -> list[float]:
        new = [names for names in dict.fromkeys(sets) if (names, stage) not in self.known]
        if new:
            self._judge(new, stage)
            self._store()
        return [self.known[names, stage] for names in sets]

    def _judge(self, sets: Sequence[Names], stage: int) -> None:
        windows = self.windows[: math.ceil(len(self.windows) / STAGES[stage])]
        gone = [[region for region in self.regions if region.name in names] for names in sets]
        found = self.loaded.engine.distances(self.loaded, windows, gone)
        self.known.update({(names, stage): d for names, d in zip(sets, found, strict=True)})

    def _store(self) -> None:
        if self.state is None:
            return
        sets = [[region.name in names for region in self.regions] for names, _ in self.known]
        arrays = {
            "sets": np.array(sets, np.bool_),
            "stages": np.array([stage for _, stage in self.known], np.int64),
            "distances": np.array(list(self.known.values()), np.float64),
        }
        self.state.save(STEP, arrays)

    def _stored(self) -> list[tuple[tuple[Names, int], float]]:
        stored = None if self.state is None else self.state.load(STEP)
        if stored is None:
            return []
        names = np.array([region.name for region in self.regions])
        sets = (frozenset(names[gone].tolist()) for gone in stored["sets"])
        stages, distances = stored["stages"].tolist(), stored["distances"].tolist()
        return list(zip(zip(sets, stages, strict=True), distances, strict=True))
