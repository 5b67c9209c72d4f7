"""What runs a program to look at it: a protocol, implemented with torch and with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunec.passes.allocators import Divergence
from prunec.passes.coupling import Group, Place
from prunec.passes.depth import Ends
from prunec.passes.profile import Slopes, Stream
from prunec.passes.regions import Region
from prunec.passes.routing import Routed
from prunec.passes.score import Scores
from prunec.progress import Progress
from prunec.reports.data import Check, SourceRow

if TYPE_CHECKING:
    from prunec.runs.loading import Loaded
    from prunec.runs.run import Outcome

__all__ = ["Batches", "Engine", "Told"]

Batches = Sequence[Mapping[str, Any]]
"""Inputs by name, each with one row a window in the first dimension."""

Told = Callable[[float], None]
"""Hears now and then of the share of the work that is done since the last time."""


class Engine(Protocol):
    """Runs the program of a loaded model. `budget` is what activations may take of memory, in
    bytes."""

    def stream(
        self, loaded: Loaded, batches: Batches, budget: int, *, targets: bool = False
    ) -> AbstractContextManager[Stream]:
        """The batches on their way through the program; refitted weights are kept on disk. With
        `targets` they flow through the whole dense program too, where the engine can do that."""

    def slopes(
        self, loaded: Loaded, batches: Batches, budget: int, places: Iterable[Place], told: Told
    ) -> dict[Place, Slopes]:
        """Slopes of the loss. Raises PrunecError where gradients cannot be had."""

    def routed(
        self, loaded: Loaded, batches: Batches, groups: Sequence[Group]
    ) -> dict[str, Routed]:
        """What the routing says of experts, for the groups of them whose router can be read."""

    def felt(
        self, loaded: Loaded, batches: Batches, budget: int, results: Sequence[str], told: Told
    ) -> dict[str, float]:
        """How much the loss grows for an error in each of the results, of a square of 1 in all over
        the batches, of which a few are looked at."""

    def divergence(
        self,
        loaded: Loaded,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        windows: Batches,
    ) -> Divergence:
        """How far from the dense program those are that keep so many indices of each group."""

    def losses(
        self,
        loaded: Loaded,
        windows: Batches,
        gone: Sequence[Region],
        left: Sequence[Region],
        step: Callable[[], None],
    ) -> dict[str, float]:
        """What a whole model loses without the regions `gone` and each other one, by its name: the
        lower the better. `windows` hold one row each; `step` is called for every region and
        window."""

    def without(
        self,
        loaded: Loaded,
        windows: Batches,
        sets: Sequence[Sequence[Region]],
        step: Callable[[], None],
    ) -> list[float]:
        """The loss of a whole model without each set of regions, in the units of `felt`; only the
        differences count. `step` is called for every set."""

    def distances(
        self, loaded: Loaded, windows: Batches, sets: Sequence[Sequence[Region]]
    ) -> list[float]:
        """How far the outputs of a whole model without each set of regions are from its own: the
        mean Kullback-Leibler divergence of the dense distributions from theirs where it writes
        text, else the squared difference over the squares; infinite where that is no number."""

    def ends(
        self,
        loaded: Loaded,
        windows: Batches,
        regions: Sequence[Region],
        features: Callable[[str], int],
        step: Callable[[], None],
    ) -> Ends:
        """The stream at both ends of every region. `features` tells which dimension of a value is
        not a token's place; `step` is called now and then, once more than there are regions."""

    def rows(self, pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
        """What pruning does to each source of calibration data."""

    def verify(self, pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
        """Law 1 (prune = mask) where dimensions were sliced, and every format that was written
        beside the program."""
