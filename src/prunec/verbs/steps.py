"""Reach the target in steps: profile, plan, refit and rewrite, then begin again with the result.

Every step is a run of its own over the program that the one before has left, typed anew, so that
what it measures is the smaller model. All of them together are told as one: by indices of the
dense model, its sizes and its losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunec.backends.hf_fit import UniformConfig
from prunec.ir.dialects.aten import ATEN
from prunec.options.prune import PruneOptions
from prunec.options.target import Target
from prunec.passes.compress import Compressed
from prunec.passes.cost import Cost
from prunec.passes.couple import couple
from prunec.passes.dce import dce
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.planning.layout import settle_layout
from prunec.planning.metering import Meter
from prunec.planning.plans import selections_of
from prunec.progress import Progress
from prunec.resume.scratch import Scratch
from prunec.resume.state import State
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded, SlicedWeights

if TYPE_CHECKING:
    from prunec.verbs.pipeline import Pruned

__all__ = ["prune_in_steps"]

Kept = Mapping[str, Mapping[int, npt.NDArray[Any]]]


def prune_in_steps(
    options: PruneOptions,
    progress: Progress,
    state: State | None,
    loaded: Loaded,
    given: Calibrated | None,
) -> Pruned:
    """What `options.steps` runs make of a model, one after the other."""
    from prunec.verbs.pipeline import run_passes  # which calls this very function

    loaded = _clocked(loaded, options, progress)
    done: list[Pruned] = []
    for number in range(options.steps):
        share = (number + 1) / options.steps
        targets = tuple(_asked(target, share, options, loaded, done) for target in options.targets)
        if all(target.value >= 1 for target in targets):
            continue  # coarse counts went so far already
        told = ", ".join(target.text for target in targets)
        progress.note(f"step {number + 1} of {options.steps}: {told} of what is there")
        step = replace(options, targets=targets, steps=1)
        own = None if state is None else State(state.folder / f"step-{number}")
        current = _smaller(done[-1]) if done else replace(loaded, clock=None)
        current = replace(current, workers=loaded.workers)
        done.append(run_passes(step, progress, own, current, given))
        given = given or done[0].calibrated
    return _together(options, loaded, done)


def _clocked(loaded: Loaded, options: PruneOptions, progress: Progress) -> Loaded:
    """The dense model, with a clock where time is asked for."""
    if not any(target.timed for target in options.targets):
        return loaded
    from prunec.timing.clock import start_clock

    return replace(loaded, clock=start_clock(loaded, options, progress))


def _asked(
    target: Target, share: float, options: PruneOptions, loaded: Loaded, done: Sequence[Pruned]
) -> Target:
    """The target of a step after which so much of the way is done, as a share of what is there."""
    dense = Meter(loaded, options.workload).measure(target, {})
    limit = dense + share * (target.limit(dense) - dense)
    left = _left(target, done[-1], options) if done else dense
    metric = "latency" if target.timed else target.metric
    return Target(metric, "fraction", limit / left, f"{metric}={100 * limit / left:.4g}%")


def _left(target: Target, pruned: Pruned, options: PruneOptions) -> float:
    """What a step has left."""
    if not target.timed:
        counts = {name: s.count for name, s in pruned.selections.items()}
        return Meter(pruned.loaded, options.workload).measure(target, counts)
    assert pruned.loaded.clock is not None, "a run with a target in time has a clock"
    return pruned.loaded.clock.races[-1].left


def _smaller(pruned: Pruned) -> Loaded:
    """What a step has left, as a model of its own. Parameters and modules keep their names."""
    loaded, layout = pruned.loaded, pruned.layout
    coupling = couple(pruned.rewritten.graph, ATEN)
    config, shallower = loaded.config, loaded.shallower
    if isinstance(layout, UniformConfig):
        if shallower is None:
            config = layout.config
        else:
            shallower = replace(shallower, config=layout.config)
    return replace(
        loaded,
        config=config,
        shallower=shallower,
        removed=(),
        before=None,
        step=_step(pruned),
        coupling=coupling,
        cost=Cost(coupling),
        stored=SlicedWeights(loaded.stored, pruned.rewritten.kept),
        weights=pruned.weights,
        seconds={},
        warnings=(),
        clock=None,
    )


def _step(pruned: Pruned) -> Loaded | None:
    if pruned.loaded.clock is None:
        return None
    from prunec.timing.step import smaller_step

    return smaller_step(pruned.loaded.clock, pruned)


def _together(options: PruneOptions, loaded: Loaded, done: Sequence[Pruned]) -> Pruned:
    """All steps as one run over the dense model."""
    from prunec.verbs.pipeline import Pruned

    last = done[-1]
    loaded = _shallow(loaded, options, done)
    kept: Kept = {}
    for pruned in done:
        kept = _composed(kept, pruned.rewritten.kept)
    kept = {name: dims for name, dims in kept.items() if name in loaded.graph.parameters}
    selections = selections_of(loaded.coupling, {"parameters": kept}, options.out or Path("steps"))
    rewritten = rewrite(loaded.coupling, selections)
    changed = _widened(loaded, done, rewritten)
    unrestored = {name: reason for p in done for name, reason in p.compressed.unrestored.items()}
    counts = {name: selection.count for name, selection in selections.items()}
    written = "hf" in options.formats and not options.dry_run
    found = Pruned(
        loaded=loaded,
        options=options,
        family=loaded.family,
        compressed=Compressed(selections, changed, unrestored),
        rewritten=Rewritten(dce(rewritten.graph), rewritten.kept),
        replaced=changed,
        layout=settle_layout(loaded, options.layout, counts) if written else None,
        calibrated=last.calibrated,
        warnings=tuple(dict.fromkeys(warning for p in done for warning in p.warnings)),
        seconds=_seconds(done),
    )
    if loaded.clock is not None:
        found.race(loaded.clock)
    return found


def _shallow(loaded: Loaded, options: PruneOptions, done: Sequence[Pruned]) -> Loaded:
    """The dense model without the regions that any step has removed. The branches of a region have
    the same names in all programs; of what is left of a layer a step may have said the whole."""
    gone = {branch for p in done for region in p.loaded.removed for branch in region.branches}
    if not gone:
        return loaded
    from prunec.planning.depth import without

    went = [region for region in loaded.regions.values() if gone.issuperset(region.branches)]
    inside = {name for region in went for name in region.parts}
    return without(loaded, [region for region in went if region.name not in inside], options)


def _composed(first: Kept, second: Kept) -> Kept:
    """What stays of the dense parameters once a second step has chosen from what a first left."""
    found = {name: dict(dims) for name, dims in first.items()}
    for name, dims in second.items():
        known = found.setdefault(name, {})
        known |= {dim: known[dim][kept] if dim in known else kept for dim, kept in dims.items()}
    return found


def _widened(loaded: Loaded, done: Sequence[Pruned], rewritten: Rewritten) -> Scratch:
    """The weights that any step has refitted, as the last one left them, at full width."""
    found = Scratch()
    small = done[-1].weights
    changed = dict.fromkeys(name for pruned in done for name in pruned.replaced)
    for name in (name for name in changed if name in loaded.graph.parameters):
        shape = loaded.graph.parameters[name].type.shape
        kept = rewritten.kept.get(name, {})
        array = small[name]
        full = np.zeros([int(d) for d in shape], array.dtype)
        full[np.ix_(*(kept.get(d, np.arange(n)) for d, n in enumerate(full.shape)))] = array
        found[name] = full
    return found


def _seconds(done: Sequence[Pruned]) -> dict[str, float]:
    """Time by part, over all steps."""
    total: dict[str, float] = {}
    for pruned in done:
        for part, taken in pruned.seconds.items():
            total[part] = round(total.get(part, 0.0) + taken, 3)
    return total
