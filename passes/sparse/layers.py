"""The layers whose single weights can be removed: matrices that data are multiplied with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.ir.graph import Graph
from prunec.passes.coupling import Consumer, Coupling

__all__ = ["Layer", "Layers", "block_of", "layers"]

Array = npt.NDArray[Any]

MOVES = frozenset(
    "alias clone contiguous detach expand index index_select permute reshape squeeze t to transpose"
    " unsqueeze view".split()
)
"""Operations that move entries of a weight about and compute nothing: zeros stay zeros."""


@dataclass(frozen=True)
class Layer:
    """A stored weight, the dimension that is summed over, and the values that it is multiplied
    with. `taps`: a convolution, whose further dimensions are the taps of its kernel."""

    weight: str
    dim: int
    consumers: tuple[Consumer, ...]
    taps: bool

    @property
    def reads(self) -> tuple[tuple[str, int], ...]:
        return tuple((c.input, c.input_dim) for c in self.consumers)

    def table(self, weight: Array, inputs: int) -> Array:
        """The weight as (parts, outputs, taps, n): one matrix for each part of its `inputs`, which
        a grouped convolution reads apart from each other."""
        moved = np.moveaxis(weight, self.dim, -1)
        width = weight.shape[self.dim]
        parts = max(1, inputs // width)
        outputs = moved.shape[0] if self.taps else moved.size // width
        return np.ascontiguousarray(moved).reshape(parts, outputs // parts, -1, width)

    def stored(self, table: Array, shape: tuple[int, ...]) -> Array:
        """A table as the weight that it was, of this shape."""
        rest = [n for d, n in enumerate(shape) if d != self.dim]
        return np.ascontiguousarray(
            np.moveaxis(table.reshape(*rest, shape[self.dim]), -1, self.dim)
        )


@dataclass(frozen=True)
class Layers:
    """All layers in the order of the program, and why other matrices are left as they are."""

    found: tuple[Layer, ...]
    left: Mapping[str, str]


def layers(coupling: Coupling, outer: Collection[str]) -> Layers:
    """Every layer but those of `outer`: embeddings, and what makes the output."""
    reads: dict[str, list[Consumer]] = {}
    for consumer in coupling.reads:
        reads.setdefault(consumer.weight.parameter, []).append(consumer)
    found: list[Layer] = []
    left: dict[str, str] = {}
    for name, parameter in coupling.graph.parameters.items():
        if parameter.kind != "parameter" or len(parameter.type.shape) < 2:
            continue
        if name in outer:
            left[name] = "an embedding, or it makes the output"
            continue
        made = _layer(coupling, name, reads.get(name, []))
        if isinstance(made, Layer):
            found.append(made)
        else:
            left[name] = made
    at = coupling.graph.producers
    return Layers(tuple(sorted(found, key=lambda y: min(at[c.op] for c in y.consumers))), left)


def _layer(coupling: Coupling, name: str, reads: list[Consumer]) -> Layer | str:
    """The layer of a weight, or why it is none."""
    if not reads:
        return "no layer multiplies data with it"
    graph = coupling.graph
    if len({c.op for c in reads}) < len(reads):
        return "it is summed over several dimensions at once"
    dims = {_dim(coupling, consumer) for consumer in reads}
    if None in dims:
        return "the layer computes its weight from it"
    if len(dims) > 1:
        return "it is summed over different dimensions in different places"
    dim = dims.pop()
    assert dim is not None
    by_value = {(c.input, c.input_dim): c for c in reversed(reads)}
    ops = {graph.ops[graph.producers[c.op]].name for c in reads}
    return Layer(
        name, dim, tuple(reversed(by_value.values())), any("conv" in o.lower() for o in ops)
    )


def _dim(coupling: Coupling, consumer: Consumer) -> int | None:
    """The dimension of the stored weight that the consumer sums over."""
    graph, name = coupling.graph, consumer.weight.parameter
    parameter = graph.parameters[name]
    op = graph.ops[graph.producers[consumer.op]]
    if parameter.ref in op.operands:
        return consumer.weight.dim
    if not any(_only_moved(graph, operand, parameter.ref) for operand in op.operands):
        return None
    axis = graph.types[consumer.input].axes[consumer.input_dim]
    dims = [d for d, other in enumerate(coupling.axes(name)) if other == axis]
    return dims[0] if len(dims) == 1 else None


def _only_moved(graph: Graph, value: str, ref: str) -> bool:
    """Whether a value holds entries of the parameter, each as it is."""
    while value != ref:
        at = graph.producers.get(value)
        if at is None:
            return False
        op = graph.ops[at]
        if op.name.split(".")[1].lower() not in MOVES:
            return False
        value = op.operands[0]
    return True


def block_of(weight: str) -> str:
    """The block that a weight belongs to, by its name: up to the first number in it."""
    parts = weight.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: at + 1])
