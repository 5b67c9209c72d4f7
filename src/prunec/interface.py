"""What pruning changes of a model's inputs and outputs: the caches of keys and values, where the
user lets it (`--allow-interface-change`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prunec.feeds import Array, Feeds
from prunec.ir.axes import Selection, atoms, kept_positions
from prunec.ir.graph import Graph, TensorType
from prunec.passes.masks import touched
from prunec.reports import InterfaceRow

__all__ = ["Interface"]


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a program of which `selections` are left."""

    graph: Graph
    selections: Mapping[str, Selection]

    def rows(self, smaller: Graph) -> tuple[InterfaceRow, ...]:
        """Those that have another shape in the smaller program."""
        pairs = [("input", value.name[1:], value.name) for value in self.graph.inputs]
        pairs += [("output", name, result) for name, result in self.graph.outputs]
        before, after = self.graph.types, smaller.types
        return tuple(
            InterfaceRow(kind, name, before[value].shape, after[value].shape)
            for kind, name, value in pairs
            if before[value].shape != after[value].shape
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
