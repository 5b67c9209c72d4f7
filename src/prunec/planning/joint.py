"""Width and depth in one budget: how many regions go before widths do the rest.

Regions have an order (see `passes.depth`). For each number of them that go, the program without
them is measured, the widths that still have to go are allocated, and what both cost is added up:
the increase in loss that was measured (of a file, how far the outputs move), and the error curves
of the widths in the same units. The cheapest sum wins, none and all that it takes being two of the
choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.prune import PruneOptions
from prunec.passes.allocators import Allocator, Evidence
from prunec.passes.regions import Region
from prunec.passes.score import Criterion, Curved
from prunec.planning.deciding import Decided
from prunec.planning.depth import Watched, ordered_regions, without
from prunec.planning.evidence import gather, in_order
from prunec.planning.widths import Choice, choose_groups, make_budget, settle_uniform
from prunec.progress import Progress
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded

__all__ = ["Contest", "contest"]

CURVES = frozenset({"curves", "weight"})


@dataclass(frozen=True)
class Contest:
    """What width and depth are compared by: regions in the order in which they go, the loss
    without the first of them (none, one, two ...), and what is known of the widths."""

    loaded: Loaded
    options: PruneOptions
    allocator: Allocator
    order: tuple[Region, ...]
    losses: Sequence[float]
    evidence: Evidence

    def decide(self, progress: Progress) -> Decided:
        """The cheapest plan. Raises PrunecError when no number of regions meets the targets."""
        widths = replace(self.options, groups=self.options.width_roles)
        plans: list[tuple[float, Decided]] = []
        rows: list[dict[str, object]] = []
        refusals: list[PrunecError] = []
        for count, loss in enumerate(self.losses):
            last = self.order[count - 1].name if count else None
            rows.append({"removed": last, "depth": loss - self.losses[0], "expected": None})
            try:
                decided = _planned(
                    self.loaded, self.order[:count], widths, self.allocator, self.evidence
                )
            except PrunecError as error:
                if error.exit_code is not Exit.NOT_MET:
                    raise
                refusals.append(error)
                continue
            expected = loss - self.losses[0] + _expected(decided, self.evidence)
            rows[-1]["expected"] = expected
            plans.append((expected, decided))
        if not plans:
            raise refusals[-1]
        expected, best = min(plans, key=lambda plan: plan[0])
        names = ", ".join(r.name.partition("/")[0] for r in best.loaded.removed) or "no region"
        told = f"loss +{expected:.3f} nats"
        if self.loaded.file is not None:
            told = f"distance of the outputs {expected:.3g}"
        progress.note(f"{names} goes as a whole, of {len(self.order)} in order; expected {told}")
        return replace(best, notes={"depth": rows})


def contest(
    loaded: Loaded,
    options: PruneOptions,
    watched: Watched,
    calibrated: Calibrated,
    criterion: Criterion,
    allocator: Allocator,
    progress: Progress,
) -> Contest:
    """Measure what plans are compared by. Raises PrunecError when the method has no error curves,
    or when the model does not write text."""
    _check(loaded, options, criterion)
    dense = choose_groups(loaded, replace(options, groups=options.width_roles))
    order = ordered_regions(watched, options, progress)
    evidence = gather(
        loaded, in_order(loaded, dense.groups), criterion, calibrated,
        CURVES | allocator.needs, progress, options.experts,
    )  # fmt: skip
    prefixes = [order[:count] for count in range(len(order) + 1)]
    known = {len(gone): watched.known(gone) for gone in prefixes}  # an order may have met them
    new = [gone for gone in prefixes if known[len(gone)] is None]
    with progress.step("Measuring depth", len(new)) as advance:
        found = loaded.engine.without(watched.loaded, watched.windows, new, lambda: advance(1))
    measured = known | {len(gone): loss for gone, loss in zip(new, found, strict=True)}
    losses = [loss for _, loss in sorted(measured.items()) if loss is not None]
    return Contest(loaded, options, allocator, order, losses, _of_all(dense, evidence))


def _of_all(dense: Choice, evidence: Evidence) -> Evidence:
    """The same, with plans judged in the whole program, where regions that go are as they were."""
    divergence, sizes = evidence.divergence, {group.name: group.size for group in dense.groups}
    if divergence is None:
        return evidence
    return replace(
        evidence, divergence=lambda plans: divergence([{**sizes, **plan} for plan in plans])
    )


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
    if loaded.file is None and not _writes_text(loaded):
        raise fail(
            "P816",
            "widths and depth are compared by the loss of a model that writes text, and this is"
            " none",
            where="--groups",
            help="prune depth first, then the result with other --groups",
            exit_code=Exit.USAGE,
        )


def _writes_text(loaded: Loaded) -> bool:
    from prunec.measuring.breakdown import writes_text  # which needs torch

    return writes_text(loaded)


def _planned(
    loaded: Loaded,
    gone: Sequence[Region],
    options: PruneOptions,
    allocator: Allocator,
    evidence: Evidence,
) -> Decided:
    """The widths that the targets still ask for once the regions are gone."""
    smaller = without(loaded, gone, options) if gone else loaded
    choice = choose_groups(smaller, options)
    budget = make_budget(smaller, options, choice)
    warnings: tuple[Diagnostic, ...] = ()
    if options.layout == "uniform":
        held = "hf" in options.formats
        counts, warnings = settle_uniform(smaller, choice, budget, check=held)
    else:
        counts = allocator.allocate(in_order(smaller, choice.groups), budget, evidence)
    return Decided(smaller, choice, counts, (*choice.warnings, *warnings))


def _expected(decided: Decided, evidence: Evidence) -> float:
    """The increase in loss by the error curves of the widths, in nats a token."""
    return sum(
        evidence.weight.get(name, 1.0) * float(evidence.curves[name][count])
        for name, count in decided.counts.items()
        if name in evidence.curves
    )
