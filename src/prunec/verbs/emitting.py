"""`prunec emit`: a model in other formats, with nothing removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunec import __version__
from prunec.backends.hf_section import Section
from prunec.options.emit import EmitOptions
from prunec.output.emission import emit
from prunec.passes.dce import dce
from prunec.passes.rewrite import Rewritten
from prunec.planning.layout import present_layout
from prunec.progress import Progress, Silent
from prunec.reports.card import CAUTION, front_matter, joined, model_name
from prunec.reports.card import formats as told_formats
from prunec.reports.data import Check, RunReport, WrittenFormat
from prunec.reports.escape import markdown
from prunec.resume.state import State
from prunec.runs.run import Outcome, Run, keep_recipe, load_for, run_staged, write_papers

__all__ = ["EmitReport", "emit_model"]


@dataclass(frozen=True, kw_only=True)
class EmitReport(RunReport):
    """What `prunec emit` wrote of a model with `params` parameters, each counted once."""

    params: int


def emit_model(options: EmitOptions, progress: Progress | None = None) -> EmitReport:
    """Write a model as `options` (settled) say; OUT appears only when it is whole."""
    told = progress or Silent()
    if options.dry_run or options.out is None:
        return _Run(options, load_for(options, told), told).report()

    def work(stage: Path, state: State | None) -> EmitReport:
        return _Run(options, load_for(options, told), told, state).written(stage)

    return run_staged(options, work)


@dataclass
class _Run(Run[EmitOptions]):
    """One model on its way."""

    def written(self, stage: Path) -> EmitReport:
        found, progress = self._outcome(), self.progress
        with self.timed("write"):
            written = emit(found, stage, progress)
        verify = self.loaded.engine.verify
        checks = verify(found, stage, progress) if self.options.verify else ()
        report = self.report(written, checks)
        keep_recipe(found, stage)
        write_papers(stage, report, _card(report, custom=isinstance(found.layout, Section)))
        return report

    def report(
        self, formats: Sequence[WrittenFormat] = (), checks: Sequence[Check] = ()
    ) -> EmitReport:
        cost = self.loaded.cost
        return EmitReport(
            model=self.options.model,
            out=str(self.options.out) if self.options.out else None,
            calibration=self.options.calibration,
            params=cost.evaluate(cost.parameters, {}),
            formats=tuple(formats),
            checks=tuple(checks),
            seconds=self.seconds,
            warnings=tuple(self.warnings),
        )

    def _outcome(self) -> Outcome:
        layout = None
        if "hf" in self.options.formats:
            layout = present_layout(self.loaded)
        return Outcome(
            loaded=self.loaded,
            options=self.options,
            family=self.family,
            rewritten=Rewritten(dce(self.loaded.graph), {}),
            replaced={},
            layout=layout,
        )


def _card(report: EmitReport, *, custom: bool) -> str:
    """The README.md of OUT."""
    name = markdown(model_name(report.model))
    return joined(
        [
            front_matter(),
            f"# {name}",
            f"Made from {name} by prunec {__version__}: the same {report.params:,} parameters in "
            "other formats.",
            told_formats(report.formats, custom=custom),
            CAUTION,
        ]
    )
