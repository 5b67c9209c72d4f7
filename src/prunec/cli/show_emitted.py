"""The report of `prunec emit` for people."""

from __future__ import annotations

from prunec.cli.console import Console
from prunec.cli.show import amount, show_checks, show_written
from prunec.verbs.emitting import EmitReport

__all__ = ["show_emit"]


def show_emit(report: EmitReport, console: Console) -> None:
    """What was written, and how far its outputs are from those of the model."""
    console.line(f"{report.model}   ({amount(report.params)} parameters)")
    show_checks(report.checks, console)
    show_written(report.out, report.formats, console)
