"""Write a trained student in the form of the checkpoint that it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prunec.backends.hf_emit import emit_trained, first_names
from prunec.backends.safetensors_writer import Entry
from prunec.frontends.checkpoint import open_parameters
from prunec.frontends.hf import build_meta, load_config
from prunec.frontends.source import Source
from prunec.frontends.tensors import to_numpy
from prunec.passes.profile import Array, Weights
from prunec.recovery.student import Update

__all__ = ["write_trained"]


def write_trained(source: Source, updates: Mapping[str, Update], folder: Path) -> int:
    """Write the checkpoint of `source` with `updates` by parameter name, each tensor in the dtype
    that it had; adapters are added to the stored values. Returns the bytes written."""
    model = build_meta(load_config(source), trust_remote_code=source.trust_remote_code)
    stored = open_parameters(model, source)
    first = first_names(model)
    changed = {first[name]: name for name in updates if name in first}
    entries = [_entry(name, stored, updates, changed.get(first[name])) for name in stored]
    emit_trained(folder, source.folder, model, entries)
    return sum(file.stat().st_size for file in folder.iterdir())


def _entry(name: str, stored: Weights, updates: Mapping[str, Update], changed: str | None) -> Entry:
    old = stored[name]

    def produce() -> Array:
        if changed is None:
            return stored[name]
        update = updates[changed]  # read only now: they may lie on disk
        value = to_numpy(update.value.float())
        if update.added:
            value = value + stored[name].astype(np.float32)
        return value.astype(old.dtype)

    return Entry(name, old.dtype, old.shape, produce)
