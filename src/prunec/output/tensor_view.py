"""Weights of the smaller program as tensors of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from prunec.backends.tensors import as_tensor
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.profile import Weights

__all__ = ["TensorView"]


class TensorView(Mapping[str, torch.Tensor]):
    """Arrays as tensors, made when asked for. Weights, unlike masks, must be finite."""

    def __init__(self, arrays: Weights, graph: Graph) -> None:
        self.arrays, self.graph = arrays, graph

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = as_tensor(self.arrays[name])
        parameter = self.graph.parameters.get(name)
        if parameter is None or parameter.kind != "parameter" or torch.isfinite(tensor).all():
            return tensor
        raise fail(
            "P150",
            f"{name} holds values that are not finite",
            where=name,
            help="check the original checkpoint; if it is sound, use `--restore none`",
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)
