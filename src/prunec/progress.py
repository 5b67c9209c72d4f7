"""Progress: how a run tells what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from prunec.ir.diagnostics import Diagnostic

__all__ = ["Progress", "Silent"]

Advance = Callable[[float], None]


class Progress(Protocol):
    """What a pipeline reports to. The console shows it on standard error."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Enter one stage; call the result with the units done since the last call."""

    def note(self, text: str) -> None:
        """Tell a fact of interest, such as `wrote hf/ (452 MB)`."""

    def warn(self, diagnostic: Diagnostic) -> None:
        """Tell something that the user should know and that does not stop the run."""


class Silent:
    """Nobody listens: for library use and tests."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda units: None

    def note(self, text: str) -> None:
        return

    def warn(self, diagnostic: Diagnostic) -> None:
        return
