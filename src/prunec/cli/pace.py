"""How long a step has taken, and how long it will go on.

A step that counts its work goes on at the pace of what is done. One that cannot (an export is one
call of a library) takes what it took when this command was last run on this model, which is kept
beside the other times of this machine.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from time import monotonic as now

import click
from rich.progress import ProgressColumn, Task
from rich.text import Text

from prunec.timing.table import TimeTable, machine, times_folder

__all__ = ["Pace", "TimesColumn", "remaining"]

WORTH = 2.0
"""Seconds; shorter steps need no forecast."""


@dataclass(frozen=True)
class Pace:
    """One step of a command, from now on; `usual` is what it took last time, or None."""

    key: str | None
    usual: float | None = None
    start: float = field(default_factory=lambda: now())

    @classmethod
    def of_command(cls, title: str) -> Pace:
        """A step of the command that is running; outside of one nothing is known or kept."""
        context = click.get_current_context(silent=True)
        if context is None:
            return cls(None)
        key = f"{context.command_path} {context.params.get('model', '')}: {title}"
        known = _table().get(key)
        return cls(key, known[0] if known else None)

    def keep(self) -> None:
        """The step is done."""
        seconds = now() - self.start
        if self.key is None or seconds < WORTH:
            return
        with suppress(OSError):  # a forecast is not worth an error
            _table().put(self.key, [round(seconds, 1)])


@cache
def _table() -> TimeTable:
    return TimeTable(times_folder() / f"steps-{machine()}.json")


def remaining(
    elapsed: float, done: float, total: float | None, usual: float | None
) -> float | None:
    """Seconds that are left, None when nobody can know."""
    if total and done:
        return max(0.0, elapsed * (total / done - 1))
    return None if usual is None or usual < elapsed else usual - elapsed


class TimesColumn(ProgressColumn):
    """`0:00:12, 0:00:30 left`."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        left = remaining(elapsed, task.completed, task.total, task.fields.get("usual"))
        told = "" if left is None else f", {_clock(left)} left"
        return Text(f"{_clock(elapsed)}{told}", style="progress.elapsed")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
