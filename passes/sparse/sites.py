"""Layers that read the same values are observed at once, and changed before what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunec.passes.profile import Moments, Stream, Weights
from prunec.passes.sparse.layers import Layer

__all__ = ["Site", "moments_of", "sites"]


@dataclass(frozen=True)
class Site:
    """Layers that multiply the same values, such as those that make queries, keys and values."""

    layers: tuple[Layer, ...]

    def observe(self, stream: Stream, needs: frozenset[str]) -> Moments:
        """Moments of what they read; a layer that is used several times reads all of it."""
        seen = [s.whole.moments for s in stream.observe(self.layers[0].consumers, needs)]
        total = seen[0]
        for other in seen[1:]:
            total = total.grown(other)
        return total


def sites(layers: Sequence[Layer]) -> list[Site]:
    """The layers, in the order of the program, gathered by what they read."""
    found: dict[tuple[tuple[str, int], ...], list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.reads, []).append(layer)
    return [Site(tuple(own)) for own in found.values()]


def moments_of(layer: Layer, weights: Weights, seen: Moments) -> list[Moments]:
    """The moments of each part of the layer's inputs: a grouped convolution has several."""
    width, inputs = weights[layer.weight].shape[layer.dim], len(seen.squares)
    if inputs == width:
        return [seen]
    return [seen.part(start, start + width) for start in range(0, inputs, width)]
