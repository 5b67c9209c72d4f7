"""Write the Hugging Face checkpoint: stock when layers are uniform, with custom code otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.backends.hf_emit import emit_per_layer, emit_uniform
from prunec.backends.hf_program import same_buffers
from prunec.backends.hf_section import Section
from prunec.backends.safetensors_writer import Entry
from prunec.frontends import hf
from prunec.ir.diagnostics import PrunecError
from prunec.planning.layout import with_kept

if TYPE_CHECKING:
    from prunec.runs.run import Outcome

__all__ = ["write_hf"]


def write_hf(pruned: Outcome, folder: Path, entries: list[Entry]) -> None:
    """Write `folder` in the form that `settle_layout` found.

    Raises PrunecError when the stock class would compute other buffer values (rotary
    frequencies) than those that were kept.
    """
    loaded, layout = pruned.loaded, pruned.layout
    assert layout is not None, "the layout is settled before anything is written"
    assert loaded.family is not None, "only models with a configuration are written as hf"
    source = None if loaded.source.kind == "module" else loaded.source.folder
    where: dict[str, Any] = {"architecture": type(loaded.model), "source": source}
    if isinstance(layout, Section):
        section = with_kept(loaded, layout, pruned.rewritten.kept)
        emit_per_layer(folder, loaded.family.config, section, entries, **where)
        _trim(pruned, folder)
        return
    weights, derived = pruned.weights, loaded.family.derived
    named = {loaded.checkpoint_name(name): name for name in loaded.graph.parameters}
    kept = {new: weights[old] for new, old in named.items() if new in derived}
    if problems := same_buffers(kept, hf.real_buffers(layout.config)):
        raise PrunecError(problems)
    emit_uniform(folder, layout.config, entries, **where)
    _trim(pruned, folder)


def _trim(pruned: Outcome, folder: Path) -> None:
    """Tokens that were left out leave the tokenizer too."""
    if pruned.tokens is None:
        return
    from prunec.planning.vocabulary import trim_files

    trim_files(folder, pruned.tokens)
