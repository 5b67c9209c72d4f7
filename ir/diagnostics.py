"""Diagnostics: what is wrong, where in the user's model or files, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Diagnostic", "Exit", "PrunecError", "fail"]


class Exit(IntEnum):
    """Exit codes of the command line (a contract; scripts depend on them)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_MET = 3


@dataclass(frozen=True)
class Diagnostic:
    """One fact the user can act on.

    `code` is stable and starts with `P`; `where` is a file, parameter or module path,
    with the source line behind it when known; `snippet` quotes the offending operation;
    `help` is the remedy.
    """

    code: str
    message: str
    where: str = ""
    snippet: str = ""
    help: str = ""

    def render(self, severity: str = "error") -> str:
        lines = [f"{severity}[{self.code}]: {self.message}"]
        if self.where:
            lines.append(f"  --> {self.where}")
        if self.snippet:
            lines.append(f"   |  {self.snippet}")
        if self.help:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "where": self.where, "help": self.help}


class PrunecError(Exception):
    """Everything the user can fix; carries all diagnostics that were collected before raising."""

    def __init__(self, diagnostics: Iterable[Diagnostic], exit_code: Exit = Exit.FAILED) -> None:
        self.diagnostics = tuple(diagnostics)
        self.exit_code = exit_code
        super().__init__("\n".join(d.render() for d in self.diagnostics))


def fail(
    code: str,
    message: str,
    *,
    where: str = "",
    snippet: str = "",
    help: str = "",
    exit_code: Exit = Exit.FAILED,
) -> PrunecError:
    """Build the error for a single diagnostic; the caller raises it."""
    return PrunecError([Diagnostic(code, message, where, snippet, help)], exit_code)
