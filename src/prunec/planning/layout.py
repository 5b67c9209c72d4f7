"""Settle how a Hugging Face checkpoint will hold the smaller model, before any work is done.

Whether a class can hold the sizes depends on the counts alone, not on which indices stay: so it
is decided, by rebuilding and tracing the model on the meta device, as soon as counts are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from prunec.backends.hf_fit import UniformConfig, fit
from prunec.backends.hf_program import same_program
from prunec.backends.hf_section import Kept, Section, per_layer
from prunec.frontends import hf
from prunec.frontends.torch_hf import trace_hf
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Exit, PrunecError
from prunec.ir.graph import Graph
from prunec.passes.dce import dce
from prunec.passes.rewrite import rewrite
from prunec.planning.widths import parameter_axes
from prunec.runs.loading import Loaded

__all__ = ["HfLayout", "present_layout", "settle_layout", "with_kept"]

HfLayout = UniformConfig | Section
"""A configuration for the stock class, or what the custom code needs to know."""


def settle_layout(loaded: Loaded, layout: str, counts: Mapping[str, int]) -> HfLayout:
    """The checkpoint form for these counts.

    Raises PrunecError (exit 2) with the reason and the nearest layout that works when the class
    cannot hold them, or would compute something else.
    """
    smaller = {g.name: counts[g.name] for g in loaded.coupling.groups
               if counts.get(g.name, g.size) < g.size}  # fmt: skip
    first = {name: Selection(np.arange(k)) for name, k in smaller.items()}
    wanted = dce(rewrite(loaded.coupling, first).graph)
    if loaded.shallower is not None:
        wanted = loaded.shallower.renumbered(wanted)
    axes, family = parameter_axes(loaded), loaded.family
    assert family is not None, "only models with a configuration are written as hf"
    if layout == "per-layer":
        section = per_layer(family, axes, smaller, wanted, _trace)
        if isinstance(section, list):
            raise PrunecError(section, Exit.USAGE)
        return section
    fitted = fit(family, axes, smaller)
    if isinstance(fitted, list):
        raise PrunecError(fitted, Exit.USAGE)
    problems = same_program(wanted, _trace(hf.build_meta(fitted.config)))
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    return fitted


def present_layout(loaded: Loaded) -> HfLayout:
    """The form that a checkpoint has already, for a model that keeps its sizes."""
    own = getattr(loaded.config, "prunec", None) is not None
    return settle_layout(loaded, "per-layer" if own else "uniform", {})


def with_kept(loaded: Loaded, section: Section, kept: Kept) -> Section:
    """The section with the indices that were really kept of the buffers it cuts."""
    named = {loaded.checkpoint_name(name): dims for name, dims in kept.items()}
    buffers = {
        name: {dim: [int(i) for i in named[name][int(dim)]] for dim in dims}
        for name, dims in section.buffers.items()
    }
    return replace(section, buffers=buffers)


def _trace(model: Any) -> Graph:
    return trace_hf(model).graph
