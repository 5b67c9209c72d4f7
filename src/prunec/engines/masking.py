"""Weights with zeros where a plan prunes them, for programs that are not rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prunec.ir.axes import Selection, kept_positions
from prunec.ir.graph import Graph
from prunec.passes.coupling import Coupling, Group, Place
from prunec.passes.profile import Array, Weights

__all__ = ["LOGITS", "MaskedWeights", "gives_logits"]

LOGITS = "logits"


def gives_logits(graph: Graph) -> bool:
    """Whether the program gives distributions, of next tokens or classes."""
    shapes = {name: graph.types[value].shape for name, value in graph.outputs}
    return LOGITS in shapes and shapes[LOGITS][-1] != 1


class MaskedWeights(Mapping[str, Array]):
    """Weights that the selections prune, with zeros there, made when asked for."""

    def __init__(
        self,
        coupling: Coupling,
        base: Weights,
        groups: Sequence[Group],
        selections: Mapping[str, Selection],
    ) -> None:
        self.coupling, self.base, self.selections = coupling, base, selections
        self.dims: dict[str, set[int]] = {}
        for group in groups:
            if group.name not in selections:
                continue
            for place in _places(coupling, group):
                self.dims.setdefault(place.parameter, set()).add(place.dim)

    def __getitem__(self, name: str) -> Array:
        array = np.array(self.base[name])
        for dim in sorted(self.dims[name]):
            kept = kept_positions(self.coupling.axes(name)[dim], self.selections)
            gone = np.setdiff1d(np.arange(array.shape[dim]), kept)
            array[(slice(None),) * dim + (gone,)] = 0
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.dims)

    def __len__(self) -> int:
        return len(self.dims)


def _places(coupling: Coupling, group: Group) -> Iterator[Place]:
    if group.consumers:
        yield from (consumer.weight for consumer in group.consumers)
        return
    for place in group.places:
        if coupling.graph.parameters[place.parameter].kind == "parameter":
            yield place
