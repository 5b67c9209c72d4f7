"""Write the Hugging Face checkpoint: stock when layers are uniform, with custom code otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.backends.hf_emit import emit_per_layer, emit_uniform
from prunec.backends.hf_fit import fit
from prunec.backends.hf_program import same_buffers, same_program
from prunec.backends.hf_section import per_layer
from prunec.backends.safetensors_writer import Entry
from prunec.frontends import hf
from prunec.frontends.torch_hf import trace_hf
from prunec.ir.diagnostics import PrunecError
from prunec.ir.graph import Graph
from prunec.planning import parameter_axes

if TYPE_CHECKING:
    from prunec.pipeline import Pruned

__all__ = ["write_hf"]


def write_hf(pruned: Pruned, folder: Path, entries: list[Entry]) -> None:
    """Write `folder`. Raises PrunecError when the layout cannot hold the program after all."""
    if pruned.options.layout == "uniform":
        _uniform(pruned, folder, entries)
    else:
        _per_layer(pruned, folder, entries)


def _trace(model: Any) -> Graph:
    return trace_hf(model).graph


def _counts(pruned: Pruned) -> dict[str, int]:
    return {name: s.count for name, s in pruned.compressed.selections.items()}


def _uniform(pruned: Pruned, folder: Path, entries: list[Entry]) -> None:
    loaded = pruned.loaded
    fitted = fit(pruned.family, parameter_axes(loaded), _counts(pruned))
    if isinstance(fitted, list):
        raise PrunecError(fitted)
    rebuilt = hf.build_meta(fitted.config)
    problems = same_program(pruned.rewritten.graph, _trace(rebuilt))
    problems += same_buffers(_kept_buffers(pruned), hf.real_buffers(fitted.config))
    if problems:
        raise PrunecError(problems)
    emit_uniform(
        folder,
        fitted.config,
        entries,
        architecture=type(loaded.model),
        source=loaded.source.folder,
    )


def _kept_buffers(pruned: Pruned) -> dict[str, Any]:
    """Values of the buffers that no checkpoint stores, sliced."""
    weights = pruned.weights
    return {
        name: weights[name]
        for name in pruned.family.derived
        if name in pruned.loaded.graph.parameters
    }


def _per_layer(pruned: Pruned, folder: Path, entries: list[Entry]) -> None:
    loaded = pruned.loaded
    section = per_layer(
        pruned.family,
        parameter_axes(loaded),
        _counts(pruned),
        pruned.rewritten.graph,
        _trace,
        pruned.rewritten.kept,
    )
    if isinstance(section, list):
        raise PrunecError(section)
    emit_per_layer(
        folder,
        loaded.config,
        section,
        entries,
        architecture=type(loaded.model),
        source=loaded.source.folder,
    )
