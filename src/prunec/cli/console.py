"""What a person sees: tables on standard output, progress and warnings on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

from prunec.ir.diagnostics import Diagnostic
from prunec.ranks import is_first
from prunec.reports.escape import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = ["Console", "hush"]

WIDE = 400
"""Columns when nobody's terminal limits them: a table in a pipe or a file is never cut."""

LOGGERS = (
    "accelerate", "httpx", "huggingface_hub", "onnx_ir", "onnxruntime", "onnxscript", "torch",
    "torch.onnx", "torch.export", "transformers",
)  # fmt: skip

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Read by the libraries when they are imported, which is why `hush` comes first."""


class _Report(Protocol):
    def to_json(self) -> Any: ...


R = TypeVar("R", bound=_Report)


def hush() -> None:
    """Keep libraries from talking over the program, unless PRUNEC_DEBUG is set."""
    if os.environ.get("PRUNEC_DEBUG", "0") not in ("", "0"):
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


class Console:
    """The terminal of one run. With `as_json` standard output carries one document only."""

    def __init__(self, *, as_json: bool, stdout: TextIO | None = None) -> None:
        self.as_json = as_json
        self.silent = not is_first()
        """Of several processes the first one talks; errors are told by whoever has them."""
        self.stdout = stdout if stdout is not None else sys.stdout
        self.started = time.monotonic()
        self._bars: Bars | None = None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """While it lasts, whatever libraries print on standard output goes to standard error."""
        hush()
        with contextlib.redirect_stdout(sys.stderr):
            yield

    def document(self, value: Any) -> None:
        """The one JSON document."""
        if self.silent:
            return
        print(json.dumps(value, indent=2, allow_nan=False), file=self.stdout)

    def tell(self, report: R, show: Callable[[R, Console], None]) -> None:
        """A report as the one document, or else as `show` lays it out for people."""
        if self.as_json:
            self.document(report.to_json())
        else:
            show(report, self)

    def line(self, text: str = "") -> None:
        if not self.silent:
            print(printable(text), file=self.stdout)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; columns whose name starts with `>` are set to the right."""
        if self.silent:
            return
        from rich import box
        from rich.console import Console as Rich
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            right = column.startswith(">")
            table.add_column(Text(column.lstrip(">")), justify="right" if right else "left")
        for row in rows:
            table.add_row(*(Text(printable(str(cell))) for cell in row))
        width = None if self.stdout.isatty() else WIDE
        Rich(file=self.stdout, width=width, highlight=False).print(table)

    @contextlib.contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[float], None]]:
        """A stage of the run: a bar on a terminal, a line with its time elsewhere."""
        if sys.stderr.isatty():
            with self._bar(title, total) as advance:
                yield advance
            return
        start = time.monotonic()
        self._say(f"{title} ...")
        yield lambda units: None
        seconds = time.monotonic() - start
        if seconds >= 1:
            self._say(f"{title}: {seconds:.1f} s")

    def note(self, text: str) -> None:
        self._say(text)

    def warn(self, diagnostic: Diagnostic) -> None:
        self._say(diagnostic.render("warning"))

    def _say(self, text: str) -> None:
        if self.silent:
            return
        shown = printable(text)
        if self._bars is None:
            print(shown, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(shown, markup=False, highlight=False)

    @contextlib.contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Callable[[float], None]]:
        from prunec.cli.pace import Pace

        pace = Pace.of_command(title)
        with self._live() as bars:
            name = printable(title).replace("[", r"\[")
            task = bars.add_task(name, total=total, usual=pace.usual)
            try:
                yield lambda units: bars.advance(task, units)
                pace.keep()
            finally:
                bars.remove_task(task)

    @contextlib.contextmanager
    def _live(self) -> Iterator[Bars]:
        """The bars of the running stages, nested ones included; they vanish when all are done."""
        if self._bars is not None:
            yield self._bars
            return
        from rich.console import Console as Rich
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        from prunec.cli.pace import TimesColumn

        look = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimesColumn())
        stderr = Rich(stderr=True)
        with Progress(*look, console=stderr, transient=True, redirect_stdout=False) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None
