"""The report of `prunec quantize` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunec.cli.console import Console
from prunec.cli.show import amount, show_written

if TYPE_CHECKING:
    from prunec.verbs.quantizing import QuantizeReport

__all__ = ["show_quantize"]


def show_quantize(report: QuantizeReport, console: Console) -> None:
    """Sizes, what was quantised, and how far outputs move."""
    size = report.formats[0].bytes
    console.line(f"{report.model}   ({report.quantize}, activations {report.activations})")
    rows = [("float32", amount(report.dense_bytes)), (report.quantize, amount(size))]
    console.table("bytes", ("", ">bytes"), rows)
    console.line(f"{report.dense_bytes / size:.2f} times smaller")
    console.table("operations", ("name", ">uses"), sorted(report.operations.items()))
    if report.error:
        moved = [(name, f"{error:.3g}") for name, error in report.error.items()]
        console.table("change of the outputs by source", ("source", ">relative error"), moved)
    show_written(report.out, report.formats, console)
