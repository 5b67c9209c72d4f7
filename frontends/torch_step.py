"""Trace one decoding step: the next token of each sequence, against the keys and values before it.

The cache is the model's own: one forward pass without storage tells which layers it has, and their
tensors become inputs `past_<layer>_key` and `past_<layer>_value`, and outputs `present_...`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from prunec.frontends.torch import Dynamic, Traced
from prunec.frontends.torch_adapters import traceable
from prunec.frontends.torch_hf import BATCH, trace_where_possible
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.ir.graph import Graph

__all__ = ["PAST", "empty_cache", "filled", "grown", "past_shapes", "trace_step"]

PAST = "past"
"""The size that is the number of tokens in the cache, where no layer keeps only the last ones."""

KEPT = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold keys and values (batch, heads, tokens, features) and nothing else."""

TOKENS = "input_ids"
PROBED = 2


def trace_step(model: Any, length: int) -> Traced:
    """Trace a `PreTrainedModel` reading one token a sequence (`input_ids`: batch, 1) with `length`
    tokens before it. It gives its outputs and the grown cache.

    Raises PrunecError (P868) for models that keep no such cache. The model is left as it was found.
    """
    cache = empty_cache(model)
    name = type(model).__name__
    example: dict[str, Any] = {TOKENS: torch.empty((2, 1), dtype=torch.int64, device="meta")}
    for key, shape in past_shapes(cache, 2, length).items():
        example[key] = torch.empty(shape, dtype=_dtype(cache), device="meta")
    varying = (
        {0: BATCH} if any(layer.is_sliding for layer in _layers(cache)) else {0: BATCH, 2: PAST}
    )
    dynamic: Dynamic = {key: varying if key != TOKENS else {0: BATCH} for key in example}
    with traceable(model), _stepping(model, cache, tuple(example), length):
        return trace_where_possible(model, example, dynamic, name)


@torch.no_grad()
def empty_cache(model: Any) -> DynamicCache:
    """The cache that a model makes itself; see `filled`. Raises P868 where it makes none, or one
    that holds more than keys and values."""
    accepted = inspect.signature(model.forward).parameters
    found = None
    if isinstance(model, PreTrainedModel) and "past_key_values" in accepted:
        device = next(model.parameters()).device
        tokens = torch.zeros((1, PROBED), dtype=torch.int64, device=device)
        try:
            found = getattr(model(input_ids=tokens, use_cache=True), "past_key_values", None)
        except Exception as error:  # whatever a forward pass without storage raises
            raise _no_step(model, " ".join(str(error).split())[:200]) from error
    if type(found) is not DynamicCache or not all(type(x) in KEPT for x in found.layers):
        raise _no_step(model, "it keeps no cache of keys and values alone")
    return found


def grown(graph: Graph) -> tuple[tuple[str, str], ...]:
    """The inputs of a step that are its cache, each with the value that it becomes."""
    outputs = dict(graph.outputs)
    pairs = ((v.name, outputs.get(v.name[1:].replace("past", "present", 1))) for v in graph.inputs)
    return tuple((before, after) for before, after in pairs if after is not None)


def past_shapes(cache: DynamicCache, batch: int, length: int) -> dict[str, tuple[int, ...]]:
    """What `cache` holds once `length` tokens of each sequence are read, by the names of inputs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, layer in _numbered(cache):
        _, heads, _, features = layer.keys.shape
        kept = min(length, layer.sliding_window - 1) if layer.is_sliding else length
        *_, inside = layer.values.shape
        shapes[f"past_{number}_key"] = (batch, heads, kept, features)
        shapes[f"past_{number}_value"] = (batch, layer.values.shape[1], kept, inside)
    return shapes


def filled(cache: DynamicCache, past: Mapping[str, torch.Tensor], length: int) -> DynamicCache:
    """A cache like this one that holds `past`, by the names of inputs, of `length` tokens."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    for number, layer in _numbered(found):
        layer.keys, layer.values = past[f"past_{number}_key"], past[f"past_{number}_value"]
        if layer.is_sliding:
            layer.cumulative_length = length
    return found


def _numbered(cache: DynamicCache) -> list[tuple[int, Any]]:
    """The layers that hold something: some models share one among several of their own."""
    layers: list[Any] = cache.layers
    return [(i, layer) for i, layer in enumerate(layers) if layer.is_initialized]


def _layers(cache: DynamicCache) -> list[Any]:
    return [layer for _, layer in _numbered(cache)]


def _dtype(cache: DynamicCache) -> torch.dtype:
    found: torch.dtype = _layers(cache)[0].keys.dtype
    return found


@contextmanager
def _stepping(
    model: Any, cache: DynamicCache, names: tuple[str, ...], length: int
) -> Iterator[None]:
    """Within the block the model reads and gives the tensors of a cache, by these names."""
    own = model.forward
    placed: dict[str, torch.Tensor] = {}
    if any(layer.is_sliding for layer in _layers(cache)):  # whose sizes do not tell it
        placed["position_ids"] = torch.tensor([[length]])

    def forward(**given: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = given.pop(TOKENS)
        grown = filled(cache, given, length)
        outputs = own(input_ids=tokens, past_key_values=grown, use_cache=True, **placed)
        found = {k: x for k, x in outputs.items() if not isinstance(x, Cache) and x is not None}
        for number, layer in _numbered(grown):
            found[f"present_{number}_key"] = layer.keys
            found[f"present_{number}_value"] = layer.values
        return found

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])

    def called(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return forward(**signature.bind(*args, **kwargs).arguments)

    called.__signature__ = signature  # type: ignore[attr-defined]  # what inspect reads
    model.forward = called
    try:
        yield
    finally:
        del model.forward


def _no_step(model: Any, reason: str) -> PrunecError:
    return fail(
        "P868",
        f"a decoding step of {type(model).__name__} cannot be timed: {reason}",
        where="--phase",
        help="use --phase prefill",
        exit_code=Exit.USAGE,
    )
