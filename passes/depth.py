"""Orders in which whole regions go, by their published names.

What the orders go by is measured elsewhere: how much a region changes the stream that it lies on,
or what the program loses without some regions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prunec.passes.regions import Region

__all__ = ["DEPTHS", "Ends", "angle", "angular", "by_influence", "greedy", "overlapping"]

DEPTHS = ("sleb", "shortgpt", "angular", "evopress")
"""Names of the orders. `sleb`: Song et al., SLEB, ICML 2024, algorithm 1 (the region whose loss
costs least goes, then all others are measured again; all of them on a few windows, and on all
windows those that did best). `shortgpt`: Men et al., ShortGPT, 2024, eq.
1 (block influence, one minus the cosine between a block's input and output, mean over tokens).
`angular`: Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024, eq. 7 (the
angle between the input and the output of a window of layers, at the last token), without its
healing. `evopress`: Sieberling et al., EvoPress, ICML 2025, algorithm 1 (see `passes.evopress`)."""

Floats = npt.NDArray[np.float64]
Met = Callable[[Sequence[Region]], bool]
"""Whether the target holds without these regions."""


@dataclass
class Ends:
    """`influence` of each region by name: one minus the cosine of its input and output, mean over
    tokens. `vectors` of each end by value, at the last position of each window, shape (windows,
    features)."""

    influence: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)


def by_influence(
    regions: Sequence[Region], influence: Mapping[str, float], met: Met
) -> list[Region] | None:
    """The least regions that meet the target, of least influence first; None when all do not."""
    chosen: list[Region] = []
    for region in sorted(regions, key=lambda r: influence[r.name]):
        if overlapping(region, chosen):
            continue
        chosen.append(region)
        if met(chosen):
            return chosen
    return None


def angular(
    regions: Sequence[Region], vectors: Mapping[str, Floats], met: Met
) -> list[Region] | None:
    """The shortest window of neighbours that meets the target, of those the one of least angle.

    `vectors` holds the stream at the ends of every region, shape (tokens, features).
    """
    for length in range(1, len(regions) + 1):
        windows = list(_windows(regions, length))
        windows.sort(key=lambda w: angle(vectors[w[0].entry], vectors[w[-1].exit]))
        chosen = next((w for w in windows if met(w)), None)
        if chosen is not None:
            return chosen
    return None


def angle(one: Floats, other: Floats) -> float:
    """Mean angle between the rows of two arrays, in half turns."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    cosine = (one * other).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)).mean() / np.pi)


def _windows(regions: Sequence[Region], length: int) -> list[list[Region]]:
    """Runs of so many regions, each beginning where the one before it ends."""
    after = {region.entry: region for region in regions}
    found = []
    for first in regions:
        run = [first]
        while len(run) < length and run[-1].exit in after:
            run.append(after[run[-1].exit])
        if len(run) == length:
            found.append(run)
    return found


def greedy(
    regions: Sequence[Region],
    losses: Callable[[Sequence[Region], Sequence[Region]], Mapping[str, float]],
    met: Met,
) -> list[Region] | None:
    """The region whose removal costs least goes, one after the other, until the target is met.

    `losses(gone, candidates)` measures the program without `gone` and each candidate.
    """
    chosen: list[Region] = []
    while not (chosen and met(chosen)):
        left = [r for r in regions if not overlapping(r, chosen)]
        if not left:
            return None
        found = losses(chosen, left)
        chosen.append(min(left, key=lambda r: found[r.name]))
    return chosen


def overlapping(region: Region, others: Sequence[Region]) -> bool:
    """Whether a region is one of the others, part of one, or has one as its part."""
    return any(
        region.name == other.name or region.name in other.parts or other.name in region.parts
        for other in others
    )
