"""What a run of several stages did, as tables for people."""

from __future__ import annotations

from prunec.cli.console import Console
from prunec.cli.show import amount
from prunec.cli.show_measured import show_eval
from prunec.measuring.evaluate import EvalReport, EvalRow
from prunec.road.report import RoadReport, StageRow

__all__ = ["show_road"]


def show_road(report: RoadReport, console: Console) -> None:
    """One row a stage, then what every evaluation measured."""
    columns = ("stage", "state", ">seconds", "wrote")
    rows = [(row.name, _state(row), f"{row.seconds:.1f}", _wrote(row)) for row in report.stages]
    console.table(f"{report.model} -> {report.out}", columns, rows)
    for row in report.stages:
        if row.verb != "eval" or not row.key:
            continue
        told = dict(row.told)
        found = tuple(EvalRow(**measured) for measured in told.pop("rows"))
        show_eval(EvalReport(**told, rows=found), console)


def _state(row: StageRow) -> str:
    if not row.key:
        return "to do"
    missed = ", target or check missed" if row.exit_code else ""
    return ("done before" if row.kept else "done") + missed


def _wrote(row: StageRow) -> str:
    return ", ".join(f"{kind} {amount(size)}B" for kind, size in row.bytes.items())
