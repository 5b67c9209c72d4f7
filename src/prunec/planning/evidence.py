"""Gather what an allocator needs to know: one pass over a part of the calibration data.

At most `WINDOWS` windows of the calibration data are looked at, evenly spread over it (sources
are interleaved, so all of them are among it), on the dense program: how many indices each group
keeps is a coarser question than which, and the pass over all the data comes afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from prunec.backends.heap import BUDGET
from prunec.passes.allocators import Allocator, Budget, Counts, Evidence
from prunec.passes.compress import Site, score_all, sites
from prunec.passes.coupling import Consumer, Group
from prunec.passes.profile import Seen, Stream, Weights
from prunec.passes.routing import EXPERTS, expert_scores
from prunec.passes.score import Criterion, Ranked, Scores
from prunec.progress import Progress
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded, Overlaid

__all__ = ["PROBED", "WINDOWS", "allocate", "gather", "in_order", "share_out"]

WINDOWS = 16
"""Windows that scores, curves and influences are measured on, at most."""

PROBED = 4
"""Windows that layers are weighed and whole plans compared on, at most."""

EXPERT, WEIGHTS = "expert", EXPERTS[-1]
MEASURED = 4
"""Counts at which it is measured what fewer experts of one layer cost, at most."""

WORST = 100.0
"""Nats that stand for a divergence which is not finite."""

SCORED = frozenset({"scores", "curves", "divergence"})

Inputs = Mapping[str, Any]


def allocate(
    allocator: Allocator,
    loaded: Loaded,
    groups: Sequence[Group],
    budget: Budget,
    criterion: Criterion,
    calibrated: Calibrated | None,
    progress: Progress,
) -> Counts:
    """How many indices of each group stay, with what the allocator needs gathered before."""
    ordered = in_order(loaded, groups)
    evidence = gather(loaded, ordered, criterion, calibrated, allocator.needs, progress)
    return share_out(allocator, ordered, budget, evidence, progress)


def in_order(loaded: Loaded, groups: Sequence[Group]) -> list[Group]:
    """Groups as allocators want them: in the order of the program."""
    return [g for site in sites(loaded.coupling, groups) for g in site.groups]


def share_out(
    allocator: Allocator,
    ordered: Sequence[Group],
    budget: Budget,
    evidence: Evidence,
    progress: Progress,
) -> Counts:
    """How many indices of each group stay, by what was gathered."""
    if evidence.divergence is None:
        return allocator.allocate(ordered, budget, evidence)
    with _told(evidence, allocator, progress) as told:
        return allocator.allocate(ordered, budget, told)


@contextmanager
def _told(evidence: Evidence, allocator: Allocator, progress: Progress) -> Iterator[Evidence]:
    """Evidence whose divergence tells of each time that it is asked."""
    measure = evidence.divergence
    assert measure is not None
    with progress.step("Searching for widths", allocator.evaluations) as advance:

        def divergence(plans: Sequence[Mapping[str, int]]) -> list[float]:
            found = measure(plans)
            advance(len(plans))
            return found

        yield replace(evidence, divergence=divergence)


def gather(
    loaded: Loaded,
    groups: Sequence[Group],
    criterion: Criterion,
    calibrated: Calibrated | None,
    needs: frozenset[str],
    progress: Progress,
    experts: str = WEIGHTS,
) -> Evidence:
    """The fields of `Evidence` named in `needs`; those not asked for stay empty. Experts are scored
    as `experts` says; what fewer of them cost is measured on the program itself.

    Without calibration data only a criterion of the weights alone can be asked for, and neither
    influence, weight nor divergence. A criterion of slopes must have seen them. Raises PrunecError
    when scores, gradients or what calibration meets are not finite.
    """
    batches = spread(calibrated.batches, WINDOWS) if calibrated is not None else ()
    observed = needs & {"influence", "weight", "divergence"}
    assert batches or not observed, "these are measured on calibration data"
    memory = calibrated.budget if calibrated is not None else BUDGET
    ranked, influence = _observed(loaded, groups, criterion, batches, needs, memory, progress)
    scores = {name: found.scores for name, found in ranked.items()}
    curves = {name: found.curve for name, found in ranked.items() if found.curve is not None}
    few = spread(batches, PROBED)
    chosen = [group for group in groups if group.role == EXPERT] if batches else []
    if chosen and scores and experts != WEIGHTS:
        routed = loaded.engine.routed(loaded, batches, chosen)
        scores |= {name: expert_scores(experts, found) for name, found in routed.items()}
    if chosen and "curves" in needs:
        curves |= _expert_curves(loaded, chosen, scores, few, progress)
    weight = _weights(loaded, groups, batches, memory, progress) if "weight" in needs else {}
    divergence = None
    if "divergence" in needs:
        divergence = loaded.engine.divergence(loaded, groups, scores, few)
    return Evidence(scores, curves, influence, weight, divergence)


def _expert_curves(
    loaded: Loaded,
    groups: Sequence[Group],
    scores: Mapping[str, Scores],
    windows: Sequence[Inputs],
    progress: Progress,
) -> dict[str, Scores]:
    """The divergence from the dense program with the best experts of one layer alone, at a few
    counts and by interpolation in between; no count costs less than a larger one."""
    full = {group.name: group.size for group in groups}
    divergence = loaded.engine.divergence(loaded, groups, scores, windows)
    curves = {}
    with progress.step("Measuring experts", len(groups)) as advance:
        for group in groups:
            steps = np.linspace(
                group.least, group.size, min(MEASURED, group.size - group.least) + 1
            )
            counts = sorted({round(step) for step in steps.tolist()})
            found = divergence([{**full, group.name: count} for count in counts[:-1]])
            rising = np.maximum.accumulate([0.0, *np.minimum(found, WORST)[::-1]])[::-1]
            curves[group.name] = np.interp(np.arange(group.size + 1), counts, rising)
            advance(1)
    return curves


def spread(batches: Sequence[Inputs], windows: int) -> tuple[Inputs, ...]:
    """At most so many windows, evenly spread, in batches as wide as they were."""
    places = [(i, j) for i, batch in enumerate(batches) for j in range(_width(batch))]
    if len(places) <= windows:
        return tuple(batches)
    chosen = [places[k * len(places) // windows] for k in range(windows)]
    found: dict[int, list[int]] = {}
    for i, j in chosen:
        found.setdefault(i, []).append(j)
    return tuple({n: a[rows] for n, a in batches[i].items()} for i, rows in found.items())


def _width(batch: Inputs) -> int:
    return len(next(iter(batch.values())))


def _observed(
    loaded: Loaded,
    groups: Sequence[Group],
    criterion: Criterion,
    batches: Sequence[Inputs],
    needs: frozenset[str],
    memory: int,
    progress: Progress,
) -> tuple[dict[str, Ranked], dict[str, float]]:
    """Scores and curves, and influences, from one pass of a stream."""
    if not needs & (SCORED | {"influence"}):
        return {}, {}
    found = sites(loaded.coupling, groups)
    weights: Weights = loaded.weights if batches else Overlaid(loaded.weights, loaded.stored)
    with (
        progress.step("Scoring", len(found)) as advance,
        loaded.engine.stream(loaded, batches, memory) as stream,
    ):
        watched = _Influence(stream, "influence" in needs)
        ranked: dict[str, Ranked] = {}
        if needs & SCORED:
            ranked = score_all(
                loaded.coupling, groups, criterion, weights, watched if batches else None,
                lambda: advance(1),
            )  # fmt: skip
        else:
            for site in found:
                if site.consumers:
                    watched.observe(site.consumers)
                advance(1)
    return ranked, watched.by_group(found)


class _Influence:
    """A stream that also remembers how each layer changes the residual stream."""

    def __init__(self, stream: Stream, wanted: bool) -> None:
        self.stream, self.wanted = stream, wanted
        self.found: dict[Consumer, float] = {}

    def observe(
        self, consumers: Sequence[Consumer], needs: frozenset[str] = frozenset()
    ) -> list[Seen]:
        seen = self.stream.observe(consumers, needs | {"influence"} if self.wanted else needs)
        for consumer, found in zip(consumers, seen, strict=True):
            if found.influence is not None:
                self.found[consumer] = found.influence
        return seen

    @property
    def replaced(self) -> Weights:
        return self.stream.replaced

    def replace(self, weights: Weights) -> None:
        self.stream.replace(weights)

    def by_group(self, found: Sequence[Site]) -> dict[str, float]:
        """The mean over the layers of each group's site."""
        influence: dict[str, float] = {}
        for site in found:
            known = [self.found[c] for c in site.consumers if c in self.found]
            if known:
                influence |= dict.fromkeys((g.name for g in site.groups), sum(known) / len(known))
        return influence


def _weights(
    loaded: Loaded,
    groups: Sequence[Group],
    batches: Sequence[Inputs],
    memory: int,
    progress: Progress,
) -> dict[str, float]:
    """What the loss feels of an error in the layers that consume a group, mean over them.

    A curve adds the errors of all its consumers, which this takes to count the same.
    """
    ops = dict.fromkeys(c.op for group in groups for c in group.consumers)
    with progress.step("Weighing layers", 1) as told:
        felt = loaded.engine.felt(loaded, batches, memory, list(ops), told)
    return {
        group.name: sum(felt[c.op] for c in group.consumers) / len(group.consumers)
        for group in groups
        if group.consumers
    }
