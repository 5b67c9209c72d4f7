"""Live values of batches between two stops: in memory up to a budget, beyond it in a scratch
folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch

from prunec.backends.heap import BUDGET
from prunec.backends.interpreter import Env

__all__ = ["BUDGET", "Spill", "nbytes"]

Key = tuple[int, int]


class Spill:
    """Environments by a pair of numbers. Use as a context manager: what lies on disk is deleted
    at the end."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget, self.used = budget, 0
        self.memory: dict[Key, Env] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Spill:
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

    def put(self, key: Key, env: Env) -> None:
        size = nbytes(env)
        if self.used + size <= self.budget:
            self.memory[key], self.used = env, self.used + size
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="prunec-")
        torch.save(env, self._path(key))

    def take(self, key: Key) -> Env:
        """An environment that was put there; it is there no longer."""
        env = self.memory.pop(key, None)
        if env is not None:
            self.used -= nbytes(env)
            return env
        path = self._path(key)
        loaded: Env = torch.load(path, weights_only=True)
        path.unlink()
        return loaded

    def _path(self, key: Key) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"{key[0]}-{key[1]}.pt"


def nbytes(env: Env) -> int:
    """Bytes of the distinct storages behind the values."""
    storages = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
        for v in env.values()
        if isinstance(v, torch.Tensor)
    }
    return sum(storages.values())
