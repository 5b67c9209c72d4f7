"""Turn what the passes found into reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunec.options.prune import InspectOptions, PruneOptions
from prunec.options.recipe import versions
from prunec.output.interface import Interface
from prunec.passes.coupling import Group
from prunec.planning.metering import Meter, per_index
from prunec.reports.data import (
    Check,
    GroupRow,
    InspectReport,
    LatencyRow,
    PinRow,
    PruneReport,
    RegionRow,
    Sizes,
    SourceRow,
    TargetRow,
    WrittenFormat,
)
from prunec.reports.front import curve_rows, front_rows
from prunec.runs.loading import Loaded

if TYPE_CHECKING:
    from prunec.verbs.pipeline import Pruned

__all__ = ["inspect_report", "prune_report", "sizes"]


def sizes(meter: Meter, counts: Mapping[str, int]) -> Sizes:
    """Costs of the model once `counts` are left."""
    workload = meter.workload
    return Sizes(
        params=meter("params", counts),
        blocks=meter("blocks", counts),
        bytes=meter("weights", counts),
        flops=meter("flops", counts),
        activation_bytes=meter.loaded.cost.activation_bytes({**meter.sizes, **counts}),
        kv_cache_bytes=meter("cache", counts),
        batch=workload.batch,
        length=workload.length,
        dtype=workload.dtype,
    )


def inspect_report(loaded: Loaded, options: InspectOptions) -> InspectReport:
    return InspectReport(
        model=options.model,
        source=str(loaded.source.path),
        sizes=sizes(Meter(loaded), {}),
        groups=tuple(group_rows(loaded, {})),
        pinned=tuple(pin_rows(loaded)),
        regions=tuple(region_rows(loaded)),
        unknown_ops=dict(loaded.coupling.without_rule),
        seconds={k: round(v, 3) for k, v in loaded.seconds.items()},
        warnings=loaded.warnings,
    )


def group_rows(loaded: Loaded, kept: Mapping[str, int], pruned: bool = False) -> Sequence[GroupRow]:
    costs = per_index(loaded)
    return [
        GroupRow(
            name=g.name,
            role=g.role,
            size=g.size,
            places=tuple((p.parameter, p.dim) for p in g.places),
            params_per_index=costs.get(g.name, 0),
            layer=g.name.rsplit("/", 1)[0] if "/" in g.name else "",
            kept=kept.get(g.name, g.size) if pruned else None,
        )
        for g in loaded.coupling.groups
    ]


def region_rows(loaded: Loaded) -> Sequence[RegionRow]:
    """What can go as a whole, each alone."""
    whole = Meter(loaded)("params", {})
    return [
        RegionRow(name, region.role, whole - Meter(loaded.without([region]))("params", {}))
        for name, region in loaded.regions.items()
    ]


def pin_rows(loaded: Loaded) -> Sequence[PinRow]:
    return [
        PinRow(
            axis=pin.axis,
            where=", ".join(map(str, pin.places)),
            reason=pin.reason + (f" ({pin.where})" if pin.where else ""),
        )
        for pin in loaded.coupling.pinned
    ]


def prune_report(
    pruned: Pruned,
    written: Sequence[WrittenFormat],
    checks: Sequence[Check],
    sources: Sequence[SourceRow] = (),
    latency: Sequence[LatencyRow] = (),
) -> PruneReport:
    loaded, options = pruned.loaded, pruned.options
    meter, dense = Meter(loaded, options.workload), Meter(loaded.whole, options.workload)
    counts = {name: s.count for name, s in pruned.compressed.selections.items()}
    notes: dict[str, object] = {"unrestored": pruned.compressed.unrestored, **pruned.notes}
    if loaded.clock is not None:
        notes["time"] = loaded.clock.describe(loaded, counts)
    if pruned.calibrated is not None:
        notes["calibration"] = pruned.calibrated.describe()
    return PruneReport(
        model=options.model,
        out=str(options.out) if options.out else None,
        method=options.method,
        restore=options.restore,
        calibration=options.calibration,
        layout=options.layout,
        dense=sizes(dense, {}),
        pruned=sizes(meter, counts),
        targets=tuple(_target_rows(dense, meter, options, counts)),
        groups=tuple(group_rows(loaded.whole, _kept(loaded, counts), pruned=True)),
        removed=tuple(region.name for region in loaded.removed),
        pinned=tuple(pin_rows(loaded.whole)),
        interface=Interface(loaded.whole.graph, pruned.selections).rows(pruned.rewritten.graph),
        formats=tuple(written),
        checks=tuple(checks),
        sources=tuple(sources),
        seconds=pruned.seconds,
        warnings=tuple(pruned.warnings),
        notes=notes,
        seed=options.seed,
        remote_code=options.trust_remote_code,
        versions=versions(),
        curves=curve_rows(pruned),
        front=front_rows(pruned, dense, meter, counts),
        latency=tuple(latency),
    )


def _kept(loaded: Loaded, counts: Mapping[str, int]) -> dict[str, int]:
    """How many indices stay of every group of the whole model: none of those that went."""
    left = loaded.coupling.by_name
    return {g.name: 0 for g in loaded.whole.coupling.groups if g.name not in left} | {**counts}


def _target_rows(
    dense: Meter, meter: Meter, options: PruneOptions, counts: Mapping[str, int]
) -> Sequence[TargetRow]:
    rows = []
    for target in options.targets:
        before, left = dense.measure(target, {}), meter.measure(target, counts)
        if target.timed and meter.loaded.clock is not None:
            race = meter.loaded.clock.races[-1]
            before, left = race.dense, race.left
        rows.append(
            TargetRow(target.text, before, target.limit(before), left, target.met(before, left))
        )
    return rows


def describe(groups: Sequence[Group]) -> str:
    """`30 neuron, 30 query_head`."""
    roles: dict[str, int] = {}
    for group in groups:
        roles[group.role] = roles.get(group.role, 0) + 1
    return ", ".join(f"{n} {role}" for role, n in roles.items())
