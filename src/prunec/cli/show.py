"""Reports as tables for people."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from prunec.cli.console import Console
from prunec.options.target import TIMED
from prunec.options.workload import one_run
from prunec.reports.data import (
    Check,
    GroupRow,
    InspectReport,
    PinRow,
    PruneReport,
    RegionRow,
    Sizes,
    SourceRow,
    TargetRow,
    WrittenFormat,
)

__all__ = [
    "NUMBERED",
    "alike",
    "amount",
    "in_unit",
    "kind_of_pin",
    "measured_on",
    "patterns",
    "perplexity",
    "show_checks",
    "show_inspect",
    "show_prune",
    "show_sources",
    "show_written",
]

MOST_PLACES = 4
MOST_REASONS = 20

SIZE_NAMES = {
    "params": "parameters",
    "blocks": "parameters in blocks",
    "bytes": "bytes",
    "flops": "FLOPs",
    "activation_bytes": "activation bytes",
    "kv_cache_bytes": "KV-cache bytes",
}

QUOTED = re.compile(r"\s*\([%@][^()]*\)$")
NUMBERED = re.compile(r"(?<=\.)\d+(?=\.)")


def amount(value: float) -> str:
    """Three or four digits that count and a suffix: 134.5M, 1.20G; below a thousand as it is."""
    for suffix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"


def show_inspect(report: InspectReport, console: Console) -> None:
    """Sizes, groups by role, and what is pinned and why, each summarised."""
    console.line(f"{report.model}   ({report.source})")
    sizes = report.sizes
    title = f"costs at batch {sizes.batch}, length {sizes.length}"
    console.table(title, ("cost", ">dense"), [(n, amount(v)) for n, v in _sizes(sizes)])
    free = [group for group in report.groups if not group.pinned]
    rows = [_role_row(rows) for rows in alike(free)]
    columns = ("role", ">size", ">groups", ">layers", ">params per index", "places")
    console.table("prunable groups", columns, rows)
    _show_regions(report.regions, console)
    _show_pins(report, console)
    if report.unknown_ops:
        ops = sorted(report.unknown_ops.items())
        console.table("operations without a rule (they pin what they touch)", ("op", ">uses"), ops)
    if report.seconds:
        console.line("   ".join(f"{name} {s:.2f} s" for name, s in report.seconds.items()))


def show_prune(report: PruneReport, console: Console) -> None:
    """Dense and pruned side by side, targets, checks and what was written."""
    how = f"method {report.method}, restore {report.restore}, calibration {report.calibration}"
    console.line(f"{report.model}   ({how})")
    pruned = dict(_sizes(report.pruned))
    rows = [
        (n, amount(d), amount(pruned[n]), _share(pruned[n], d)) for n, d in _sizes(report.dense)
    ]
    console.table("cost", ("", ">dense", ">pruned", ">left"), rows)
    if report.removed:
        names = ", ".join(name.partition("/")[0] for name in report.removed)
        console.line(f"removed as a whole: {names}")
    cut = [g for g in report.groups if g.kept is not None and 0 < g.kept < g.size]
    roles = [_kept_row(groups) for groups in _by_role(cut)]
    console.table("groups", ("role", ">groups", ">dense", ">kept"), roles)
    if report.targets:
        targets = [
            (t.text, in_unit(t, t.limit), in_unit(t, t.left), "met" if t.met else "NOT MET")
            for t in report.targets
        ]
        console.table("targets", ("target", ">limit", ">left", ""), targets)
    if "time" in report.notes:
        console.line(timed(report.notes["time"]))
    _show_rounds(report, console)
    show_sources(report.sources, console)
    _show_interface(report, console)
    show_checks(report.checks, console)
    show_written(report.out, report.formats, console)


def _show_interface(report: PruneReport, console: Console) -> None:
    """Inputs and outputs that have other shapes now."""
    rows = [(row.kind, row.name, _shape(row.dense), _shape(row.pruned)) for row in report.interface]
    if rows:
        console.table("changed interface", ("", "name", "dense", "pruned"), rows)


def _shape(dims: Sequence[int | str] | None) -> str:
    return "removed" if dims is None else f"[{', '.join(map(str, dims))}]"


def in_unit(target: TargetRow, value: float) -> str:
    """What a target measures, in its unit."""
    timed = target.text.partition("=")[0] in TIMED
    return f"{1e3 * value:.4g} ms" if timed else amount(value)


def timed(note: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    run = one_run(note["phase"], note["batch"], note["length"])
    return (
        f"measured in turns in {note['runtime']} {note['version']}, {run}:"
        f" {1e3 * note['dense']:.4g} ms dense, {1e3 * note['pruned']:.4g} ms pruned"
        f" ({note['speedup']:.3g}x); the times of its blocks add up to"
        f" {1e3 * note['predicted']:.4g} ms"
    )


def _show_rounds(report: PruneReport, console: Console) -> None:
    """What each round left, and what its recovery gave back."""
    rows = [
        (
            number,
            ", ".join(amount(left) for left in done["left"].values()),
            f"{done['before']:.4f}",
            f"{done['after']:.4f}",
            done["steps"],
            amount(done["tokens"]),
        )
        for number, done in enumerate(report.notes.get("rounds", ()), 1)
    ]
    if rows:
        columns = (">round", ">left", ">held-out loss", ">recovered", ">steps", ">tokens")
        console.table("rounds", columns, rows)


def _show_regions(regions: Sequence[RegionRow], console: Console) -> None:
    """What can go as a whole, by role and by the parameters that go with it."""
    alike_: dict[tuple[str, int], list[str]] = {}
    for region in regions:
        alike_.setdefault((region.role, region.params), []).append(region.name)
    rows = [
        (role, len(names), amount(params), ", ".join(_starred(names)[:MOST_PLACES]))
        for (role, params), names in sorted(alike_.items(), reverse=True)
    ]
    if rows:
        console.table("removable as a whole", ("role", ">count", ">params each", "places"), rows)


def _starred(names: Iterable[str]) -> list[str]:
    """Modules with their numbers left out, each once."""
    paths = (name.partition("/")[0].split(".") for name in names)
    return list(dict.fromkeys(".".join("*" if p.isdigit() else p for p in path) for path in paths))


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """Verifications, when there were any."""
    if not checks:
        return
    rows = [
        (c.name, f"{c.difference:.1e}", f"{c.allowed:.1e}", "ok" if c.passed else "FAILED")
        for c in checks
    ]
    console.table("verification", ("check", ">difference", ">allowed", ""), rows)


def show_sources(sources: Sequence[SourceRow], console: Console) -> None:
    """What pruning does to each source of calibration data."""
    if not sources:
        return
    if sources[0].metric == "cross_entropy":
        title = "loss by source (nats per token)"
        columns: tuple[str, ...] = (">dense", ">pruned", ">change", ">perplexity")
    else:
        title = "change of the outputs by source"
        columns = (">relative error",)
    rows = [
        (s.name, f"{100 * s.weight:.3g}%", s.windows, *_effect(s), measured_on(s)) for s in sources
    ]
    console.table(title, ("source", ">weight", ">windows", *columns, "measured on"), rows)


def _effect(source: SourceRow) -> tuple[str, ...]:
    if source.metric != "cross_entropy":
        return (f"{source.pruned:.3g}",)
    change = f"{source.pruned - source.dense:+.3f}"
    confusions = f"{perplexity(source.dense):.4g} to {perplexity(source.pruned):.4g}"
    return f"{source.dense:.3f}", f"{source.pruned:.3f}", change, confusions


def perplexity(loss: float) -> float:
    """The perplexity that a cross-entropy in nats stands for."""
    return math.exp(loss) if loss < 700 else math.inf


def measured_on(source: SourceRow) -> str:
    """`4 windows held out`, or that there were none to hold out."""
    windows = "1 window" if source.measured == 1 else f"{source.measured} windows"
    return f"{windows} {'held out' if source.held_out else 'calibrated on'}"


def show_written(out: str | None, formats: Sequence[WrittenFormat], console: Console) -> None:
    """The formats in OUT, or that there is none."""
    if out is None:
        console.line("dry run: nothing was written")
        return
    written = [(f.name, f.path, amount(f.bytes)) for f in formats]
    console.table(f"written to {out}", ("format", "path", ">bytes"), written)


def _show_pins(report: InspectReport, console: Console) -> None:
    pins = [
        *report.pinned,
        *(PinRow(g.name, _place(g), g.pinned) for g in report.groups if g.pinned),
    ]
    if not pins:
        return
    counts = Counter(kind_of_pin(pin.reason) for pin in pins)
    examples = {kind_of_pin(pin.reason): pin for pin in reversed(pins)}
    rows = [
        (reason, count, f"{examples[reason].axis} at {_first(examples[reason].where)}")
        for reason, count in counts.most_common(MOST_REASONS)
    ]
    console.table("pinned", ("reason", ">axes", "for example"), rows)
    if len(counts) > MOST_REASONS:
        console.line(f"and {len(counts) - MOST_REASONS} more reasons; --json lists everything")


def _sizes(sizes: Sizes) -> list[tuple[str, int]]:
    """The costs that are known, with names for people."""
    known = [(name, getattr(sizes, field)) for field, name in SIZE_NAMES.items()]
    return [(name, value) for name, value in known if value]


def alike(groups: Iterable[GroupRow]) -> list[list[GroupRow]]:
    """Groups that differ by nothing but their layer."""

    def likeness(group: GroupRow) -> tuple[str, int, str]:
        return (group.role, group.size, " ".join(patterns(group)))

    ordered = sorted(groups, key=likeness)
    return [list(rows) for _, rows in groupby(ordered, key=likeness)]


def _by_role(groups: Iterable[GroupRow]) -> list[list[GroupRow]]:
    ordered = sorted(groups, key=lambda group: group.role)
    return [list(rows) for _, rows in groupby(ordered, key=lambda group: group.role)]


def _role_row(groups: Sequence[GroupRow]) -> tuple[object, ...]:
    first = groups[0]
    layers = {group.layer for group in groups if group.layer}
    places = patterns(first)
    shown = ", ".join(places[:MOST_PLACES])
    more = f", ... ({len(places)} in all)" if len(places) > MOST_PLACES else ""
    return (
        first.role or "-",
        first.size,
        len(groups),
        len(layers) or "-",
        amount(first.params_per_index),
        shown + more,
    )


def _kept_row(groups: Sequence[GroupRow]) -> tuple[object, ...]:
    kept = [group.kept for group in groups if group.kept is not None]
    return (groups[0].role or "-", len(groups), _span([g.size for g in groups]), _span(kept))


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def patterns(group: GroupRow) -> list[str]:
    """Places with layer numbers left out, each once: `layers.*.mlp.up_proj.weight[0]`."""
    return list(dict.fromkeys(f"{NUMBERED.sub('*', name)}[{dim}]" for name, dim in group.places))


def kind_of_pin(reason: str) -> str:
    """A reason without the operation it quotes and the layer it names, to count alike ones."""
    return NUMBERED.sub("*", QUOTED.sub("", reason))


def _first(where: str) -> str:
    """The first of several places, and how many more there are."""
    first, *others = where.split(", ")
    return f"{first} and {len(others)} more" if others else first


def _place(group: GroupRow) -> str:
    return f"{group.places[0][0]}[{group.places[0][1]}]" if group.places else group.layer


def _share(left: float, dense: float) -> str:
    return f"{100 * left / dense:.1f}%" if dense else "-"
