"""Choose the regions that go as a whole, and settle what a checkpoint of the rest looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prunec.ir.axes import atoms
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.prune import PruneOptions
from prunec.passes.couple import couple
from prunec.passes.depth import DEPTHS, Ends, angular, by_influence, greedy, overlapping
from prunec.passes.regions import Region, find_regions
from prunec.planning.depth_search import evolved
from prunec.planning.evidence import WINDOWS, spread
from prunec.planning.metering import Meter
from prunec.planning.widths import limits
from prunec.progress import Progress
from prunec.resume.state import State
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded

__all__ = [
    "Watched",
    "candidates",
    "choose_regions",
    "features",
    "held_back",
    "ordered_regions",
    "single_windows",
    "watch",
    "without",
]

SCREENED, FINALISTS = 2, 4
"""All candidates are measured on about so many windows, and so many of them on all."""


def candidates(loaded: Loaded, options: PruneOptions) -> tuple[Region, ...]:
    """The regions of the roles asked for that the layout and formats can do without.

    Raises PrunecError (exit 2) when there are none, or a checkpoint cannot be without them.
    """
    roles = options.depth_roles
    found = tuple(r for r in loaded.regions.values() if any(map(r.is_a, roles)))
    missing = [role for role in roles if not any(r.is_a(role) for r in found)]
    if missing:
        held = held_back(loaded, options)
        raise PrunecError(held, Exit.USAGE) if held else _none(loaded, missing)
    if "hf" in options.formats:
        paths = {r.name.partition("/")[0].rpartition(".")[0]: r for r in found}
        for region in paths.values():
            without(loaded, [region], options)
    return found


def held_back(loaded: Loaded, options: PruneOptions) -> tuple[Diagnostic, ...]:
    """What to say of regions of a file that would go, but for the caches that go with them."""
    if loaded.file is None or options.allow_interface_change:
        return ()
    from prunec.ir.dialects.onnx import ONNX

    found = find_regions(couple(loaded.file.graph, ONNX, caches=True))
    held = [r for r in found if r.caches and any(map(r.is_a, options.depth_roles))]
    if not held:
        return ()
    first = held[0]
    caches = ", ".join(before[1:] for before, _ in first.caches)
    return (
        Diagnostic(
            "P409",
            f"{len(held)} regions are kept, {first.name} among them: inputs and outputs of the file"
            f" hold their keys and values ({caches}), and stay as they are",
            "--groups",
            help="--allow-interface-change lets them go together",
        ),
    )


def _none(loaded: Loaded, roles: Sequence[str]) -> PrunecError:
    return PrunecError(
        [
            Diagnostic(
                "P407",
                f"the model has no {role} that can go: no residual addition shows a region with"
                " one entry and one exit of the same type",
                "--groups",
                help=f"`prunec inspect {loaded.source.name}` lists what can be pruned",
            )
            for role in roles
        ],
        Exit.USAGE,
    )


def without(loaded: Loaded, regions: Sequence[Region], options: PruneOptions) -> Loaded:
    """The model without regions, with the stock config that holds it where one is written.

    Raises PrunecError (exit 2) when a Hugging Face checkpoint is asked for that cannot hold it.
    """
    smaller = loaded.without(regions)
    if not regions or "hf" not in options.formats:
        return smaller
    from prunec.backends.hf_depth import Shallower, shallower

    layers = frozenset(_layers(loaded, regions))
    family = loaded.whole.family
    assert family is not None, "only models with a configuration are written as hf"
    before = loaded.whole.shallower
    found = shallower(family, layers, smaller.graph.parameters, before)
    if isinstance(found, Diagnostic):
        raise PrunecError([found], Exit.USAGE)
    assert isinstance(found, Shallower)
    return replace(smaller, shallower=found)


def _layers(loaded: Loaded, regions: Sequence[Region]) -> list[tuple[str, int]]:
    """The places in lists of modules of whole layers; sublayers that make up a layer are one."""
    names = {region.name for region in regions}
    whole = [
        region
        for region in loaded.regions.values()
        if region.role == "layer"
        and (region.name in names or (region.parts and names >= set(region.parts)))
    ]
    covered = {region.name for region in whole} | {n for region in whole for n in region.parts}
    loose = sorted(names - covered)
    if loose:
        raise fail(
            "P616",
            f"{loose[0].partition('/')[0]} cannot go alone: the stock class builds every layer"
            " with all its parts",
            where="--groups",
            help="use --groups layer, or write --format onnx or torchscript",
            exit_code=Exit.USAGE,
        )
    places = [region.name.partition("/")[0].rpartition(".") for region in whole]
    return [(path, int(number)) for path, _, number in places]


@dataclass(frozen=True)
class Watched:
    """A whole model and windows to judge its regions by; `losses` are those without some regions
    and each of some more, as far as they were measured. A search draws by `seed` and keeps what
    it knows in `state`."""

    loaded: Loaded
    windows: Sequence[Mapping[str, Any]]
    seed: int = 0
    state: State | None = None
    losses: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, float]] = field(
        default_factory=dict
    )

    def known(self, gone: Sequence[Region]) -> float | None:
        """The loss without some regions, where all windows were measured without them."""
        names = tuple(region.name for region in gone)
        rows = (found for (before, _), found in self.losses.items() if before == names[:-1])
        losses = (found.get(names[-1], math.inf) for found in rows) if names else iter(())
        return next((loss for loss in losses if loss < math.inf), None)


def watch(
    loaded: Loaded, calibrated: Calibrated, seed: int = 0, state: State | None = None
) -> Watched:
    """The model on some of the calibration data."""
    return Watched(loaded.whole, single_windows(calibrated), seed, state)


def choose_regions(
    watched: Watched, options: PruneOptions, progress: Progress
) -> tuple[Region, ...]:
    """The regions without which every target is met, in the order in which they go.

    Raises PrunecError (exit 3) when the model without all of them misses a target.
    """
    loaded = watched.loaded
    found = candidates(loaded, options)
    bounds = limits(Meter(loaded, options.workload), options.targets)

    def met(gone: Sequence[Region]) -> bool:
        return _met(loaded, options, gone)

    chosen = _ORDERS[options.depth](watched, found, met, progress)
    if chosen is not None:
        return tuple(chosen)
    gone = [r for r in found if r.role == "layer"] or list(found)
    meter, dense = (Meter(m, options.workload) for m in (loaded.without(gone), loaded.whole))
    raise PrunecError(
        [
            Diagnostic(
                "P403",
                f"target {t.text} cannot be met: without every {gone[0].role}"
                f" {t.show(meter.measure(t, {}))} of {t.show(dense.measure(t, {}))} {t.measure}"
                " remain",
                "--target",
                help="ask for more, or add roles to --groups",
            )
            for t, limit in bounds
            if meter.measure(t, {}) > limit
        ],
        Exit.NOT_MET,
    )


def ordered_regions(
    watched: Watched, options: PruneOptions, progress: Progress
) -> tuple[Region, ...]:
    """Regions in the order in which they go, as many as it takes to meet every target, or all but
    the last one."""
    loaded = watched.loaded
    found = candidates(loaded, options)

    def met(gone: Sequence[Region]) -> bool:
        left = [r for r in found if not overlapping(r, gone)]
        return len(left) < 2 or _met(loaded, options, gone)

    chosen = _ORDERS[options.depth](watched, found, met, progress) or ()
    if options.depth == EVOPRESS:  # a set and no order: the one that costs least goes first
        gone = set(chosen)
        chosen = _sleb(watched, chosen, lambda some: gone.issubset(some), progress) or ()
    return tuple(chosen)


def _met(loaded: Loaded, options: PruneOptions, gone: Sequence[Region]) -> bool:
    """Whether every target holds without these regions."""
    meter, dense = (Meter(m, options.workload) for m in (loaded.without(gone), loaded.whole))
    return all(meter.measure(t, {}) <= t.limit(dense.measure(t, {})) for t in options.targets)


def single_windows(calibrated: Calibrated, most: int = WINDOWS) -> list[dict[str, Any]]:
    """At most so many windows of the calibration data, each on its own."""
    batches = spread(calibrated.batches, most)
    return [
        {name: array[i : i + 1] for name, array in batch.items()}
        for batch in batches
        for i in range(len(next(iter(batch.values()))))
    ]


Met = Callable[[Sequence[Region]], bool]


def _sleb(
    watched: Watched, found: Sequence[Region], met: Met, progress: Progress
) -> list[Region] | None:
    def losses(gone: Sequence[Region], left: Sequence[Region]) -> Mapping[str, float]:
        asked = (tuple(r.name for r in gone), tuple(r.name for r in left))
        if asked not in watched.losses:
            watched.losses[asked] = _losses(watched, gone, left, progress)
        return watched.losses[asked]

    return greedy(found, losses, met)


def _losses(
    watched: Watched, gone: Sequence[Region], left: Sequence[Region], progress: Progress
) -> dict[str, float]:
    """The loss without what is gone and each other region; infinite for those that are not among
    the `FINALISTS` on a few of the windows."""
    loaded, windows = watched.loaded, watched.windows

    def measured(what: str, some: Sequence[Any], rows: Sequence[Region]) -> dict[str, float]:
        with progress.step(f"{what} region {len(gone) + 1}", len(rows) * len(some)) as advance:
            return loaded.engine.losses(loaded, some, gone, rows, lambda: advance(1))

    few = windows[:: max(1, len(windows) // SCREENED)]
    last, others = left, {region.name: math.inf for region in left}
    if len(few) < len(windows) and len(left) > FINALISTS:
        first = measured("Screening", few, left)
        last = sorted(left, key=lambda region: first[region.name])[:FINALISTS]
    return others | measured("Choosing", windows, last)


def _shortgpt(
    watched: Watched, found: Sequence[Region], met: Met, progress: Progress
) -> list[Region] | None:
    return by_influence(found, _ends(watched, found, progress).influence, met)


def _angular(
    watched: Watched, found: Sequence[Region], met: Met, progress: Progress
) -> list[Region] | None:
    return angular(found, _ends(watched, found, progress).vectors, met)


def _evopress(
    watched: Watched, found: Sequence[Region], met: Met, progress: Progress
) -> list[Region] | None:
    loaded, windows = watched.loaded, watched.windows
    return evolved(loaded, windows, found, met, watched.seed, watched.state, progress)


def _ends(watched: Watched, found: Sequence[Region], progress: Progress) -> Ends:
    loaded, windows = watched.loaded, watched.windows
    with progress.step("Looking at the stream", len(found) + 1) as advance:
        return loaded.engine.ends(
            loaded, windows, found, lambda value: features(loaded, value), lambda: advance(1)
        )


def features(loaded: Loaded, value: str) -> int:
    """The dimension of a value that weights know: channels of images, features of tokens."""
    coupling = loaded.coupling
    known = {group.name for group in coupling.groups} | {pin.axis for pin in coupling.pinned}
    axes = coupling.graph.types[value].axes
    held = [i for i, axis in enumerate(axes) if any(a.name in known for a in atoms(axis))]
    return held[-1] if held else len(axes) - 1


EVOPRESS = "evopress"
_ORDERS = {"sleb": _sleb, "shortgpt": _shortgpt, "angular": _angular, EVOPRESS: _evopress}
assert tuple(_ORDERS) == DEPTHS, "an order for each name"
