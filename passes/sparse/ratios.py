"""How much of each layer becomes zero: the same of all, by outliers, or by one threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.passes.profile import Moments, Stream, Weights
from prunec.passes.sparse.layers import Layer, block_of
from prunec.passes.sparse.patterns import count_of
from prunec.passes.sparse.sites import moments_of, sites

__all__ = ["RATIOS", "one_threshold", "outlier_shares", "owl", "uniform"]

RATIOS = ("uniform", "owl", "global")

OUTLIER = 5.0
"""An outlier is a score above so many times the mean (OWL's M)."""

SPREAD = 0.08
"""How far a block's sparsity may be from the mean (OWL's lambda)."""

HALF = 16
"""Bits of a float32 that are counted at a time."""


def uniform(layers: Sequence[Layer], zeros: float) -> dict[str, float]:
    return {layer.weight: zeros for layer in layers}


def owl(
    outliers: Mapping[str, float],
    layers: Sequence[Layer],
    sizes: Mapping[str, int],
    zeros: float,
    spread: float = SPREAD,
) -> dict[str, float]:
    """Less of blocks with more outliers (Yin et al., OWL, ICML 2024, arXiv 2310.05175, section 4).

    With D_b the share of outliers in block b, what stays of it is 2 lambda (D_b - min D) / (max D -
    min D), moved so that the mean is what was asked for. Departure: the mean weighs blocks by
    their entries, so that unlike blocks meet the target too.
    """
    blocks = {layer.weight: block_of(layer.weight) for layer in layers}
    lowest, highest = min(outliers.values()), max(outliers.values())
    reach = (highest - lowest) or 1.0
    raised = {b: 2 * spread * (d - lowest) / reach for b, d in outliers.items()}
    total = sum(sizes[w] for w in blocks)
    mean = sum(sizes[w] * raised[b] for w, b in blocks.items()) / total
    return {w: min(max(zeros - raised[b] + mean, 0.0), 1.0) for w, b in blocks.items()}


def outlier_shares(
    layers: Sequence[Layer],
    weights: Weights,
    stream: Stream,
    step: Callable[[], None] = lambda: None,
    times: float = OUTLIER,
) -> dict[str, float]:
    """For each block the share of entries with |W_ij| ||X_j|| above `times` their mean over the
    block, on the program that the stream runs."""
    norms: dict[str, list[Moments]] = {}
    for site in sites(layers):
        seen = site.observe(stream, frozenset())
        norms |= {layer.weight: moments_of(layer, weights, seen) for layer in site.layers}
        step()
    blocks: dict[str, list[Layer]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer.weight), []).append(layer)
    return {name: _outliers(own, weights, norms, times) for name, own in blocks.items()}


def _outliers(
    own: Sequence[Layer], weights: Weights, norms: Mapping[str, list[Moments]], times: float
) -> float:
    def scores(layer: Layer) -> npt.NDArray[np.float64]:
        moments = norms[layer.weight]
        table = layer.table(weights[layer.weight], sum(len(m.squares) for m in moments))
        return np.abs(table) * np.stack([m.norms for m in moments])[:, None, None]

    total, count = 0.0, 0
    for layer in own:
        found = scores(layer)
        total, count = total + float(found.sum()), count + found.size
    limit = times * total / count
    return sum(int(np.count_nonzero(scores(layer) > limit)) for layer in own) / count


def one_threshold(layers: Sequence[Layer], weights: Weights, zeros: float) -> dict[str, float]:
    """What one threshold for the magnitudes of all layers makes of each.

    The bits of a positive float grow with it, so the threshold is found exactly by counting them,
    the upper half first. Entries that equal it (in bfloat16 there are many) are shared out in
    proportion.
    """
    total = sum(weights[layer.weight].size for layer in layers)
    count = count_of(total, zeros)
    upper = _counted(layers, weights, lambda bits: bits >> HALF)
    high, below = _reached(upper, count)
    lower = _counted(layers, weights, lambda bits: bits[bits >> HALF == high] & ((1 << HALF) - 1))
    low, within = _reached(lower, count - below)
    limit = np.uint32(high << HALF | low)
    missing, ties = count - below - within, int(lower[low])
    found: dict[str, float] = {}
    seen = 0
    for layer in layers:
        bits = _bits(weights[layer.weight])
        own = int(np.count_nonzero(bits == limit))
        taken = (seen + own) * missing // ties - seen * missing // ties
        seen += own
        found[layer.weight] = (int(np.count_nonzero(bits < limit)) + taken) / bits.size
    return found


def _counted(
    layers: Sequence[Layer],
    weights: Weights,
    half: Callable[[npt.NDArray[np.uint32]], npt.NDArray[np.integer[Any]]],
) -> npt.NDArray[np.int64]:
    counts = np.zeros(1 << HALF, dtype=np.int64)
    for layer in layers:
        counts += np.bincount(half(_bits(weights[layer.weight])), minlength=1 << HALF)
    return counts


def _bits(weight: npt.NDArray[np.generic]) -> npt.NDArray[np.uint32]:
    return np.abs(weight.astype(np.float32)).reshape(-1).view(np.uint32)


def _reached(counts: npt.NDArray[np.int64], count: int) -> tuple[int, int]:
    """The first bin with which so many are counted, and how many come before it."""
    sums = np.cumsum(counts)
    at = int(np.searchsorted(sums, count))
    return at, int(sums[at] - counts[at])
