"""What a recovery did, as tables for people."""

from __future__ import annotations

import math

from prunec.console import Console
from prunec.recovery.report import Gain, RecoverReport
from prunec.show import amount

__all__ = ["show_recover"]


def show_recover(report: RecoverReport, console: Console) -> None:
    """The losses before and after, and the perplexity of every source."""
    losses = " + ".join(f"{w:g} {name}" for name, w in report.losses.items())
    train = report.train if report.rank is None else f"{report.train} of rank {report.rank}"
    console.line(
        f"{train}: {amount(report.trained)} of {amount(report.params)} parameters,"
        f" {report.steps} steps of {report.batch} x {report.length} tokens, loss {losses}"
    )
    console.line(
        f"held-out loss {report.before:.4f} -> {report.after:.4f}, best at step {report.best_step}"
    )
    rows = [_row(gain) for gain in report.gains if gain.before is not None]
    if rows:
        columns = (
            "source", ">windows", ">perplexity dense", ">before", ">after", ">of the gap closed",
        )  # fmt: skip
        console.table("next token", columns, rows)
    console.line(f"wrote {report.path} ({report.bytes / 1e6:,.0f} MB)")


def _row(gain: Gain) -> tuple[str, ...]:
    seen = "" if gain.held_out else " (trained on)"
    closed = "-" if gain.closed is None else f"{gain.closed:.0%}"
    sides = (gain.dense, gain.before, gain.after)
    return gain.name + seen, str(gain.windows), *map(_perplexity, sides), closed


def _perplexity(loss: float | None) -> str:
    return "-" if loss is None else f"{math.exp(min(loss, 700)):.4g}"
