"""Output folders that appear only when they are whole.

Everything is written into `.OUT.prunec-PID` beside OUT and renamed at the end, so that OUT is
either absent, as it was, or complete. `.OUT.prunec-lock` keeps a second run out; the system
releases the lock when a run dies, however it dies, and the next run sweeps up after it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = ["Formats", "beside", "check_output", "model_within", "staged"]


class Formats:
    """Where each thing lies in OUT."""

    HF = "hf"
    ONNX = "onnx/model.onnx"
    TORCHSCRIPT = "torchscript/model.pt"
    PLAN = "plan.json"
    RECIPE = "recipe.yaml"
    REPORT = "report.json"
    PAGE = "report.html"
    CARD = "README.md"
    MASKS = "masks.safetensors"


def model_within(folder: Path) -> Path | None:
    """The model in a folder that prunec wrote: its checkpoint, whose tokenizer lies beside it,
    else its ONNX file."""
    if (folder / "config.json").exists():
        return None
    if (folder / Formats.HF / "config.json").exists():
        return folder / Formats.HF
    return folder / Formats.ONNX if (folder / Formats.ONNX).exists() else None


def check_output(out: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> Path:
    """The real path of OUT, or PrunecError (exit 2) when it cannot be written; touches nothing.

    `sources` are the files and folders that the run reads: replacing one of them is refused.
    """
    real = Path(os.path.realpath(out.expanduser()))
    for precious in (*sources, Path.cwd(), Path.home()):
        if Path(os.path.realpath(precious)).is_relative_to(real):
            raise _refused(
                f"output {out} is or contains {precious}, which must stay",
                "choose a folder of its own with -o",
            )
    above = next(parent for parent in real.parents if parent.exists())
    if not above.is_dir():
        raise _refused(f"output {out} lies below {above}, which is a file", "choose another -o")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _refused(f"output {out} lies in {above}, which may not be written", "choose another")
    if not real.exists():
        return real
    if not real.is_dir():
        raise _refused(f"output {out} exists and is a file", "choose another folder with -o")
    if not overwrite:
        raise _refused(f"output {out} exists", "choose another folder, or add --overwrite")
    return real


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool = False, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A fresh folder beside OUT that becomes OUT when the block ends without an exception.

    On an exception, an interrupt included, the folder is removed and OUT is as it was.
    Raises PrunecError (exit 2) at once when OUT may not be written or another run writes it.
    """
    real = check_output(out, overwrite=overwrite, sources=sources)
    with _parents(real.parent), _locked(real):
        _sweep(real)
        check_output(out, overwrite=overwrite)
        stage = beside(real, str(os.getpid()))
        stage.mkdir()
        try:
            yield stage
            check_output(out, overwrite=overwrite)
            _exchange(stage, real)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _exchange(stage: Path, real: Path) -> None:
    """Put the stage in the place of OUT, which is moved aside first and deleted last."""
    if not real.exists():
        stage.rename(real)
        return
    old = beside(real, "old")
    real.rename(old)
    try:
        stage.rename(real)
    except BaseException:
        old.rename(real)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(real: Path) -> None:
    """Clear what a run that died has left; the caller holds the lock, so it is nobody's."""
    old = beside(real, "old")
    if old.exists() and not real.exists():
        old.rename(real)  # it died between the two renames
    prefix = beside(real, "").name
    for entry in os.scandir(real.parent):
        tail = entry.name.removeprefix(prefix)
        if entry.name.startswith(prefix) and (tail.isdigit() or tail == "old"):
            shutil.rmtree(entry.path, ignore_errors=True)


def beside(real: Path, suffix: str) -> Path:
    """A hidden neighbour of OUT, on the same disk."""
    return real.parent / f".{real.name}.prunec-{suffix}"


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make the folders above OUT; take those back that stayed empty."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # not empty: it holds the output
                made.rmdir()


@contextlib.contextmanager
def _locked(real: Path) -> Iterator[None]:
    """Hold the lock file of OUT, or PrunecError (exit 2) when another run holds it."""
    path = beside(real, "lock")
    handle = _acquire(path)
    if handle is None:
        raise _busy(real)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquire(path: Path) -> int | None:
    """An open descriptor that holds the lock, or None when another process does."""
    if sys.platform == "win32":
        try:
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        except FileExistsError:
            return None
    import fcntl

    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        # The holder before us may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _busy(real: Path) -> PrunecError:
    return fail(
        "P822",
        f"another run is writing {real}",
        where=str(beside(real, "lock")),
        help="wait for it, or choose another folder with -o",
        exit_code=Exit.USAGE,
    )


def _refused(message: str, remedy: str) -> PrunecError:
    return fail("P821", message, where="-o", help=remedy, exit_code=Exit.USAGE)
