"""The boundary of the command line: every exception becomes a message and an exit code.

What each exception means is in `verdict`, which is imported when there is one: `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import click

from prunec.reports.escape import printable

if TYPE_CHECKING:
    from prunec.ir.diagnostics import Diagnostic

__all__ = ["BROKEN_PIPE", "Terminated", "guarded", "over"]

BROKEN_PIPE = 141

RESERVE = 16 << 20
"""Bytes kept for telling what went wrong when all others are used up."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; raised where the program stands, so that it cleans up."""


def guarded(run: Callable[[], int], *, stdout: TextIO, as_json: bool) -> int:
    """Call `run`, tell what went wrong if something did, and return the exit code."""
    reserve = bytearray(RESERVE)
    try:
        try:
            with _terminable():
                return _flushed(run(), stdout)
        except click.exceptions.Exit as ended:  # how click ends a command
            return _flushed(ended.exit_code, stdout)
        except BaseException as error:
            reserve.clear()
            code, diagnostics = _judged(error)
            _tell(code, diagnostics, stdout if as_json else None)
            return _flushed(code, stdout)
    except BrokenPipeError:
        _forget(stdout)
        return BROKEN_PIPE


def _judged(error: BaseException) -> tuple[int, Sequence[Diagnostic]]:
    """What the error means. What its frames hold goes first: there may be no memory left."""
    if os.environ.get("PRUNEC_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
    found: BaseException | None = error
    while found is not None:
        found.__traceback__, found = None, found.__context__
    from prunec.cli.verdict import judge

    return judge(error)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn signals that would end the process into `Terminated`; those ignored stay ignored."""
    main = threading.current_thread() is threading.main_thread()
    found = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")) if main else ()
    taken = [n for n in found if n is not None and signal.getsignal(n) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def over() -> None:
    """The run has ended and has its exit code: what arrives while libraries are unloaded must not
    make it look interrupted."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _flushed(code: int, stdout: TextIO) -> int:
    stdout.flush()  # here, where a closed pipe can still be handled
    return code


def _forget(stdout: TextIO) -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout.fileno())
        os.close(nowhere)


def _tell(code: int, diagnostics: Sequence[Diagnostic], stdout: TextIO | None) -> None:
    """Render on standard error, and as the one document on standard output if there is one."""
    for diagnostic in diagnostics:
        print(printable(diagnostic.render()), file=sys.stderr)
    if stdout is None or not diagnostics:
        return
    document: dict[str, Any] = {
        "error": {"exit_code": code, "diagnostics": [d.to_json() for d in diagnostics]}
    }
    print(json.dumps(document, indent=2), file=stdout)
