"""What a recovery did, as tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prunec.cli.console import Console
from prunec.cli.show import amount
from prunec.recovery.report import Gain, RecoverReport

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
    if report.blocks:
        left = sum(row.best_step == 0 for row in report.blocks)
        console.line(
            f"{len(report.blocks)} blocks one by one, {left} of them left as they were:"
            f" error of a block {_mean(r.before for r in report.blocks):.4f}"
            f" -> {_mean(r.after for r in report.blocks):.4f} on average"
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


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _perplexity(loss: float | None) -> str:
    return "-" if loss is None else f"{math.exp(min(loss, 700)):.4g}"
