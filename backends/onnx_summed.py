"""Which dimension of each stored matrix an ONNX file sums over, told by its operations alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Initializers", "open_initializers", "summed"]


class Initializers(Mapping[str, npt.NDArray[Any]]):
    """The initializers of a file by name, read when asked for."""

    def __init__(self, model: ir.Model) -> None:
        self._stored = model.graph.initializers

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        tensor = self._stored[name].const_value
        if tensor is None:
            raise KeyError(name)
        array: npt.NDArray[Any] = tensor.numpy()
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def open_initializers(path: Path) -> Initializers:
    return Initializers(ir.load(path))


def summed(path: Path) -> dict[str, frozenset[int]]:
    """For each initializer that MatMul, Gemm or Conv multiplies data with, behind transpositions
    or not: its own dimensions that are summed over (for Conv that of the input channels)."""
    found: dict[str, set[int]] = {}
    for node in ir.load(path).graph.all_nodes():
        for value, dim in _read(node):
            origin = _origin(value, dim)
            if origin is not None:
                found.setdefault(origin[0], set()).add(origin[1])
    return {name: frozenset(dims) for name, dims in found.items()}


def _read(node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    """What an operation multiplies, each with the dimension that it sums over."""
    left, right = (*node.inputs[:2], None, None)[:2]
    if left is None or right is None or node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "MatMul":
        yield left, -1
        yield right, -2
    elif node.op_type == "Gemm":
        yield left, 0 if _flag(node, "transA") else 1
        yield right, 1 if _flag(node, "transB") else 0
    elif node.op_type in ("Conv", "ConvTranspose"):
        yield right, 1 if node.op_type == "Conv" else 0


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _origin(value: ir.Value, dim: int) -> tuple[str, int] | None:
    """The initializer behind a value and the dimension of it, counted from 0."""
    while True:
        if value.is_initializer():
            assert value.shape is not None
            assert value.name is not None
            return value.name, dim % len(value.shape)
        node = value.producer()
        if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
            return None
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        value = node.inputs[0]
        if value.shape is None:
            return None
        rank = len(value.shape)
        dim = (order or tuple(reversed(range(rank))))[dim % rank]
