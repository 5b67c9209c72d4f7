"""Compose frontends, passes and backends into the verbs of the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunec.backends.hf_build import builder
from prunec.backends.hf_fields import Family
from prunec.backends.torch_stream import TorchStream
from prunec.calibrating import Calibrated, calibrate
from prunec.card import render_card
from prunec.checking import verify
from prunec.emission import emit
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Diagnostic
from prunec.loading import Loaded, Overlaid, SlicedWeights, load
from prunec.options import InspectOptions, PruneOptions
from prunec.output import Formats, staged
from prunec.passes.allocate import Budget, GlobalRanking, Uniform
from prunec.passes.compress import Compressed, compress, score_all, sites
from prunec.passes.dce import dce
from prunec.passes.restore import LeastSquares
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.passes.score import CRITERIA, Criterion, Random
from prunec.planfile import read_plan, write_plan
from prunec.planning import (
    Choice,
    choose_groups,
    make_budget,
    settle_uniform,
)
from prunec.plans import plan_document, selections_of
from prunec.progress import Progress, Silent
from prunec.recipe import hash_source, write_recipe
from prunec.reports import InspectReport, PruneReport
from prunec.request import sources
from prunec.summary import inspect_report, prune_report

__all__ = ["Pruned", "inspect", "prune"]


@dataclass
class Pruned:
    """The result of the passes, before anything is written."""

    loaded: Loaded
    options: PruneOptions
    choice: Choice
    counts: dict[str, int]
    compressed: Compressed
    rewritten: Rewritten
    family: Family
    calibrated: Calibrated | None = None
    warnings: list[Diagnostic] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def dense_weights(self) -> Mapping[str, Any]:
        """Full-width weights with the refitted ones in place."""
        return Overlaid(self.loaded.weights, self.compressed.weights)

    @property
    def weights(self) -> Mapping[str, Any]:
        """The weights of the smaller program, sliced one by one when asked for."""
        return SlicedWeights(self.dense_weights, self.rewritten.kept)


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
    if options.dry_run or options.out is None:
        pruned = run_passes(options, progress)
        return prune_report(pruned, (), ())
    with staged(options.out, overwrite=options.overwrite, sources=sources(options)) as stage:
        pruned = run_passes(options, progress)
        report = _write(pruned, stage, progress)
    return report


def run_passes(options: PruneOptions, progress: Progress) -> Pruned:
    """Everything up to the rewritten program."""
    loaded = load(
        options.model,
        trust_remote_code=options.trust_remote_code,
        need_weights=True,
        progress=progress,
    )
    family = Family(loaded.config, builder(type(loaded.model)))
    if options.plan is not None:
        return _follow_plan(options, loaded, family, progress)
    with progress.step("Planning"):
        choice = choose_groups(loaded, options, family)
        budget = make_budget(loaded, options, choice)
        counts, warnings = _uniform_counts(loaded, options, choice, budget, family)
    for warning in (*loaded.warnings, *choice.warnings, *warnings):
        progress.warn(warning)
    seconds = dict(loaded.seconds)
    calibrated = calibrate(loaded, options, progress) if options.calibrated else None
    with _timed(seconds, "prune"):
        if options.allocate == "global":
            counts = _global_counts(loaded, options, choice, budget, calibrated, progress)
        compressed = _compress(loaded, options, choice, counts, calibrated, progress)
    rewritten = _rewrite(loaded, compressed.selections)
    return Pruned(
        loaded, options, choice, counts, compressed, rewritten, family, calibrated,
        [*loaded.warnings, *choice.warnings, *warnings], seconds,
    )  # fmt: skip


def _uniform_counts(
    loaded: Loaded, options: PruneOptions, choice: Choice, budget: Budget, family: Family
) -> tuple[dict[str, int], tuple[Diagnostic, ...]]:
    if options.allocate == "global":
        return {}, ()
    if options.layout == "uniform":
        return settle_uniform(loaded, choice, budget, family, check="hf" in options.formats)
    return Uniform().allocate(choice.groups, budget), ()


def criterion_of(options: PruneOptions) -> Criterion:
    if options.method == "random":
        return Random(options.seed)
    made: Criterion = CRITERIA[options.method]()
    return made


def _global_counts(
    loaded: Loaded,
    options: PruneOptions,
    choice: Choice,
    budget: Budget,
    calibrated: Calibrated | None,
    progress: Progress,
) -> dict[str, int]:
    """One ranking over all groups needs all scores first: one more pass, on the dense stream."""
    total = len(sites(loaded.coupling, choice.groups))
    with progress.step("Scoring", total) as advance, _stream(loaded, calibrated) as stream:
        scores = score_all(
            loaded.coupling, choice.groups, criterion_of(options), loaded.weights, stream,
            lambda: advance(1),
        )  # fmt: skip
    return GlobalRanking().allocate(choice.groups, budget, scores)


@contextmanager
def _stream(loaded: Loaded, calibrated: Calibrated | None) -> Iterator[TorchStream | None]:
    if calibrated is None:
        yield None
        return
    with TorchStream(loaded.graph, loaded.weights, calibrated.batches) as stream:
        yield stream


def _compress(
    loaded: Loaded,
    options: PruneOptions,
    choice: Choice,
    counts: Mapping[str, int],
    calibrated: Calibrated | None,
    progress: Progress,
    chosen: Mapping[str, Selection] | None = None,
) -> Compressed:
    restorer = LeastSquares() if options.restore == "ls" and calibrated is not None else None
    total = len(sites(loaded.coupling, choice.groups))
    with progress.step("Pruning", total) as advance, _stream(loaded, calibrated) as stream:
        return compress(
            loaded.coupling, choice.groups, counts, criterion_of(options), loaded.weights, stream,
            restorer, lambda: advance(1), chosen,
        )  # fmt: skip


def _rewrite(loaded: Loaded, selections: Mapping[str, Selection]) -> Rewritten:
    rewritten = rewrite(loaded.coupling, selections)
    return Rewritten(dce(rewritten.graph), rewritten.kept)


def _follow_plan(
    options: PruneOptions, loaded: Loaded, family: Family, progress: Progress
) -> Pruned:
    """Prune what an earlier plan says."""
    assert options.plan is not None
    shapes = {name: p.type.shape for name, p in loaded.graph.parameters.items()}
    plan = read_plan(options.plan, shapes)  # type: ignore[arg-type]
    selections = selections_of(loaded.coupling, plan, options.plan)
    groups = tuple(g for g in loaded.coupling.groups if g.name in selections)
    choice = Choice(groups, {})
    counts = {name: s.count for name, s in selections.items()}
    seconds = dict(loaded.seconds)
    calibrated = calibrate(loaded, options, progress) if options.calibrated else None
    with _timed(seconds, "prune"):
        compressed = _compress(loaded, options, choice, counts, calibrated, progress, selections)
    rewritten = _rewrite(loaded, compressed.selections)
    return Pruned(
        loaded, options, choice, counts, compressed, rewritten, family, calibrated,
        list(loaded.warnings), seconds,
    )  # fmt: skip


def _write(pruned: Pruned, stage: Path, progress: Progress) -> PruneReport:
    options = pruned.options
    with _timed(pruned.seconds, "write"):
        written = emit(pruned, stage, progress)
    checks = verify(pruned, stage, progress) if options.verify else ()
    write_plan(plan_document(pruned), stage / Formats.PLAN)
    write_recipe(stage / Formats.RECIPE, options, hash_source(pruned.loaded.source.path))
    report = prune_report(pruned, written, checks)
    (stage / Formats.REPORT).write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    (stage / Formats.CARD).write_text(render_card(report), encoding="utf-8")
    return report


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)
