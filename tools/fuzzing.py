"""Read damaged files, case by case, and say what came of it.

A reader must either read a file or refuse it with a diagnostic (PrunecError). What it must not do,
whatever the file holds: raise anything else, crash, take more than 10 s or 2 GB, write or delete a
file outside of the folder that it may write, load a pickle, start a program, open a connection.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz_readers import READERS, Reader

from prunec.ir.diagnostics import PrunecError

__all__ = ["READERS", "Outcome", "Reader", "confine", "fuzz"]

SECONDS = 10
MEMORY = 2 << 30


@dataclass
class Outcome:
    """What came of the cases: how many were read, how many refused by which code, and failures
    with the number of their case."""

    cases: int = 0
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)


class Slow(BaseException):
    """A case took too long."""


def fuzz(
    name: str,
    folder: Path,
    cases: range,
    seed: int,
    told: Callable[[int], None] = lambda number: None,
) -> Outcome:
    """Run some cases of a reader in `folder`; `told` hears of each before it starts."""
    reader = READERS[name]
    place = folder / "case"
    place.mkdir(parents=True)
    reader.make(place)
    sound = {p: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}
    targets = [(p, d) for p in sound for end, d in reader.damagers.items() if p.name.endswith(end)]
    assert targets, f"{name} has nothing to damage"
    reader.read(place)  # the sound files are read
    found = Outcome()
    for number in cases:
        told(number)
        rng = random.Random(f"{seed}:{name}:{number}")
        path, damager = rng.choice(targets)
        path.write_bytes(damager(sound[path], rng))
        _case(reader, place, number, found)
        path.write_bytes(sound[path])
    return found


def _case(reader: Reader, place: Path, number: int, found: Outcome) -> None:
    found.cases += 1
    FORBIDDEN.clear()
    try:
        with _timed(), _silent():
            reader.read(place)
        found.read += 1
    except PrunecError as error:
        found.refused[error.diagnostics[0].code] += 1
        if not error.diagnostics[0].message.strip():
            found.failures.append((number, "a refusal that says nothing"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-6:]))
        said = " ".join(str(error).split())[:200]
        found.failures.append((number, f"{type(error).__name__}: {said} ({where})"))
    if FORBIDDEN:
        found.failures.append((number, f"forbidden: {FORBIDDEN[0]}"))


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Slow(f"more than {SECONDS} s")

    # seconds of the processor: a busy machine is nobody's fault
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# -- what no file may make a reader do --------------------------------------------------------

FORBIDDEN: list[str] = []
"""What the running case did."""

CHANGING: Mapping[str, tuple[tuple[int, int], ...]] = {
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),),
    "os.truncate": ((0, 0),), "os.chmod": ((0, 2),), "shutil.rmtree": ((0, 1),),
}  # fmt: skip
"""Events that change the disk: where the path and the open directory that it is below stand."""
NEVER = {
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
    "socket.connect", "socket.bind", "ctypes.dlopen", "webbrowser.open",
}  # fmt: skip
"""Events of what no reader does."""


def confine(folder: Path, memory: int = MEMORY) -> None:
    """From now on this process notes what a case must not do outside of `folder`, and cannot take
    `memory` more bytes than it has. There is no way back."""
    allowed = os.path.realpath(folder)
    sys.dont_write_bytecode = True

    def inside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open descriptor
        real = os.path.realpath(os.fsdecode(path))
        return real.startswith((allowed + os.sep, "/dev/", "/proc/")) or real == allowed

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in NEVER:
            FORBIDDEN.append(f"{event} {arguments!r:.200}")
        if event == "open" and _writes(arguments[1], arguments[2]) and not inside(arguments[0]):
            FORBIDDEN.append(f"open for writing {arguments[0]!r:.200}")
        for at, directory in CHANGING.get(event, ()):
            path = _below(arguments[at], arguments[directory] if directory else -1)
            if not inside(path):
                FORBIDDEN.append(f"{event} {path!r:.200}")

    sys.addaudithook(heard)
    with open("/proc/self/statm", encoding="ascii") as stream:
        held = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))


def _below(path: Any, directory: Any) -> Any:
    """A path relative to an open directory as one from the root."""
    if not isinstance(directory, int) or directory < 0 or not isinstance(path, str | bytes):
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), os.fsdecode(path))


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
