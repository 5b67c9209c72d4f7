"""Calibration shared between processes: each runs a part of the batches, and all learn the sums.

Every process then scores, chooses and refits from the same sums, so that all have the same plan
without a word of it being sent; the first alone writes. Only the stream of calibration data is
shared out: gradients and comparisons of whole plans, on few windows, are run by everyone.

Batches are dealt in runs of five, since streams hold every fifth apart: the same are held apart as
in one process. Sums are added in another order than there, in float64 over batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from prunec.engines.engine import Batches, Engine, Told
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import fail
from prunec.passes.allocators import Divergence
from prunec.passes.coupling import Consumer, Group, Place
from prunec.passes.depth import Ends
from prunec.passes.profile import Array, Moments, Sample, Seen, Slopes, Stream, Targets, Weights
from prunec.passes.regions import Region
from prunec.passes.routing import Routed
from prunec.passes.score import Scores
from prunec.progress import Progress
from prunec.ranks import join, rank, world_size
from prunec.reports.data import Check, SourceRow

if TYPE_CHECKING:
    from prunec.runs.loading import Loaded
    from prunec.runs.run import Outcome

__all__ = ["SharedEngine", "SharedStream", "agree_on", "own_part"]

RUN = 5
"""Batches that stay together; see HELD_EVERY of the streams."""


class SharedEngine:
    """An engine of which every process runs a part of the calibration data."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def stream(
        self, loaded: Loaded, batches: Batches, budget: int, *, targets: bool = False
    ) -> Iterator[Stream]:
        """As the engine's; all of it everywhere where there are too few batches to share."""
        join()
        agree_on("calibration data", (array for batch in batches for array in batch.values()))
        own = own_part(batches, rank(), world_size())
        with self.engine.stream(loaded, own or batches, budget, targets=targets) as stream:
            yield SharedStream(stream) if own else stream

    def slopes(
        self, loaded: Loaded, batches: Batches, budget: int, places: Iterable[Place], told: Told
    ) -> dict[Place, Slopes]:
        return self.engine.slopes(loaded, batches, budget, places, told)

    def routed(
        self, loaded: Loaded, batches: Batches, groups: Sequence[Group]
    ) -> dict[str, Routed]:
        return self.engine.routed(loaded, batches, groups)

    def felt(
        self, loaded: Loaded, batches: Batches, budget: int, results: Sequence[str], told: Told
    ) -> dict[str, float]:
        return self.engine.felt(loaded, batches, budget, results, told)

    def divergence(
        self,
        loaded: Loaded,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        windows: Batches,
    ) -> Divergence:
        return self.engine.divergence(loaded, groups, scores, windows)

    def without(
        self,
        loaded: Loaded,
        windows: Batches,
        sets: Sequence[Sequence[Region]],
        step: Callable[[], None],
    ) -> list[float]:
        return self.engine.without(loaded, windows, sets, step)

    def distances(
        self, loaded: Loaded, windows: Batches, sets: Sequence[Sequence[Region]]
    ) -> list[float]:
        return self.engine.distances(loaded, windows, sets)

    def losses(
        self,
        loaded: Loaded,
        windows: Batches,
        gone: Sequence[Region],
        left: Sequence[Region],
        step: Callable[[], None],
    ) -> dict[str, float]:
        return self.engine.losses(loaded, windows, gone, left, step)

    def ends(
        self,
        loaded: Loaded,
        windows: Batches,
        regions: Sequence[Region],
        features: Callable[[str], int],
        step: Callable[[], None],
    ) -> Ends:
        return self.engine.ends(loaded, windows, regions, features, step)

    def rows(self, pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
        return self.engine.rows(pruned, progress)

    def verify(self, pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
        return self.engine.verify(pruned, stage, progress)


@dataclass(frozen=True)
class SharedStream:
    """Implements `prunec.passes.profile.Stream` over the streams of all processes."""

    own: Stream

    @property
    def replaced(self) -> Weights:
        return self.own.replaced

    def observe(
        self, consumers: Sequence[Consumer], needs: frozenset[str] = frozenset()
    ) -> list[Seen]:
        return [_summed(seen) for seen in self.own.observe(consumers, needs)]

    def replace(self, weights: Weights) -> None:
        self.own.replace(weights)


def own_part(batches: Batches, place: int, of: int) -> Batches:
    """The batches of one process: every `of`th run of five, in order; none for any process where
    there are fewer runs than processes."""
    starts = range(0, len(batches), RUN)
    if len(starts) < of:
        return ()
    return [batch for start in starts[place::of] for batch in batches[start : start + RUN]]


def agree_on(what: str, arrays: Iterable[Array | Selection]) -> None:
    """P879 unless every process has the same arrays, bit for bit."""
    join()
    digest = hashlib.sha256()
    for array in arrays:
        kept = array.keep if isinstance(array, Selection) else array
        digest.update(repr(kept.shape).encode() + np.ascontiguousarray(kept).tobytes())
    found: list[str] = [""] * world_size()
    dist.all_gather_object(found, digest.hexdigest())
    if len(set(found)) == 1:
        return
    raise fail(
        "P879",
        f"the processes do not have the same {what}",
        where="torchrun",
        help="give all of them the same files and options, on machines of one kind",
    )


def _summed(seen: Seen) -> Seen:
    """What all processes have seen together."""
    whole = seen.whole.moments.tokens
    known = seen.influence is not None
    held = 0 if seen.held is None else seen.held.moments.tokens
    counts = np.array([held, (seen.influence or 0.0) * whole, whole if known else 0], np.float64)
    _add(counts)
    fit = _sample(seen.fit)
    judged = None
    if counts[0]:
        judged = _sample(seen.held if seen.held is not None else _nothing(seen.fit))
    return Seen(fit, judged, float(counts[1] / counts[2]) if counts[2] else None)


def _sample(sample: Sample) -> Sample:
    targets = sample.targets
    if targets is not None:
        squares = np.array([targets.squares])
        targets = Targets(_add(targets.cross), _add(targets.sums), float(_add(squares)[0]))
    return Sample(_moments(sample.moments), targets)


def _moments(found: Moments) -> Moments:
    tokens = np.array([found.tokens], np.float64)
    return Moments(
        int(_add(tokens)[0]),
        _add(found.squares),
        _add(found.sums),
        None if found.gram is None else _add(found.gram),
        None if found.absolute is None else _add(found.absolute),
    )


def _add(array: Array) -> Array:
    """The sum over all processes, in the memory of `array`."""
    array = np.ascontiguousarray(array)
    dist.all_reduce(torch.from_numpy(array))
    return array


def _nothing(like: Sample) -> Sample:
    """What is seen where there are no tokens."""
    moments, targets = like.moments, like.targets
    empty = Moments(
        0,
        np.zeros_like(moments.squares),
        np.zeros_like(moments.sums),
        None if moments.gram is None else np.zeros_like(moments.gram),
        None if moments.absolute is None else np.zeros_like(moments.absolute),
    )
    if targets is None:
        return Sample(empty)
    return Sample(empty, Targets(np.zeros_like(targets.cross), np.zeros_like(targets.sums), 0.0))
