"""Progress bars: how long a step will go on, by its own pace or by what it took before."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console as Rich
from rich.progress import Progress

from prunec.cli import pace
from prunec.cli.console import Console


def test_what_is_left_of_a_step() -> None:
    assert pace.remaining(elapsed=10, done=1, total=4, usual=None) == 30
    assert pace.remaining(elapsed=10, done=1, total=4, usual=99) == 30
    assert pace.remaining(elapsed=10, done=0, total=4, usual=None) is None
    assert pace.remaining(elapsed=10, done=0, total=None, usual=12) == 2
    assert pace.remaining(elapsed=13, done=0, total=None, usual=12) is None


def test_a_bar_says_it() -> None:
    with Progress(pace.TimesColumn(), console=Rich(file=io.StringIO())) as bars:
        bars.add_task("x", total=4, usual=None)
        (task,) = bars.tasks
        task.start_time, task.completed = task.get_time() - 10.5, 1
        assert str(pace.TimesColumn().render(task)) == "0:00:10, 0:00:31 left"
        task.completed = 0
        assert str(pace.TimesColumn().render(task)) == "0:00:10"


def test_a_step_remembers_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By command, model and step, where it took long enough to matter."""
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path))
    pace._table.cache_clear()
    moments = iter([0.0, 7.04, 0.0, 1.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr(pace, "now", lambda: next(moments))
    found: list[Any] = []

    @click.command(name="prune")
    @click.argument("model")
    def command(model: str) -> None:
        for title in ("Tracing", "Planning", "Tracing"):
            step = pace.Pace.of_command(title)
            found.append(step.usual)
            step.keep()

    assert CliRunner().invoke(command, ["net"], catch_exceptions=False).exit_code == 0
    assert found == [None, None, 7.0]
    (kept,) = (tmp_path / "times").iterdir()
    assert "prune net: Tracing" in kept.read_text()
    pace._table.cache_clear()
    assert pace.Pace.of_command("Tracing").usual is None, "outside of a command nothing is known"


def test_a_terminal_sees_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    console: Any = Console(as_json=False)
    with console.step("outer"), console.step("in[ner]", total=3) as advance:
        advance(2)
        console.note("a fact")
    assert "a fact" in shown.getvalue()
    assert "in[ner]" in shown.getvalue()
