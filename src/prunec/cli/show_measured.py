"""What `eval` and `bench` measured, as tables for people."""

from __future__ import annotations

from prunec.cli.console import Console
from prunec.cli.show import amount
from prunec.measuring.bench import BenchReport
from prunec.measuring.evaluate import EvalReport
from prunec.options.workload import one_run
from prunec.verbs.sensitivity import SensitivityReport, SensitivityRow

__all__ = ["show_bench", "show_eval", "show_sensitivity"]


def show_eval(report: EvalReport, console: Console) -> None:
    """One row a model; the ratio columns compare with the dense one."""
    columns = [
        "model", ">params", ">bytes", ">perplexity", ">similarity",
        f">ms at 1 x {report.latency_length}",
    ]  # fmt: skip
    rows = [
        (
            f"{row.model} (dense)" if row.dense else row.model,
            amount(row.params),
            amount(row.bytes),
            _number(row.perplexity, ".2f"),
            _number(row.similarity, ".4f"),
            f"{1000 * row.latency:.1f}",
        )
        for row in report.rows
    ]
    title = f"{report.data}: {report.windows} windows of {report.window} tokens"
    console.table(title, columns, rows)
    if all(row.perplexity is None and row.similarity is None for row in report.rows):
        console.line("no language model: add --against DENSE to see how far its outputs moved")


def show_bench(report: BenchReport, console: Console) -> None:
    """One row a model, the first one being the measure."""
    columns = (
        "model", "runtime", ">params", ">median ms", ">fastest", ">slowest", ">tokens/s",
        ">speed-up",
    )  # fmt: skip
    rows = [
        (
            row.model,
            row.runtime,
            amount(row.params),
            f"{1000 * row.median:.2f}",
            f"{1000 * row.fastest:.2f}",
            f"{1000 * row.slowest:.2f}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.speedup:.2f}x",
        )
        for row in report.rows
    ]
    threads = "all cores" if report.threads is None else f"{report.threads} threads"
    run = one_run(report.phase, report.batch, report.length)
    title = f"{run}, {threads}, {report.repeat} runs in turns"
    console.table(title, columns, rows)


def show_sensitivity(report: SensitivityReport, console: Console) -> None:
    """One row for each thing removed, in the order of the program."""
    shown = [c for c in SENSITIVITY if any(_known(row, c) for row in report.rows)]
    columns = ("removed", ">params", *(f">{SENSITIVITY[c]}" for c in shown))
    rows = [
        (row.name, amount(row.params), *(f"{getattr(row, c):.4g}" for c in shown))
        for row in report.rows
    ]
    dense = f", dense loss {report.loss:.4f}" if report.loss == report.loss else ""
    console.table(f"{report.model}: what each removal alone costs{dense}", columns, rows)
    for name, reason in report.skipped.items():
        console.line(f"not measured: {name} ({reason})")


SENSITIVITY = {
    "loss": "loss +",
    "perplexity": "perplexity +",
    "divergence": "KL divergence",
    "error": "output error",
    "estimate": "estimated loss +",
}


def _known(row: SensitivityRow, column: str) -> bool:
    value: float = getattr(row, column)
    return value == value


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
