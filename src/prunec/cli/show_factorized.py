"""The report of `prunec factorize` for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prunec.cli.console import Console
from prunec.cli.show import NUMBERED, amount, show_checks, show_sources, show_written
from prunec.reports.factorize import FactorizeReport, RankRow

__all__ = ["show_factorize"]


def show_factorize(report: FactorizeReport, console: Console) -> None:
    """Ranks by kind of layer, what was left and why, checks and what was written."""
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


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"
