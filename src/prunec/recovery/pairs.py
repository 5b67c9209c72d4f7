"""A layer of a module in two, which learn; with gates each rank between them has one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunec.recovery.gates import sampled, settled

__all__ = ["Pair", "layer_of", "put", "splittable"]

Array = npt.NDArray[Any]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SMALLEST = 1e-6
"""Uniform numbers stay this far from 0 and 1, whose logarithms are infinite."""


class Pair(nn.Module):
    """`second` of `first`, and between them gates of `log_alpha` (ranks,), if any: drawn once for
    every batch in training, settled otherwise."""

    def __init__(self, layer: Any, first: Array, second: Array, log_alpha: Array | None = None):
        super().__init__()
        ranks = len(first)
        self.first = _like(layer, layer.weight.shape[1], ranks, whole=False)
        self.second = _like(layer, ranks, layer.weight.shape[0], whole=True)
        self.first.weight.data = _tensor(first, layer.weight)
        self.second.weight.data = _tensor(second, layer.weight)
        self.log_alpha = None if log_alpha is None else nn.Parameter(_tensor(log_alpha))
        self.along = 1 if isinstance(layer, CONVOLUTIONS) else -1

    @property
    def weight(self) -> Tensor:
        """What code that asks a layer for its dtype and device looks at."""
        weight: Tensor = self.second.weight
        return weight

    @property
    def each(self) -> int:
        """Numbers that a rank takes."""
        inputs, outputs = self.first.weight.shape[1], self.second.weight.shape[0]
        return int(inputs + outputs)

    def forward(self, x: Tensor) -> Tensor:
        between: Tensor = self.first(x)
        if self.log_alpha is not None:
            gates = self._gates(self.log_alpha).to(between.dtype)
            shape = [1] * between.dim()
            shape[self.along] = len(gates)
            between = between * gates.view(shape)
        made: Tensor = self.second(between)
        return made

    def _gates(self, log_alpha: Tensor) -> Tensor:
        if not self.training:
            return settled(log_alpha)
        return sampled(log_alpha, torch.rand_like(log_alpha).clamp(SMALLEST, 1 - SMALLEST))

    @torch.no_grad()
    def factors(self) -> tuple[Array, Array]:
        """The weights of both layers, the settled gates in the first."""
        first, second = self.first.weight, self.second.weight
        if self.log_alpha is not None:
            first = first * settled(self.log_alpha).view(-1, *[1] * (first.dim() - 1))
        return first.cpu().numpy(), second.cpu().numpy()


def splittable(model: nn.Module, weight: str) -> bool:
    """Whether a weight is that of a module which can become a pair: one that multiplies with it."""
    path, _, last = weight.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return last == "weight" and isinstance(module, (nn.Linear, *CONVOLUTIONS))


def layer_of(model: nn.Module, weight: str) -> Any:
    """The module that a weight belongs to, or the pair in its place."""
    return model.get_submodule(weight.rpartition(".")[0])


def put(model: nn.Module, made: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of those that had the weights."""
    for weight, module in made.items():
        model.set_submodule(weight.rpartition(".")[0], module)


def _like(layer: Any, inputs: int, outputs: int, *, whole: bool) -> Any:
    """A layer of another size; the last of two has the bias, the first the stride."""
    bias = layer.bias is not None and whole
    given: dict[str, Any] = {"bias": bias, "device": layer.weight.device}
    if isinstance(layer, CONVOLUTIONS):
        if not whole:
            given |= {"stride": layer.stride, "padding": layer.padding}
        made: Any = type(layer)(inputs, outputs, 1, dtype=layer.weight.dtype, **given)
    else:
        made = nn.Linear(inputs, outputs, dtype=layer.weight.dtype, **given)
    if bias:
        made.bias = layer.bias
    return made


def _tensor(array: Array, like: Tensor | None = None) -> Tensor:
    made = torch.from_numpy(np.array(array, np.float32))
    return made if like is None else made.to(like.device, like.dtype)
