"""The report of `prunec sparsify` for people."""

from __future__ import annotations

from collections import Counter

from prunec.cli.console import Console
from prunec.cli.show import NUMBERED, show_checks, show_sources, show_written
from prunec.reports.sparse import LayerRow, SparsifyReport

__all__ = ["show_sparsify"]


def show_sparsify(report: SparsifyReport, console: Console) -> None:
    """Zeros by kind of layer, what was left and why, checks and what was written."""
    parts = (
        f"method {report.method}",
        f"sparsity {report.sparsity}",
        f"ratios {report.ratios}",
        f"calibration {report.calibration}",
    )
    console.line(f"{report.model}   ({', '.join(parts)})")
    alike: dict[str, list[LayerRow]] = {}
    for row in report.layers:
        alike.setdefault(NUMBERED.sub("*", row.weight), []).append(row)
    rows = [(name, len(own), _span(own), _checked(own)) for name, own in alike.items()]
    console.table("zeros", ("weights", ">layers", ">zero", "checked in"), rows)
    console.line(
        f"{report.zeros:,} of {report.entries:,} entries are zero "
        f"({report.zeros / report.entries:.2%}), "
        f"{report.zeros / report.params:.2%} of all parameters"
    )
    reasons = Counter(report.left.values())
    console.table("left as they are", ("reason", ">weights"), reasons.most_common())
    show_sources(report.sources, console)
    show_checks(report.checks, console)
    show_written(report.out, report.formats, console)


def _span(rows: list[LayerRow]) -> str:
    shares = [row.zeros / row.entries for row in rows]
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    return low if low == high else f"{low} to {high}"


def _checked(rows: list[LayerRow]) -> str:
    """The formats in which all zeros lie where they should."""
    wrong: Counter[str] = Counter()
    for row in rows:
        wrong.update(row.broken)
    return ", ".join(f"{name}: {n:,} WRONG" if n else name for name, n in wrong.items())
