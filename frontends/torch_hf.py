"""Trace any transformers model: example inputs from its signature and configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from prunec.frontends.torch import Dynamic, Traced, trace
from prunec.frontends.torch_adapters import (
    answered,
    configs_of,
    eager_attention,
    every_hit,
    traceable,
)
from prunec.ir.diagnostics import Diagnostic, PrunecError, fail
from prunec.ir.graph import Graph

__all__ = ["BATCH", "example_inputs", "trace_hf", "trace_where_possible"]

MASK = "attention_mask"
BATCH, SEQUENCE, DECODER_SEQUENCE = "batch", "sequence", "decoder_sequence"


def trace_hf(
    model: Any,
    *,
    extra_inputs: tuple[str, ...] = (),
    name: str | None = None,
    example: Mapping[str, Any] | None = None,
    dynamic: Dynamic | None = None,
) -> Traced:
    """Trace a `PreTrainedModel`, on the meta device or not, without a cache.

    Text models take `input_ids` and `attention_mask` of shape (batch, sequence), encoder-decoders
    also `decoder_input_ids`; vision models take `pixel_values` (batch, channels, height, width)
    of the configured size. `extra_inputs` adds further text inputs of the same shape, such as
    `token_type_ids`. Models that read anything else are given an `example`, and `dynamic` says
    which of its dimensions vary. The model is left as it was found.
    """
    if example is None:
        example, dynamic = example_inputs(model, extra_inputs)
    with traceable(model):
        return trace_where_possible(model, example, dynamic or {}, name or type(model).__name__)


def trace_where_possible(
    model: Any, example: Mapping[str, Any], dynamic: Dynamic, name: str
) -> Traced:
    """The program of a model made `traceable`, without its inner states."""
    traced = _traced(model, example, dynamic, name)
    return replace(traced, graph=_without_states(traced.graph))


def _traced(model: Any, example: Mapping[str, Any], dynamic: Dynamic, name: str) -> Traced:
    """Trace, and where that fails give up one thing after the other: fused attention, the mask
    (some models branch on what is in it), branches on data, sizes that vary."""
    try:
        return trace(model, example, dynamic=dynamic, name=name)
    except PrunecError as error:
        first = error
    for setting in (eager_attention(model), every_hit()):
        with suppress(PrunecError), setting:
            return trace(model, example, dynamic=dynamic, name=name)
    rest = {key: value for key, value in example.items() if key != MASK}
    if 0 < len(rest) < len(example):
        with suppress(PrunecError):
            traced = trace(model, rest, dynamic=_only(dynamic, rest), name=name)
            return _warned(traced, _unmasked(name))
    for varying in (dynamic, {}) if dynamic else ({},):
        fixed = [_of_one_size(name, first)] if varying != dynamic else []
        if fixed:  # varying sizes were tried first of all
            with suppress(PrunecError):
                return _warned(trace(model, example, dynamic=varying, name=name), *fixed)
        for general in (True, False):
            with suppress(PrunecError), answered(general):
                traced = trace(model, example, dynamic=varying, name=name)
                return _warned(traced, _assuming(name, general, first), *fixed)
    raise first


def _warned(traced: Traced, *warnings: Diagnostic) -> Traced:
    return replace(traced, warnings=(*traced.warnings, *warnings))


def _only(dynamic: Dynamic, example: Mapping[str, Any]) -> Dynamic:
    return {key: dims for key, dims in dynamic.items() if key in example}


def _unmasked(name: str) -> Diagnostic:
    return Diagnostic(
        "P142",
        f"{name} branches on the values of {MASK}: it was traced without",
        where=f"input {MASK}",
        help="the exported model reads whole sequences only; do not pad them",
    )


def _assuming(name: str, general: bool, error: PrunecError) -> Diagnostic:
    some = "some entries but not all" if general else "none or all entries"
    return Diagnostic(
        "P143",
        f"{name} branches on whether any, or all, entries of a value are true: it was traced as it "
        f"does where {some} are",
        where=error.diagnostics[0].where,
        help="look at that line: the exported model does the same for all data",
    )


def _of_one_size(name: str, error: PrunecError) -> Diagnostic:
    return Diagnostic(
        "P131",
        f"{name} was traced at the sizes of the example alone: with sizes that vary "
        f"{error.diagnostics[0].message}",
        where=error.diagnostics[0].where,
        help="the exported model will only accept those",
    )


def _without_states(graph: Graph) -> Graph:
    """The program without outputs that are inner states, which other outputs are computed from:
    the fields of an inner model's output, and hidden states. The first output is what the model is
    for, and stays: an encoder's last hidden state, but not that of a detector."""
    behind = _ancestors(graph)
    kept = tuple(
        (name, value)
        for i, (name, value) in enumerate(graph.outputs)
        if not (i and _is_state(name))
        or not any(value in behind[other] for _, other in graph.outputs if other != value)
    )
    return replace(graph, outputs=kept) if kept != graph.outputs else graph


def _is_state(name: str) -> bool:
    """By the names that the output classes of transformers use."""
    return "_output_" in name or "hidden_state" in name


def _ancestors(graph: Graph) -> dict[str, frozenset[str]]:
    """For each output the outputs that it is computed from."""
    outputs = {value for _, value in graph.outputs}
    found: dict[str, frozenset[str]] = {}
    for op in graph.ops:
        behind = frozenset[str]().union(*(found.get(name, frozenset()) for name in op.operands))
        behind |= outputs.intersection(op.operands)
        found |= dict.fromkeys(op.results, behind)
    return {value: found.get(value, frozenset()) for value in outputs}


def example_inputs(
    model: Any, extra_inputs: tuple[str, ...] = ()
) -> tuple[dict[str, Any], Dynamic]:
    """Example inputs on the meta device, and the names of their dynamic dimensions."""
    main = str(model.main_input_name)
    accepted = inspect.signature(model.forward).parameters
    text = {0: BATCH, 1: SEQUENCE}
    example: dict[str, Any] = {}
    dynamic: dict[str, Mapping[int, str]] = {}

    def add(name: str, shape: tuple[int, ...], dims: Mapping[int, str], dtype: torch.dtype) -> None:
        example[name] = torch.empty(shape, dtype=dtype, device="meta")
        dynamic[name] = dims

    if main == "input_ids":
        wanted = (main, MASK, *extra_inputs)
        for name in (n for n in wanted if n in accepted):
            add(name, (2, 4), text, torch.int64)
    elif main in _SENSES:
        shape, dims = _SENSES[main](model.config)
        add(main, shape, dims, model.dtype)
    else:
        raise fail(
            "P134",
            f"no example input is known for {main}",
            where=type(model).__name__,
            help="use the Python API: trace(module, example inputs)",
        )
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        dims = {0: BATCH, 1: DECODER_SEQUENCE}
        add("decoder_input_ids", (2, 4), dims, torch.int64)
    return example, dynamic


def _pixels(config: Any) -> tuple[tuple[int, ...], Mapping[int, str]]:
    config = _holder(config, "num_channels")
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return (2, getattr(config, "num_channels", 3), height, width), {0: BATCH}


def _mel(config: Any) -> tuple[tuple[int, ...], Mapping[int, str]]:
    frames = 2 * getattr(config, "max_source_positions", 128)
    return (2, getattr(config, "num_mel_bins", 80), frames), {0: BATCH}


def _wave(config: Any) -> tuple[tuple[int, ...], Mapping[int, str]]:
    return (2, 16000), {0: BATCH}


# Main input of models that do not read text -> shape and dynamic dimensions.
_SENSES = {"pixel_values": _pixels, "input_features": _mel, "input_values": _wave}


def _holder(config: Any, field: str) -> Any:
    """The configuration, or the first nested one, that has the field."""
    return next((c for c in configs_of(config) if hasattr(c, field)), config)
