"""The smaller model as a `torch.nn.Module`, to be called, trained and saved like the dense one."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from prunec.backends.torch_shrink import shrunk, traced_module
from prunec.frontends import hf
from prunec.frontends.tensors import to_torch
from prunec.output.emission import entries
from prunec.output.emission_hf import write_hf
from prunec.output.own_code import find_source
from prunec.planning.widths import parameter_axes
from prunec.runs.live import Live, on_meta

if TYPE_CHECKING:
    from prunec.verbs.pipeline import Pruned

__all__ = ["checkpoint_module", "live_module"]


def checkpoint_module(pruned: Pruned) -> nn.Module:
    """What `from_pretrained` gives of the checkpoint that would be written, in its stored dtype."""
    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        folder = Path(scratch) / "hf"
        write_hf(pruned, folder, entries(pruned))
        source = find_source(str(folder))
        return hf.load_model(source, dtype="auto")


def live_module(pruned: Pruned, live: Live) -> nn.Module:
    """A smaller copy of a module that was loaded from memory; warns when it had to be traced."""
    tensors = _Tensors(pruned)
    counts = {name: s.count for name, s in pruned.compressed.selections.items()}
    made = shrunk(
        live.module,
        lambda: on_meta(live.module),
        parameter_axes(pruned.loaded),
        counts,
        pruned.rewritten.graph,
        live.trace,
        tensors,
    )
    if isinstance(made, nn.Module):
        return made
    name = type(live.module).__name__
    warnings.warn(
        f"{name} cannot hold these sizes, so the result is its traced program, in evaluation mode:"
        f" {made[0].message}",
        stacklevel=3,
    )
    return traced_module(live.module, pruned.rewritten.graph, tensors)


class _Tensors(Mapping[str, torch.Tensor]):
    """Every parameter and buffer of the smaller model under all of its names, each a copy."""

    def __init__(self, pruned: Pruned) -> None:
        self.pruned = pruned
        parameters = pruned.loaded.graph.parameters.values()
        self.first = {name: p.name for p in parameters for name in (p.name, *p.aliases)}

    def __getitem__(self, name: str) -> torch.Tensor:
        loaded, first = self.pruned.loaded, self.first.get(name, name)
        changed = self.pruned.replaced
        base = loaded.stored[first] if first in loaded.stored else loaded.weights[first]
        array = changed[first].astype(base.dtype) if first in changed else base
        for dim, indices in self.pruned.rewritten.kept.get(first, {}).items():
            array = np.take(array, indices, dim)
        return to_torch(np.array(array, order="C"))

    def __iter__(self) -> Iterator[str]:
        return iter({**self.first, **dict.fromkeys(self.pruned.loaded.stored)})

    def __len__(self) -> int:
        return len(self.first.keys() | set(self.pruned.loaded.stored))
