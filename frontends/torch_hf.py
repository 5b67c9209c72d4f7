"""Trace any transformers model: example inputs from its signature and configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.exporters import exporter_dynamo  # noqa: F401  fills the table of patches
from transformers.exporters.utils import apply_patches
from transformers.utils.generic import ModelOutput

from prunec.frontends.torch import Dynamic, Traced, trace
from prunec.ir.diagnostics import Diagnostic, PrunecError, fail
from prunec.ir.graph import Graph

__all__ = ["batched_experts", "example_inputs", "trace_hf"]

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
    with _plain_outputs(model), _without_caches(model), batched_experts(model), _patches():
        traced = _traced(model, example, dynamic or {}, name or type(model).__name__)
    return replace(traced, graph=_without_states(traced.graph))


def _traced(model: Any, example: Mapping[str, Any], dynamic: Dynamic, name: str) -> Traced:
    """Trace, and where that fails without the mask: some models branch on what is in it."""
    try:
        return trace(model, example, dynamic=dynamic, name=name)
    except PrunecError as error:
        rest = {key: value for key, value in example.items() if key != MASK}
        if len(rest) in (0, len(example)):
            raise
        try:
            traced = trace(model, rest, dynamic=_only(dynamic, rest), name=name)
        except PrunecError:
            raise error from None
    return replace(traced, warnings=(*traced.warnings, _unmasked(name)))


def _only(dynamic: Dynamic, example: Mapping[str, Any]) -> Dynamic:
    return {key: dims for key, dims in dynamic.items() if key in example}


def _unmasked(name: str) -> Diagnostic:
    return Diagnostic(
        "P142",
        f"{name} branches on the values of {MASK}: it was traced without",
        where=f"input {MASK}",
        help="the exported model reads whole sequences only; do not pad them",
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
    return next((c for c in _configs(config) if hasattr(c, field)), config)


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _configs(value)


# What every configuration says while tracing: named outputs, and none but the plain ones.
_SETTINGS = {
    "use_cache": False,
    "use_mems_eval": False,
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
}


@contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Within the block all configurations say the same, also the copies that submodules hold."""
    configs = [getattr(m, "config", None) for m in model.modules()]
    held = [c for outer in configs if hasattr(outer, "to_dict") for c in _configs(outer)]
    saved = [
        (c, field, vars(c)[field])
        for c in {id(c): c for c in held}.values()
        for field in _SETTINGS
        if field in vars(c)
    ]
    try:
        for c, field, _ in saved:
            setattr(c, field, _SETTINGS[field])
        yield
    finally:
        for c, field, value in saved:
            setattr(c, field, value)


@contextmanager
def _without_caches(model: nn.Module) -> Iterator[None]:
    """Within the block no output holds a cache, whatever the configuration says of caches."""

    def without(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, ModelOutput):
            return output
        return type(output)(**{k: v for k, v in output.items() if not isinstance(v, Cache)})

    hook = model.register_forward_hook(without)
    try:
        yield
    finally:
        hook.remove()


def _patches() -> AbstractContextManager[None]:
    """What transformers itself replaces in its models while it exports them: loops over data, and
    kernels that branch on sizes."""
    return cast(AbstractContextManager[None], apply_patches("dynamo"))


@contextmanager
def batched_experts(model: nn.Module) -> Iterator[None]:
    """Within the block experts run as batched matrix products, which have static shapes; also those
    of a model inside of one that has none itself."""
    saved = [
        (inner, getattr(inner.config, "_experts_implementation", None) or "eager")
        for inner in model.modules()
        if isinstance(inner, PreTrainedModel) and inner._can_set_experts_implementation()
    ]
    try:
        for inner, _ in saved:
            inner.set_experts_implementation("batched_mm")
        yield
    finally:
        for inner, before in saved:
            inner.set_experts_implementation(before)
