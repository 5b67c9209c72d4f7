"""What `prunec sensitivity` removes, one thing at a time, and how each removal is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.backends.torch_first_order import Gate
from prunec.backends.torch_variants import Change, Masked, Smaller, Variant, bypass
from prunec.ir.axes import Selection, positions
from prunec.passes.compress import select
from prunec.passes.coupling import Consumer, Group
from prunec.passes.criteria import CRITERIA
from prunec.passes.regions import DEPTH_ROLES, Region
from prunec.passes.routing import routes, shares
from prunec.planning.depth import features
from prunec.planning.evidence import gather
from prunec.planning.metering import Meter
from prunec.progress import Progress
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded

__all__ = ["RATIOS", "ROLES", "Removal", "SensitivityRow", "first_use", "removable", "removals"]

WIDTHS, EXPERT = ("neuron", "channel"), "expert"
ROLES = ("query_head", "kv_head", *WIDTHS, EXPERT, *DEPTH_ROLES)
"""What is removed by default, where the model has it."""

RATIOS = (0.75, 0.5, 0.25)
"""Of widths not every index is removed alone: these shares stay, those of highest score."""

SCORE = "wanda"


@dataclass(frozen=True)
class SensitivityRow:
    """One removal: of index `index` of a group, of all but the share `kept`, or of a region.

    `params` go with it. `loss` (nats a token), `perplexity` and `error` (relative squared error of
    the outputs) are increases over the dense model, `divergence` the mean KL divergence from it;
    what does not apply is NaN. `estimate` is the first-order one.
    """

    name: str
    role: str
    layer: str
    index: int | None
    kept: float | None
    params: int
    loss: float = float("nan")
    perplexity: float = float("nan")
    divergence: float = float("nan")
    error: float = float("nan")
    estimate: float = float("nan")


@dataclass(frozen=True)
class Removal:
    """A row to fill, how it is measured, and how it is estimated."""

    row: SensitivityRow
    variant: Variant
    gates: tuple[Gate, ...]


def removals(
    loaded: Loaded,
    groups: Sequence[Group],
    regions: Sequence[Region],
    calibrated: Calibrated,
    skipped: dict[str, str],
    progress: Progress,
) -> Iterator[Removal]:
    """Each index of the groups, each width, each region; what cannot be measured is noted in
    `skipped` with the reason."""
    wide = [g for g in groups if g.role in WIDTHS]
    scores: Mapping[str, Any] = {}
    if wide:
        criterion, needs = CRITERIA[SCORE](), frozenset({"scores"})
        scores = gather(loaded, wide, criterion, calibrated, needs, progress).scores
    for group in groups:
        if group.role == EXPERT:
            yield from _experts(loaded, group)
        elif len(group.consumers) != 1:
            skipped[group.name] = f"{len(group.consumers)} layers read it, not one"
        elif group.role in WIDTHS:
            yield from _widths(loaded, group, scores[group.name])
        else:
            yield from _indices(loaded, group)
    yield from (_region(loaded, region) for region in regions)


def removable(loaded: Loaded, group: Group) -> bool:
    """Whether one index of a group can go and the rest stay."""
    if group.role == EXPERT:
        return group.size > group.least and routes(loaded.coupling, group)
    return group.size > 1 and bool(group.consumers)


def first_use(loaded: Loaded, group: Group) -> int:
    """The first operation that reads any of a group."""
    uses = loaded.graph.uses
    return min(min(uses[f"@{p.parameter}"]) for p in group.places if f"@{p.parameter}" in uses)


def _experts(loaded: Loaded, group: Group) -> Iterator[Removal]:
    """Every expert alone: its tokens go to those that stay."""
    start, weighed = first_use(loaded, group), shares(loaded.coupling, group)
    params = _freed(loaded, {group.name: group.size - 1})
    layer = group.name.rpartition("/")[0]
    for index in range(group.size):
        keep = Selection(np.delete(np.arange(group.size), index))
        name = f"{group.name}[{index}]"
        smaller = Smaller(loaded.coupling, {group.name: keep})
        row = SensitivityRow(name, group.role, layer, index, None, params)
        gates = () if weighed is None else (Gate(*weighed, np.array([index])),)
        yield Removal(row, Variant(name, start, smaller=smaller), gates)


def _indices(loaded: Loaded, group: Group) -> Iterator[Removal]:
    """Every index alone; under every index of its parent, where it has one."""
    (consumer,) = group.consumers
    axis = loaded.graph.types[consumer.input].axes[consumer.input_dim]
    own = positions(axis, group.name)[0]
    outer = np.zeros_like(own) if group.parent is None else positions(axis, group.parent)[0]
    size = 1 if group.parent is None else loaded.coupling.by_name[group.parent].size
    params = _freed(loaded, {group.name: group.size - 1}) // size
    for number in range(size * group.size):
        parent, index = divmod(number, group.size)
        gone = np.flatnonzero((own == index) & (outer == parent))
        yield _masked(loaded, group, consumer, gone, f"{group.name}[{number}]", params, number)


def _widths(loaded: Loaded, group: Group, scores: Any) -> Iterator[Removal]:
    """Only the share of highest score stays."""
    (consumer,) = group.consumers
    axis = loaded.graph.types[consumer.input].axes[consumer.input_dim]
    for ratio in RATIOS:
        count = max(1, round(ratio * group.size))
        keep = select(scores, count, group).keep
        gone = np.flatnonzero(~np.isin(positions(axis, group.name)[0], keep))
        params = _freed(loaded, {group.name: count})
        name = f"{group.name}@{ratio:.0%}"
        yield _masked(loaded, group, consumer, gone, name, params, kept=ratio)


def _masked(
    loaded: Loaded,
    group: Group,
    consumer: Consumer,
    gone: Any,
    name: str,
    params: int,
    index: int | None = None,
    kept: float | None = None,
) -> Removal:
    change: Change = Masked(consumer.input, consumer.input_dim, gone)
    start = loaded.graph.producers[consumer.op]
    row = SensitivityRow(name, group.role, group.name.rpartition("/")[0], index, kept, params)
    gate = Gate(consumer.input, consumer.input_dim, gone)
    return Removal(row, Variant(name, start, (change,)), (gate,))


def _region(loaded: Loaded, region: Region) -> Removal:
    dim = features(loaded, region.exit)
    smaller = Meter(loaded.without([region]))("params", {})
    row = SensitivityRow(
        region.name,
        region.role,
        region.name.rpartition("/")[0],
        None,
        None,
        Meter(loaded)("params", {}) - smaller,
    )
    gates = tuple(Gate(branch, dim) for branch in region.branches)
    return Removal(row, bypass(loaded.graph, region), gates)


def _freed(loaded: Loaded, counts: Mapping[str, int]) -> int:
    meter: Callable[[str, Mapping[str, int]], int] = Meter(loaded)
    return meter("params", {}) - meter("params", counts)
