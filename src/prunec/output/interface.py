"""What pruning changes of a model's inputs and outputs: the caches of keys and values, where the
user lets it (`--allow-interface-change`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunec.ir.axes import Selection, atoms, kept_positions
from prunec.ir.graph import Graph, TensorType
from prunec.measuring.feeds import Array, Feeds
from prunec.passes.masks import touched
from prunec.reports.data import InterfaceRow

__all__ = ["Interface"]


def _shapes(graph: Graph) -> dict[tuple[str, str], tuple[int | str, ...]]:
    shapes = {("input", value.name[1:]): value.type.shape for value in graph.inputs}
    types = graph.types
    return shapes | {("output", name): types[value].shape for name, value in graph.outputs}


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a program of which `selections` are left."""

    graph: Graph
    selections: Mapping[str, Selection]

    def rows(self, smaller: Graph) -> tuple[InterfaceRow, ...]:
        """Those that have another shape in the smaller program, or that it lacks."""
        before, after = _shapes(self.graph), _shapes(smaller)
        return tuple(
            InterfaceRow(kind, name, shape, after.get((kind, name)))
            for (kind, name), shape in before.items()
            if after.get((kind, name)) != shape
        )

    def inputs(self, feeds: Mapping[str, Array]) -> Feeds:
        """Inputs of the dense program as the smaller one takes them."""
        types = {value.name[1:]: value.type for value in self.graph.inputs}
        return {name: self._cut(array, types[name]) for name, array in feeds.items()}

    def output(self, name: str, array: Array) -> Array:
        """An output of the dense program as the smaller one gives it."""
        return self._cut(array, self.graph.types[dict(self.graph.outputs)[name]])

    def _cut(self, array: Array, type_: TensorType) -> Array:
        if not touched(type_, self.selections):
            return array
        for dim, axis in enumerate(type_.axes):
            if any(atom.name in self.selections for atom in atoms(axis)):
                array = array.take(kept_positions(axis, self.selections), dim)
        return array
