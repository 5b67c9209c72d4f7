"""Live values of batches between two stops: in memory up to a budget, beyond it in a scratch
folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Form", "Spill"]

Env = TypeVar("Env")


@dataclass(frozen=True)
class Form(Generic[Env]):
    """What an environment takes of memory, in bytes, and how it goes to a file and comes back."""

    nbytes: Callable[[Env], int]
    write: Callable[[Env, Path], None]
    read: Callable[[Path], Env]


class Spill(Generic[Env]):
    """Environments by a key. Use as a context manager: what lies on disk is deleted at the end."""

    def __init__(self, form: Form[Env], budget: int) -> None:
        self.form, self.budget, self.used, self.written = form, budget, 0, 0
        self.memory: dict[Hashable, Env] = {}
        self.files: dict[Hashable, Path] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Spill[Env]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.memory.clear()
        if self.folder is not None:
            self.folder.cleanup()

    def put(self, key: Hashable, env: Env) -> None:
        size = self.form.nbytes(env)
        if self.used + size <= self.budget:
            self.memory[key], self.used = env, self.used + size
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="prunec-")
        self.written += 1
        self.files[key] = Path(self.folder.name) / str(self.written)
        self.form.write(env, self.files[key])

    def take(self, key: Hashable) -> Env:
        """An environment that was put there; it is there no longer."""
        if key in self.memory:
            env = self.memory.pop(key)
            self.used -= self.form.nbytes(env)
            return env
        path = self.files.pop(key)
        env = self.form.read(path)
        path.unlink()
        return env
