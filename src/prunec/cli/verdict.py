"""What an exception means to the user: an exit code, and diagnostics.

| what happened            | on standard error               | exit |
|--------------------------|---------------------------------|------|
| PrunecError              | its diagnostics                 | its own |
| wrong usage (click)      | a diagnostic and a pointer      | 2    |
| no memory, disk, rights  | a diagnostic                    | 1    |
| a package is missing     | a diagnostic that names the extra | 1  |
| Ctrl-C, SIGTERM          | one line                        | 130, 143 |
| a reader that went away  | nothing                         | 141  |
| anything else            | `internal error`, one line      | 1    |

`PRUNEC_TRACEBACK=1` adds the traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator

import click

from prunec.cli.guard import BROKEN_PIPE, Terminated
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError

__all__ = ["judge"]

INTERRUPTED = 130
TERMINATED = 143

SYSTEM: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("P991", "free some space, or choose a folder on another disk with -o"),
    errno.EDQUOT: ("P991", "free some of the quota, or choose another folder with -o"),
    errno.EACCES: ("P992", "check the rights of the file and of its folder"),
    errno.EPERM: ("P992", "check the rights of the file and of its folder"),
    errno.EROFS: ("P992", "the disk is read-only; choose another folder with -o"),
    errno.EMFILE: ("P993", "raise the limit of open files: ulimit -n 4096"),
    errno.ENAMETOOLONG: ("P993", "choose a shorter name"),
    errno.EIO: ("P993", "the disk failed to read or write; check it"),
}

TELLTALES: dict[str, int] = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "PytorchStreamWriter failed writing file": errno.ENOSPC,
    "can't allocate memory": errno.ENOMEM,
    "Cannot allocate memory": errno.ENOMEM,
    "cannot allocate memory": errno.ENOMEM,
    "failed to map segment from shared object": errno.ENOMEM,
    "bad allocation": errno.ENOMEM,
    "std::bad_alloc": errno.ENOMEM,
}
"""What native libraries say, in errors of their own, when the system lets them down."""


EXTRAS = {
    "accelerate": "torch",
    "datasets": "datasets",
    "gguf": "torch",
    "huggingface_hub": "torch",
    "matplotlib": "plots",
    "onnxscript": "torch",
    "openvino": "all",
    "peft": "recover",
    "ray": "ray",
    "safetensors": "torch",
    "sentencepiece": "torch",
    "torch": "torch",
    "transformers": "torch",
}
"""Packages that `pip install prunec` leaves out, and the extra that brings each."""


def judge(error: BaseException) -> tuple[int, tuple[Diagnostic, ...]]:
    """The exit code and the diagnostics that an exception stands for."""
    match error:
        case PrunecError():
            return int(error.exit_code), error.diagnostics
        case click.exceptions.Abort() | KeyboardInterrupt():
            return INTERRUPTED, (Diagnostic("P998", "interrupted"),)
        case Terminated():
            return TERMINATED, (Diagnostic("P998", "terminated"),)
        case BrokenPipeError():
            return BROKEN_PIPE, ()
        case click.exceptions.NoArgsIsHelpError():
            print(error.format_message(), file=sys.stderr)
            return int(Exit.USAGE), ()
        case click.ClickException():
            return int(Exit.USAGE), (_usage(error),)
        case SystemExit():
            return (error.code if isinstance(error.code, int) else int(Exit.FAILED)), ()
    return int(Exit.FAILED), (_system(error) or _missing(error) or _internal(error),)


def _usage(error: click.ClickException) -> Diagnostic:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "prunec"
    return Diagnostic("P900", error.format_message(), help=f"see {path} --help")


def _system(error: BaseException) -> Diagnostic | None:
    """A diagnostic when the machine, and not the program, is the cause."""
    for cause in _causes(error):
        number = _errno(cause)
        if number == errno.ENOMEM:
            return Diagnostic(
                "P990",
                "out of memory",
                help="close other programs, or use fewer or shorter calibration samples",
            )
        if number in SYSTEM:
            code, remedy = SYSTEM[number]
            place = getattr(cause, "filename", None)
            return Diagnostic(code, os.strerror(number), str(place or ""), help=remedy)
    return None


def _errno(error: BaseException) -> int | None:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError):
        return error.errno
    said = str(error)
    return next((number for text, number in TELLTALES.items() if text in said), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _missing(error: BaseException) -> Diagnostic | None:
    """A diagnostic when a package of an extra is not installed."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    if package not in EXTRAS:
        return None
    return Diagnostic(
        "P994",
        f"this needs the package {package}, which is not installed",
        help=f'pip install "prunec[{EXTRAS[package]}]"',
    )


def _internal(error: BaseException) -> Diagnostic:
    said = " ".join(str(error).split())
    short = said if len(said) <= 200 else said[:200] + " ..."
    return Diagnostic(
        "P999",
        f"internal error: {type(error).__name__}: {short}",
        help="this is a fault of prunec; PRUNEC_TRACEBACK=1 shows where, for a report",
    )
