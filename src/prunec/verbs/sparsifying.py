"""`prunec sparsify`: single weights become zero, and the model keeps its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.sparsify import SparsifyOptions
from prunec.output.emission import emit
from prunec.output.masks import write_masks
from prunec.output.staging import Formats
from prunec.output.zeros import check_zeros
from prunec.passes.dce import dce
from prunec.passes.profile import Stream, Weights
from prunec.passes.rewrite import Rewritten
from prunec.passes.sparse import (
    Layers,
    Pattern,
    check_fits,
    layers,
    parse_pattern,
    pruner,
)
from prunec.passes.sparse import (
    sparsify as run_pass,
)
from prunec.passes.sparse.ratios import one_threshold, outlier_shares, owl, uniform
from prunec.passes.sparse.sites import sites
from prunec.progress import Progress, Silent
from prunec.reports.card_sparse import render_card
from prunec.reports.sparse import SparsifyReport, sparsify_report
from prunec.resume.journal import StateJournal
from prunec.resume.scratch import Scratch
from prunec.resume.state import State
from prunec.runs.run import Outcome, Run, keep_recipe, load_for, run_staged, write_papers

__all__ = ["Sparsified", "sparsify"]


@dataclass(kw_only=True)
class Sparsified(Outcome):
    """A model with zeros, before anything is written; `shares` says how much of each weight was to
    go."""

    options: SparsifyOptions
    layers: Layers
    pattern: Pattern
    shares: Mapping[str, float]


def sparsify(options: SparsifyOptions, progress: Progress | None = None) -> SparsifyReport:
    """Sparsify a model as `options` (settled) say and write OUT, which appears only when whole."""
    told = progress or Silent()
    if options.dry_run or options.out is None:
        found = _Run(options, load_for(options, told), told).sparsified()
        return sparsify_report(found, sources=found.loaded.engine.rows(found, told))

    def work(stage: Path, state: State | None) -> SparsifyReport:
        run = _Run(options, load_for(options, told), told, state)
        return _write(run.sparsified(), stage, told)

    return run_staged(options, work)


@dataclass
class _Run(Run[SparsifyOptions]):
    """One run of the pass over a loaded model."""

    def sparsified(self) -> Sparsified:
        pattern = parse_pattern(self.options.sparsity)
        found = self._layers()
        shapes = {y.weight: self._shape(y.weight) for y in found.found}
        check_fits(found.found, {y.weight: shapes[y.weight][y.dim] for y in found.found}, pattern)
        layout = None
        if "hf" in self.options.formats and not self.options.dry_run:
            from prunec.planning.layout import present_layout

            layout = present_layout(self.loaded)
        shares = self._shares(found, pattern)
        replaced = self._pruned(found, pattern, shares)
        return Sparsified(
            loaded=self.loaded,
            options=self.options,
            family=self.family,
            rewritten=Rewritten(dce(self.loaded.graph), {}),
            replaced=replaced,
            layout=layout,
            calibrated=self.calibrated,
            warnings=tuple(self.warnings),
            seconds=self.seconds,
            layers=found,
            pattern=pattern,
            shares=shares,
        )

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(d) for d in self.loaded.graph.parameters[name].type.shape)

    def _layers(self) -> Layers:
        """All layers but those that the user wants left."""
        found = layers(self.loaded.coupling, self.loaded.cost.outer)
        names = [layer.weight for layer in found.found]
        unknown = [p for p in self.options.leave if not any(fnmatchcase(n, p) for n in names)]
        if unknown:
            raise PrunecError(
                [
                    Diagnostic(
                        "P853",
                        f"--leave {pattern} is no weight that would become sparse",
                        "--leave",
                        help=f"name weights, or patterns of them, such as {names[-1]}"
                        if names
                        else "drop it",
                    )
                    for pattern in unknown
                ],
                Exit.USAGE,
            )
        asked = {n for n in names for p in self.options.leave if fnmatchcase(n, p)}
        kept = tuple(layer for layer in found.found if layer.weight not in asked)
        if not kept:
            raise fail(
                "P402",
                "nothing to sparsify: no layer within blocks multiplies data with a weight",
                where=self.loaded.source.name,
                help="`prunec inspect` shows what the model computes",
                exit_code=Exit.USAGE,
            )
        return Layers(kept, {**found.left, **dict.fromkeys(sorted(asked), "asked for")})

    def _shares(self, found: Layers, pattern: Pattern) -> dict[str, float]:
        """How much of each layer becomes zero."""
        ratios, own = self.options.ratios, found.found
        if ratios == "uniform":
            return uniform(own, pattern.zeros)
        if ratios == "global":
            with self.progress.step("Comparing layers"):
                return one_threshold(own, self.loaded.weights, pattern.zeros)
        sizes = {y.weight: self.loaded.weights[y.weight].size for y in own}
        with (
            self.timed("ratios"),
            self.progress.step("Looking for outliers", len(sites(own))) as advance,
            self.stream() as stream,
        ):
            assert stream is not None, "options are settled"
            outliers = outlier_shares(own, self.loaded.weights, stream, lambda: advance(1))
        shares = owl(outliers, own, sizes, pattern.zeros)
        if min(shares.values()) > 0 and max(shares.values()) < 1:
            return shares
        raise fail(
            "P854",
            f"layers of {min(shares.values()):.0%} to {max(shares.values()):.0%} zeros would be"
            " needed",
            where="--ratios owl",
            help="ask for a sparsity nearer to 50%, or use --ratios uniform",
            exit_code=Exit.USAGE,
        )

    def _pruned(self, found: Layers, pattern: Pattern, shares: Mapping[str, float]) -> Weights:
        method = pruner(self.options.method, self.options.compare)
        weights = self.loaded.weights
        journal = StateJournal(self.state, weights) if self.state is not None else None
        total = len(sites(found.found))
        with self.timed("sparsify"), self.progress.step("Sparsifying", total) as advance:

            def work(replace: Callable[[Weights], None], stream: Stream | None) -> None:
                run_pass(
                    found.found, method, pattern, shares, weights, replace, stream,
                    lambda: advance(1), journal,
                )  # fmt: skip

            if method.needs is None:
                scratch = Scratch()
                work(scratch.update, None)
                return scratch
            with self.stream() as stream:
                assert stream is not None, "options are settled"
                work(stream.replace, stream)
                return stream.replaced


def _write(found: Sparsified, stage: Path, progress: Progress) -> SparsifyReport:
    """Everything that OUT holds, into the stage folder."""
    written = emit(found, stage, progress)
    write_masks(stage / Formats.MASKS, found)
    with progress.step("Checking zeros", len(found.options.formats)) as advance:
        broken = check_zeros(found, stage, lambda: advance(1))
    checks = found.loaded.engine.verify(found, stage, progress) if found.options.verify else ()
    sources = found.loaded.engine.rows(found, progress)
    report = sparsify_report(found, written, checks, sources, broken)
    keep_recipe(found, stage)
    write_papers(stage, report, render_card(report))
    return report
