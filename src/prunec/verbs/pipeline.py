"""Compose frontends, passes and backends into the verbs of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from prunec.engines.workers import Workers, workers
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Diagnostic
from prunec.options.prune import InspectOptions, PruneOptions
from prunec.output.emission import emit
from prunec.output.staging import Formats
from prunec.passes.allocators import ALLOCATORS, Allocator, Budget, Evidence
from prunec.passes.compress import Compressed, compress, sites
from prunec.passes.coupling import Group
from prunec.passes.criteria import CRITERIA, Random
from prunec.passes.criteria.gradient import gradient_places
from prunec.passes.dce import dce
from prunec.passes.methods import parse_method
from prunec.passes.profile import Stream, Weights
from prunec.passes.restore import RESTORERS
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.passes.routing import expert_scores
from prunec.passes.score import Criterion, Scores, Sloped
from prunec.planning.deciding import Decided
from prunec.planning.evidence import gather, in_order, share_out
from prunec.planning.planfile import read_plan, write_plan
from prunec.planning.plans import plan_document, regions_of, selections_of
from prunec.planning.widths import Choice, choose_groups, make_budget, settle_uniform
from prunec.progress import Progress, Silent
from prunec.ranks import is_first, world_size
from prunec.reports.card import render_card
from prunec.reports.data import InspectReport, LatencyRow, PruneReport, SourceRow
from prunec.reports.page import render_page
from prunec.reports.summary import inspect_report, prune_report
from prunec.resume.journal import StateJournal
from prunec.resume.state import State
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded, Overlaid, load
from prunec.runs.run import Outcome, Run, keep_recipe, load_for, run_staged, write_papers

if TYPE_CHECKING:
    from prunec.planning.depth import Watched
    from prunec.planning.joint import Contest
    from prunec.planning.layout import HfLayout
    from prunec.timing.clock import Clock

__all__ = ["Pruned", "inspect", "measured", "prune", "run_passes", "write"]


@dataclass(kw_only=True)
class Pruned(Outcome):
    """The result of the passes, before anything is written."""

    options: PruneOptions
    compressed: Compressed
    notes: Mapping[str, object] = field(default_factory=dict)
    sliced: ClassVar[bool] = True

    @property
    def selections(self) -> Mapping[str, Selection]:
        return self.compressed.selections

    def race(self, clock: Clock) -> None:
        """Measure it beside the dense model; warns of a measurement that cannot be trusted."""
        clock.race(self.loaded, self.selections, self.replaced)
        if clock.doubt is not None:
            clock.progress.warn(clock.doubt)
            self.warnings += (clock.doubt,)


def inspect(options: InspectOptions, progress: Progress | None = None) -> InspectReport:
    """What `prunec inspect` shows; works on a bare config.json too."""
    loaded = load(
        options.model,
        trust_remote_code=options.trust_remote_code,
        need_weights=False,
        progress=progress or Silent(),
    )
    return inspect_report(loaded, options)


def prune(options: PruneOptions, progress: Progress | None = None) -> PruneReport:
    """Prune a model as `options` (settled) say and write OUT, which appears only when whole."""
    progress = progress or Silent()
    if options.recover_every:
        from prunec.verbs.rounds import prune_in_rounds  # made of this very function

        return prune_in_rounds(options, progress)
    with workers(options.engine, options.workers) as found:
        if options.dry_run or options.out is None or not is_first():
            pruned = run_passes(options, progress, workers=found)
            return prune_report(pruned, (), (), measured(pruned, progress))

        def work(stage: Path, state: State | None) -> PruneReport:
            return write(run_passes(options, progress, state, workers=found), stage, progress)

        return run_staged(options, work)


def run_passes(
    options: PruneOptions,
    progress: Progress,
    state: State | None = None,
    loaded: Loaded | None = None,
    given: Calibrated | None = None,
    workers: Workers | None = None,
) -> Pruned:
    """Everything up to the rewritten program; nothing is written.

    `loaded` is the model where it is there already, `given` calibration data that are.
    """
    if loaded is None:
        loaded = load_for(options, progress, caches=options.allow_interface_change)
    if workers is not None:
        loaded = replace(loaded, workers=workers)
    if options.keep_tokens is not None:
        from prunec.planning.vocabulary import prune_vocabulary  # whose result is one of these

        return prune_vocabulary(options, loaded)
    if options.steps > 1 and options.plan is None:
        from prunec.verbs.steps import prune_in_steps  # made of this very function

        return prune_in_steps(options, progress, state, loaded, given)
    run = _Run(options, loaded, progress, state, given)
    pruned = run.from_plan() if options.plan is not None else run.from_target()
    if world_size() > 1:
        from prunec.engines.shared import agree_on

        agree_on("plan", pruned.compressed.selections.values())
    return pruned


@dataclass
class _Run(Run[PruneOptions]):
    """One run of the passes over a loaded model."""

    sloped: bool = False
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        published = parse_method(self.options.method).allocate
        kept = self.options.allocate == self.options.layout == "uniform"
        if published != "uniform" and kept:
            self.progress.note(
                f"{self.options.method} would choose widths by layer ({published}); all layers keep"
                " the same share here (--layout per-layer lets them differ)"
            )

    @cached_property
    def criterion(self) -> Criterion:
        name = self.options.parts.criterion
        return Random(self.options.seed) if name == "random" else CRITERIA[name]()

    def from_target(self) -> Pruned:
        """Choose what stays so that the targets are met."""
        decide = self._widths
        if self.options.depth_roles:
            decide = self._jointly if self.options.width_roles else self._without_regions
        if any(target.timed for target in self.options.targets):
            decided = self._in_time(decide)
        else:
            decided = decide()
        self.warn(decided.warnings)
        self.loaded = decided.loaded
        pruned = self._finish(decided.choice, decided.counts, self._layout(decided.counts))
        pruned.notes = decided.notes
        return pruned

    def _in_time(self, decide: Callable[[], Decided]) -> Decided:
        """Decide by a clock, until it holds what was measured."""
        from prunec.timing.clock import start_clock
        from prunec.timing.settle import settle_in_time

        clock = start_clock(self.loaded, self.options, self.progress)
        self.loaded = replace(self.loaded, clock=clock)
        with self.timed("time"):
            return settle_in_time(clock, self.options.targets, decide, self.progress)

    def _widths(self) -> Decided:
        """Groups lose indices until the targets are met."""
        with self.progress.step("Planning"), self.timed("plan"):
            choice = choose_groups(self.loaded, self.options)
            budget = make_budget(self.loaded, self.options, choice)
            settled = self._settled(choice, budget)
        if settled is not None:
            counts, warnings = settled
            return Decided(self.loaded, choice, counts, (*choice.warnings, *warnings))
        return Decided(self.loaded, choice, self._ranked(choice, budget), choice.warnings)

    def _without_regions(self) -> Decided:
        """Whole layers and sublayers go until the targets are met."""
        from prunec.planning.depth import candidates, choose_regions, held_back, without

        candidates(self.loaded, self.options)  # what cannot be is told before the long part
        held = held_back(self.loaded, self.options)
        with self.timed("depth"):
            gone = choose_regions(self._watched, self.options, self.progress)
        return Decided(without(self.loaded, gone, self.options), Choice((), {}), {}, held)

    @cached_property
    def _watched(self) -> Watched:
        from prunec.planning.depth import watch

        assert self.calibrated is not None, "options are settled"
        return watch(self.loaded, self.calibrated, self.options.seed, self.state)

    def _jointly(self) -> Decided:
        """Whole layers and widths compete for the same budget."""
        with self.timed("allocate"):
            return self._contest.decide(self.progress)

    @cached_property
    def _contest(self) -> Contest:
        from prunec.planning.depth import candidates
        from prunec.planning.joint import contest

        candidates(self.loaded, self.options)
        assert self.calibrated is not None, "options are settled"
        return contest(
            self.loaded, self.options, self._watched, self.calibrated, self.criterion,
            self.allocator, self.progress,
        )  # fmt: skip

    def from_plan(self) -> Pruned:
        """Follow an earlier plan."""
        assert self.options.plan is not None
        gone = regions_of(self.loaded, read_plan(self.options.plan), self.options.plan)
        if gone:
            from prunec.planning.depth import without

            self.loaded = without(self.loaded, gone, self.options)
        shapes = {
            name: tuple(int(d) for d in p.type.shape)
            for name, p in self.loaded.graph.parameters.items()
        }
        plan = read_plan(self.options.plan, shapes)
        selections = selections_of(self.loaded.coupling, plan, self.options.plan)
        groups = tuple(g for g in self.loaded.coupling.groups if g.name in selections)
        counts = {name: s.count for name, s in selections.items()}
        return self._finish(Choice(groups, {}), counts, self._layout(counts), selections)

    @cached_property
    def allocator(self) -> Allocator:
        return ALLOCATORS[self.options.parts.allocate](self.options.seed)

    def _settled(
        self, choice: Choice, budget: Budget
    ) -> tuple[dict[str, int], tuple[Diagnostic, ...]] | None:
        """Counts that need nothing measured, with warnings; None when the allocator looks at the
        model."""
        if self.allocator.needs:
            return None
        if self.options.layout != "uniform" or self.options.parts.allocate != "uniform":
            ordered = in_order(self.loaded, choice.groups)
            return share_out(self.allocator, ordered, budget, Evidence(), self.progress), ()
        return settle_uniform(self.loaded, choice, budget, check="hf" in self.options.formats)

    def _layout(self, counts: Mapping[str, int]) -> HfLayout | None:
        if "hf" not in self.options.formats or self.options.dry_run:
            return None
        from prunec.planning.layout import settle_layout

        return settle_layout(self.loaded, self.options.layout, counts)

    def _ranked(self, choice: Choice, budget: Budget) -> dict[str, int]:
        """An allocator that looks at the model needs one more pass, on the dense one."""
        self._look_at_slopes(choice)
        ordered = in_order(self.loaded, choice.groups)
        with self.timed("allocate"):
            if self.evidence is None:
                self.evidence = gather(
                    self.loaded, ordered, self.criterion, self.calibrated, self.allocator.needs,
                    self.progress, self.options.experts,
                )  # fmt: skip
            return share_out(self.allocator, ordered, budget, self.evidence, self.progress)

    def _look_at_slopes(self, choice: Choice) -> None:
        """Criteria of gradients look at the dense model once, before anything is pruned."""
        if not isinstance(self.criterion, Sloped) or self.calibrated is None or self.sloped:
            return
        coupling = self.loaded.coupling
        places = [p for group in choice.groups for p in gradient_places(coupling, group)]
        batches, memory = self.calibrated.batches, self.calibrated.budget
        with self.timed("gradients"), self.progress.step("Measuring gradients", 1) as told:
            found = self.loaded.engine.slopes(self.loaded, batches, memory, places, told)
        self.criterion = self.criterion.with_slopes(found)
        self.sloped = True

    def _finish(
        self,
        choice: Choice,
        counts: Mapping[str, int],
        layout: HfLayout | None,
        chosen: Mapping[str, Selection] | None = None,
    ) -> Pruned:
        calibrated = self.calibrated
        if chosen is None:
            self._look_at_slopes(choice)
        scored = self._expert_scores(choice, counts) if chosen is None else {}
        restorer = RESTORERS[self.options.restore] if calibrated is not None else None
        wants = restorer.needs if restorer is not None else frozenset()
        groups = choice.groups
        if not groups and restorer is not None and restorer.compensates:
            groups = self._followers()
        total = len(sites(self.loaded.coupling, groups))
        with (
            self.timed("prune"),
            self.progress.step("Pruning", total) as advance,
            self.stream(targets="targets" in wants) as stream,
        ):
            compressed = compress(
                self.loaded.coupling,
                groups,
                {group.name: group.size for group in groups} | dict(counts),
                self.criterion,
                self._scored_weights(stream),
                stream,
                restorer,
                lambda: advance(1),
                chosen,
                StateJournal(self.state, self.loaded.weights) if self.state is not None else None,
                scored,
            )
        rewritten = rewrite(self.loaded.coupling, compressed.selections)
        pruned = Pruned(
            loaded=self.loaded,
            options=self.options,
            family=self.family,
            compressed=compressed,
            rewritten=Rewritten(dce(rewritten.graph), rewritten.kept),
            replaced=compressed.weights,
            layout=layout,
            calibrated=calibrated,
            warnings=tuple(self.warnings),
            seconds=self.seconds,
        )
        if self.loaded.clock is not None:
            with self.timed("race"):
                pruned.race(self.loaded.clock)
        return pruned

    def _followers(self) -> tuple[Group, ...]:
        """Groups whose consumers come after a region that went: these can make up for it."""
        gone, producers = self.loaded.removed, self.loaded.whole.graph.producers
        first = min((producers[region.exit] for region in gone), default=len(producers))
        return tuple(
            group
            for group in choose_groups(self.loaded, replace(self.options, groups=())).groups
            if any(producers[consumer.op] > first for consumer in group.consumers)
        )

    def _expert_scores(self, choice: Choice, counts: Mapping[str, int]) -> dict[str, Scores]:
        """Experts are judged by the routes of the dense model, where there are data for it."""
        experts = [g for g in choice.groups if g.role == "expert" and counts[g.name] < g.size]
        if not experts or self.calibrated is None or self.options.experts == "weights":
            return {}
        with self.progress.step("Watching routes"), self.timed("routes"):
            found = self.loaded.engine.routed(self.loaded, self.calibrated.batches, experts)
        return {name: expert_scores(self.options.experts, r) for name, r in found.items()}

    def _scored_weights(self, stream: Stream | None) -> Weights:
        """Scores of stored values need no copy of them in the program's dtype."""
        weights, stored = self.loaded.weights, self.loaded.stored
        return weights if stream is not None else Overlaid(weights, stored)


def measured(pruned: Pruned, progress: Progress) -> tuple[SourceRow, ...]:
    """The loss by source, timed like the passes."""
    start = time.perf_counter()
    rows = pruned.loaded.engine.rows(pruned, progress)
    pruned.seconds["measure"] = round(time.perf_counter() - start, 3)
    return rows


def write(
    pruned: Pruned,
    stage: Path,
    progress: Progress,
    rows: tuple[SourceRow, ...] | None = None,
) -> PruneReport:
    """Everything that OUT holds, into the stage folder; `rows` are the losses by source where
    they are known. A module in memory has no recipe."""
    start = time.perf_counter()
    written = emit(pruned, stage, progress)
    pruned.seconds["write"] = round(time.perf_counter() - start, 3)
    verify = pruned.loaded.engine.verify
    checks = verify(pruned, stage, progress) if pruned.options.verify else ()
    latency: tuple[LatencyRow, ...] = ()
    if pruned.options.verify or pruned.loaded.clock is not None:
        from prunec.measuring.latency import (
            latency_rows,  # runtimes are imported where they are timed
        )

        latency = latency_rows(pruned, progress)
    write_plan(plan_document(pruned), stage / Formats.PLAN)
    rows = measured(pruned, progress) if rows is None else rows
    report = prune_report(pruned, written, checks, rows, latency)
    keep_recipe(pruned, stage)
    write_reports(report, stage)
    return report


def write_reports(report: PruneReport, stage: Path) -> None:
    """The report as JSON, as a model card and as a page; the recipe is there where it has one."""
    recipe = write_papers(stage, report, render_card(report))
    (stage / Formats.PAGE).write_text(render_page(report, recipe), encoding="utf-8")
