"""What an interrupted run has done so far, kept for the next one with `--resume`.

With `--resume` a run saves its steps in `.OUT.prunec-state` beside OUT; if it is interrupted, the
same command goes on from the last one. Without it nothing is kept. A state belongs to one set of
options and one model: that of any other run is discarded. The folder goes once OUT is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.options.run import RunOptions
from prunec.output.staging import beside
from prunec.ranks import meet

__all__ = ["State", "forget_state", "kept_state", "key_of", "state_key", "state_of_first"]

Arrays = Mapping[str, npt.NDArray[Any]]

KEY = "key"


@dataclass(frozen=True)
class State:
    """Steps by name, each a set of named arrays of NumPy's own dtypes."""

    folder: Path

    def load(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """The arrays of a step, or None when it was not finished."""
        try:
            with np.load(self._file(name), allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except (FileNotFoundError, zipfile.BadZipFile, ValueError, EOFError):
            return None

    def save(self, name: str, arrays: Arrays) -> None:
        """Keep a step; it is there wholly or not at all."""
        for key, array in arrays.items():
            assert array.dtype.kind in "biuf", (
                f"{key} is of {array.dtype}, which NumPy cannot store"
            )
        self.folder.mkdir(exist_ok=True)
        partial = self._file(name).with_suffix(".partial")
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        partial.replace(self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def state_key(options: RunOptions, digest: str) -> str:
    """What the state of a run is of: the model, and all options that decide the result."""
    elsewhere: dict[str, Any] = {n: None for n in ("engine", "workers") if hasattr(options, n)}
    told = replace(
        options,
        out=None,
        recipe=None,
        overwrite=False,
        verify=False,
        json=False,
        resume=True,
        activation_budget=0,
        **elsewhere,
    )
    return key_of(told, told.calibration_files, digest)


def key_of(decides: object, files: Sequence[Path], *models: str) -> str:
    """What a state is of: all that `decides` the result (it prints alike when it is alike), the
    files and folders of data, and the hashes of the models."""
    named = [f for path in files for f in (path, *sorted(path.rglob("*")))]
    data = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in named]
    return hashlib.sha256(repr((decides, data, models)).encode()).hexdigest()


@contextlib.contextmanager
def kept_state(out: Path, key: str, *, resume: bool) -> Iterator[State | None]:
    """The state of a run that writes OUT, or None without `resume`; the caller holds OUT's lock.

    It stays after an exception and goes when the block ends without one.
    """
    folder = beside(Path(os.path.realpath(out.expanduser())), "state")
    if resume and not _belongs(folder, key):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / KEY).write_text(key)
    try:
        yield State(folder) if resume else None
    except BaseException:
        if all(entry.name == KEY for entry in folder.glob("*")):  # nothing done worth keeping
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def state_of_first(out: Path) -> Iterator[State]:
    """The state that the first of several processes keeps, once it is there."""
    meet()
    yield State(beside(Path(os.path.realpath(out.expanduser())), "state"))


def forget_state(out: Path) -> None:
    """Throw away what an interrupted run has kept beside OUT; the caller holds OUT's lock."""
    folder = beside(Path(os.path.realpath(out.expanduser())), "state")
    shutil.rmtree(folder, ignore_errors=True)


def _belongs(folder: Path, key: str) -> bool:
    try:
        return (folder / KEY).read_text() == key
    except OSError:
        return False
