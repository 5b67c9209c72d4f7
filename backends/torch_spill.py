"""Environments of tensors on disk, and the memory that they share."""

from __future__ import annotations

from pathlib import Path

import torch

from prunec.backends.interpreter import Env
from prunec.backends.spill import Form

__all__ = ["TENSORS", "nbytes"]


def nbytes(env: Env) -> int:
    """Bytes of the distinct storages behind the values."""
    storages = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
        for v in env.values()
        if isinstance(v, torch.Tensor)
    }
    return sum(storages.values())


def _write(env: Env, path: Path) -> None:
    torch.save(env, path)


def _read(path: Path) -> Env:
    loaded: Env = torch.load(path, weights_only=True)
    return loaded


TENSORS: Form[Env] = Form(nbytes, _write, _read)
