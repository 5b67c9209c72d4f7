"""Runs of `prunec prune` on a small model as processes that can be killed, starved and crowded."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Protocol

from common import prunec

__all__ = ["Ended", "forked", "launch", "line", "ran", "wait"]

OPTIONS = (
    "--target", "blocks=60%", "--method", "fasp", "--groups", "neuron", "--format", "hf",
    "--calibration-samples", "16", "--calibration-length", "32",
)  # fmt: skip
LOADED = (
    "prunec.output.emission_hf", "prunec.verbs.pipeline", "prunec.options.request",
    "prunec.cli.show", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What a fork finds loaded."""
DEADLINE = 600


@dataclass(frozen=True)
class Ended:
    """A run that is over: `left` are the names in the folder that OUT lies in."""

    code: int
    seconds: float
    stderr: str
    left: tuple[str, ...]

    @property
    def errors(self) -> int:
        """Messages of errors; there must be one."""
        return sum(line.startswith("error[") for line in self.stderr.splitlines())

    @property
    def unhandled(self) -> bool:
        words = ("Traceback", "internal error", "Fatal Python", "terminate called")
        return any(word in self.stderr for word in words)


def line(model: object, out: object, *more: str) -> tuple[str, ...]:
    return ("prune", str(model), "-o", str(out), *OPTIONS, "--resume", *more)


class Child(Protocol):
    """A process in a session of its own."""

    @property
    def pid(self) -> int: ...

    def ended(self, seconds: float) -> int | None:
        """Its exit code, or None when it still runs after so many seconds."""


@dataclass(frozen=True)
class Command:
    """A run as a user starts it."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def ended(self, seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None


@dataclass(frozen=True)
class Fork:
    """A run that starts with all libraries loaded: its moments are those of the work."""

    process: ForkProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self, seconds: float) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode


@dataclass(frozen=True)
class Started:
    child: Child
    errors: Path
    at: float


def launch(
    model: Path, out: Path, *, megabytes: int | None = None, before: Sequence[str] = ()
) -> Started:
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="prunec-stderr-")

    def limited() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
        if megabytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    process = subprocess.Popen(
        (*before, *prunec(*line(model, out))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=handle,
        start_new_session=True,
        preexec_fn=limited,
    )
    os.close(handle)
    return Started(Command(process), Path(name), time.monotonic())


def _fork(model: Path, out: Path) -> Started:
    for module in LOADED:
        importlib.import_module(module)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix="prunec-stderr-")
    process = multiprocessing.get_context("fork").Process(target=_body, args=(model, out, handle))
    process.start()
    os.close(handle)
    return Started(Fork(process), Path(name), time.monotonic())


def _body(model: Path, out: Path, errors: int) -> None:
    from prunec.cli.app import main as command

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    code = command(line(model, out))
    sys.stderr.flush()
    os._exit(code)


def wait(started: Started, folder: Path, interrupt: tuple[float, int] | None = None) -> Ended:
    code = None
    if interrupt is not None:
        moment, number = interrupt
        code = started.child.ended(max(0.0, moment - (time.monotonic() - started.at)))
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.child.pid, number)
    code = started.child.ended(DEADLINE) if code is None else code
    if code is None:
        os.killpg(started.child.pid, signal.SIGKILL)
        raise SystemExit(f"a run hangs: it was killed after {DEADLINE} s")
    stderr = started.errors.read_text(encoding="utf-8", errors="replace")
    started.errors.unlink()
    left = tuple(sorted(path.name for path in folder.iterdir())) if folder.exists() else ()
    return Ended(code, time.monotonic() - started.at, stderr, left)


def ran(
    model: Path,
    out: Path,
    *,
    interrupt: tuple[float, int] | None = None,
    megabytes: int | None = None,
    before: Sequence[str] = (),
) -> Ended:
    started = launch(model, out, megabytes=megabytes, before=before)
    return wait(started, out.parent, interrupt)


def forked(model: Path, out: Path, interrupt: tuple[float, int] | None = None) -> Ended:
    return wait(_fork(model, out), out.parent, interrupt)
