"""Width and depth in one budget: how many regions go before widths do the rest.

Regions have an order (see `passes.depth`). For each number of them that go, the program without
them is measured, the widths that still have to go are allocated, and what both cost is added up in
nats: the increase in loss that was measured, and the error curves of the widths in units of the
loss. The cheapest sum wins, none and all that it takes being two of the choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from prunec.backends.forward import Forward
from prunec.breakdown import writes_text
from prunec.calibrating import Calibrated
from prunec.damage import damage_of
from prunec.depth import ordered_regions, single_windows, without
from prunec.evidence import gather
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.loading import Loaded
from prunec.options import PruneOptions
from prunec.passes.allocators import Allocator, Counts, Evidence
from prunec.passes.compress import sites
from prunec.passes.coupling import Group
from prunec.passes.regions import Region
from prunec.passes.score import Criterion, Curved
from prunec.planning import Choice, choose_groups, make_budget, settle_uniform
from prunec.progress import Progress

__all__ = ["Joint", "plan_jointly"]

CURVES = frozenset({"curves", "weight"})


@dataclass(frozen=True)
class Joint:
    """A model without some regions and the counts of the rest; `predicted` is the increase in
    loss that both are expected to bring, in nats a token, without refitting across layers."""

    loaded: Loaded
    choice: Choice
    counts: Counts
    predicted: float
    warnings: tuple[Diagnostic, ...] = ()


def plan_jointly(
    loaded: Loaded,
    options: PruneOptions,
    calibrated: Calibrated,
    criterion: Criterion,
    allocator: Allocator,
    progress: Progress,
) -> Joint:
    """The cheapest plan. Raises PrunecError when the method has no error curves, when the model
    does not write text, or when no number of regions meets the targets."""
    _check(loaded, options, criterion)
    widths = replace(options, groups=options.width_roles)
    dense = choose_groups(loaded, widths)
    order = ordered_regions(loaded, options, calibrated, progress)
    evidence = gather(
        loaded, _in_order(loaded, dense.groups), criterion, calibrated,
        CURVES | allocator.needs, progress,
    )  # fmt: skip
    prefixes = [order[:k] for k in range(len(order) + 1)]
    losses = _losses(loaded, prefixes, single_windows(calibrated), progress)
    plans: list[Joint] = []
    refusals: list[PrunecError] = []
    for gone, loss in zip(prefixes, losses, strict=True):
        try:
            plan = _planned(loaded, gone, widths, allocator, evidence)
        except PrunecError as error:
            if error.exit_code is not Exit.NOT_MET:
                raise
            refusals.append(error)
            continue
        plans.append(replace(plan, predicted=plan.predicted + loss - losses[0]))
    if not plans:
        raise refusals[-1]
    best = min(plans, key=lambda plan: plan.predicted)
    names = ", ".join(r.name.partition("/")[0] for r in best.loaded.removed) or "no region"
    progress.note(
        f"{names} goes as a whole, of {len(order)} in order; expected loss"
        f" +{best.predicted:.3f} nats"
    )
    return best


def _check(loaded: Loaded, options: PruneOptions, criterion: Criterion) -> None:
    if not isinstance(criterion, Curved):
        raise fail(
            "P816",
            f"method {options.method} has no error curves by which widths compare with whole"
            f" {' and '.join(options.depth_roles)}s",
            where="--groups",
            help="use --method auto, or prune depth first and then the result",
            exit_code=Exit.USAGE,
        )
    if not writes_text(loaded):
        raise fail(
            "P816",
            "widths and depth are compared by the loss of a model that writes text, and this is"
            " none",
            where="--groups",
            help="prune depth first, then the result with other --groups",
            exit_code=Exit.USAGE,
        )


def _in_order(loaded: Loaded, groups: Sequence[Group]) -> list[Group]:
    return [g for site in sites(loaded.coupling, groups) for g in site.groups]


def _planned(
    loaded: Loaded,
    gone: Sequence[Region],
    options: PruneOptions,
    allocator: Allocator,
    evidence: Evidence,
) -> Joint:
    """The widths that the targets still ask for once the regions are gone."""
    smaller = without(loaded, gone, options) if gone else loaded
    choice = choose_groups(smaller, options)
    budget = make_budget(smaller, options, choice)
    warnings: tuple[Diagnostic, ...] = ()
    if options.layout == "uniform":
        held = "hf" in options.formats
        counts, warnings = settle_uniform(smaller, choice, budget, check=held)
    else:
        counts = allocator.allocate(_in_order(smaller, choice.groups), budget, evidence)
    expected = sum(
        evidence.weight.get(name, 0.0) * float(evidence.curves[name][count])
        for name, count in counts.items()
        if name in evidence.curves
    )
    return Joint(smaller, choice, counts, expected, (*choice.warnings, *warnings))


@torch.no_grad()
def _losses(
    loaded: Loaded,
    prefixes: Sequence[Sequence[Region]],
    windows: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> list[float]:
    """The loss without each of some sets of regions, in nats a token."""
    found = []
    with progress.step("Measuring depth", len(prefixes)) as advance:
        for gone in prefixes:
            score = damage_of(loaded, windows)
            forward = Forward(loaded.without(gone).graph, loaded.weights, windows)
            for number in range(len(windows)):
                score(None, number, forward.pieces(number))
            found.append(score.found(None).worth)
            advance(1)
    return found
