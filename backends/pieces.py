"""A batch in pieces whose values fit the memory that there is for what runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunec.backends.interpreter import Lifetimes
from prunec.backends.objective import cut_inputs
from prunec.ir.graph import Graph, TensorType
from prunec.ir.sizes import dim_size
from prunec.passes.cost import itemsize

__all__ = ["alive", "pieces"]


def pieces(graph: Graph, batch: Mapping[str, Any], budget: int) -> list[dict[str, Any]]:
    """The sequences of a batch, as many in each piece as `budget` bytes hold the values of, and at
    least one; the whole batch where its inputs do not hold a sequence in each row."""
    inputs = {value.name[1:]: batch[value.name[1:]] for value in graph.inputs}
    cut = cut_inputs(graph)
    if not cut:
        return [inputs]
    count = len(inputs[cut[0]])
    one = {name: array[:1] if name in cut else array for name, array in inputs.items()}
    most = max(1, budget // max(1, alive(graph, one)))
    step = math.ceil(count / math.ceil(count / most))  # even ones
    return [
        {n: a[start : start + step] if n in cut else a for n, a in inputs.items()}
        for start in range(0, count, step)
    ]


def alive(graph: Graph, inputs: Mapping[str, Any]) -> int:
    """Bytes of the values that are alive at once while a program runs on these inputs, without
    parameters and outputs; a view counts as much as a copy."""
    sizes = dict(graph.symbols)
    for value in graph.inputs:
        for dim, size in zip(value.type.shape, inputs[value.name[1:]].shape, strict=True):
            if isinstance(dim, str) and dim.isidentifier():
                sizes[dim] = int(size)
    outputs = {value for _, value in graph.outputs}
    held = {value.name: _nbytes(value.type, sizes) for value in graph.inputs}
    now = most = sum(held.values())
    for op, dying in zip(graph.ops, Lifetimes(graph).dying, strict=True):
        for name, type_ in zip(op.results, op.types, strict=True):
            held[name] = 0 if name in outputs else _nbytes(type_, sizes)
            now += held[name]
        most = max(most, now)
        now -= sum(held.pop(name, 0) for name in dying)
    return most


def _nbytes(type_: TensorType, sizes: Mapping[str, int]) -> int:
    if type_.dtype == "index":
        return 0
    return math.prod(dim_size(dim, sizes) for dim in type_.shape) * itemsize(type_.dtype)
