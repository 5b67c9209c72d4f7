"""What `prunec factorize` did, as data, for people, and as a model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec import __version__
from prunec.card import CAUTION, formats, front_matter, how, joined, model_name, sources
from prunec.escape import markdown
from prunec.ir.diagnostics import Diagnostic, Exit
from prunec.passes.lowrank import params_left
from prunec.reports import Check, SourceRow, WrittenFormat, document, plain

if TYPE_CHECKING:
    from prunec.console import Console
    from prunec.factorizing import Factorized

__all__ = ["FactorizeReport", "RankRow", "factorize_report", "render_card", "show_factorize"]


@dataclass(frozen=True)
class RankRow:
    """One matrix in two: its sides, the rank that stays of how many, and what truncation costs:
    the norm of the change of the layer's outputs over their own (of the weights with plain SVD).
    Of factors that were trained the theory knows no error."""

    weight: str
    outputs: int
    inputs: int
    full: int
    rank: int
    error: float | None


@dataclass(frozen=True)
class FactorizeReport:
    """What `prunec factorize` did, or would do with `--dry-run`. `dense` and `params` count every
    parameter once, before and after; `left` tells why other matrices are as they were."""

    model: str
    out: str | None
    target: str
    method: str
    ranks: str
    calibration: str
    dense: int
    params: int
    layers: tuple[RankRow, ...]
    left: Mapping[str, str]
    formats: tuple[WrittenFormat, ...] = ()
    checks: tuple[Check, ...] = ()
    sources: tuple[SourceRow, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> Exit:
        """Done, or not met when a verification failed."""
        return Exit.DONE if all(c.passed for c in self.checks) else Exit.NOT_MET

    def to_json(self) -> dict[str, Any]:
        checks = [{**plain(asdict(check)), "passed": check.passed} for check in self.checks]
        return {**document(self), "checks": checks, "exit_code": int(self.exit_code)}


def factorize_report(
    found: Factorized,
    written: Sequence[WrittenFormat] = (),
    checks: Sequence[Check] = (),
    sources: Sequence[SourceRow] = (),
) -> FactorizeReport:
    options, loaded = found.options, found.loaded
    dense = loaded.cost.evaluate(loaded.cost.parameters, {})
    saved = params_left(found.spectra, {}) - params_left(found.spectra, found.ranks)
    rows = [
        RankRow(
            name,
            s.outputs,
            s.inputs,
            len(s.singular),
            rank,
            None if options.steps else _error(s.singular, rank),
        )
        for name, rank in found.ranks.items()
        for s in (found.spectra[name],)
    ]
    notes = {} if found.calibrated is None else {"calibration": found.calibrated.describe()}
    notes |= {"training": found.training} if found.training else {}
    return FactorizeReport(
        model=options.model,
        out=str(options.out) if options.out else None,
        target=options.targets[0].text,
        method=options.method,
        ranks=options.ranks,
        calibration=options.calibration,
        dense=dense,
        params=dense - saved,
        layers=tuple(rows),
        left=found.left,
        formats=tuple(written),
        checks=tuple(checks),
        sources=tuple(sources),
        seconds=found.seconds,
        warnings=found.warnings,
        notes=notes,
    )


def _error(singular: Any, rank: int) -> float:
    squares = np.square(singular)
    return float(np.sqrt(squares[rank:].sum() / (squares.sum() or 1.0)))


def show_factorize(report: FactorizeReport, console: Console) -> None:
    """Ranks by kind of layer, what was left and why, checks and what was written."""
    from prunec.show import NUMBERED, amount, show_checks, show_sources, show_written

    console.line(
        f"{report.model}   (method {report.method}, ranks {report.ranks}, calibration"
        f" {report.calibration})"
    )
    console.line(
        f"{amount(report.dense)} -> {amount(report.params)} parameters"
        f" ({report.params / report.dense:.1%})"
    )
    alike: dict[str, list[RankRow]] = {}
    for row in report.layers:
        alike.setdefault(NUMBERED.sub("*", row.weight), []).append(row)
    rows = [
        (name, len(own), _span([r.rank for r in own]), own[0].full,
         _shown(max((r.error for r in own if r.error is not None), default=None)))
        for name, own in alike.items()
    ]  # fmt: skip
    console.table("ranks", ("weights", ">layers", ">rank", ">of", ">largest error"), rows)
    reasons = Counter(report.left.values())
    console.table("left as they are", ("reason", ">weights"), reasons.most_common())
    show_sources(report.sources, console)
    show_checks(report.checks, console)
    show_written(report.out, report.formats, console)


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def render_card(report: FactorizeReport) -> str:
    """The README.md of OUT."""
    name = markdown(model_name(report.model))
    choices = {"target": report.target, "method": report.method, "ranks": report.ranks}
    lines = [
        f"| {markdown(row.weight)} | {row.outputs} x {row.inputs} | {row.rank} |"
        f" {_shown(row.error)} |"
        for row in report.layers
    ]
    head = ["| weight | shape | rank | relative error |", "|---|---|---:|---:|"]
    return joined(
        [
            front_matter(),
            f"# {name}, in factors of low rank",
            f"Made from {name} by prunec {__version__}: {len(report.layers)} matrices are products"
            f" of two now. {report.params:,} of {report.dense:,} parameters remain"
            f" ({report.params / report.dense:.1%}).",
            how(choices, report.calibration),
            sources(report.sources),
            "\n".join(["## Ranks", "", *head, *lines]),
            formats(report.formats, custom=False),
            CAUTION,
        ]
    )
