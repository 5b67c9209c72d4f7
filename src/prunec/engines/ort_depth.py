"""Look at the regions of an ONNX file with ONNX Runtime alone: what the model loses without each,
and how much each changes the stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.backends.ort_detour import Detours
from prunec.backends.ort_program import Array, OrtProgram
from prunec.engines.engine import Batches
from prunec.engines.ort_distance import Distance
from prunec.passes.depth import Ends
from prunec.passes.profile import Weights
from prunec.passes.regions import Region

__all__ = ["distances", "observe_ends"]


def distances(
    program: OrtProgram,
    weights: Weights,
    windows: Batches,
    sets: Sequence[Sequence[Region]],
    step: Callable[[], None],
    logits: bool,
) -> list[float]:
    """How far the outputs without each set of regions are from those of the whole model; infinite
    where that is no number. Outputs that go are not compared; `step` is called for every set and
    window."""
    whole = Detours(program, ())
    without = [Detours(program, gone) for gone in sets]
    totals = [Distance(logits) for _ in sets]
    for window in windows:
        dense = whole.run(window, weights)
        for smaller, total in zip(without, totals, strict=True):
            found = smaller.run(window, weights)
            total.add({output: dense[output] for output in found}, found)
            step()
    means = [total.mean() for total in totals]
    return [mean if math.isfinite(mean) else math.inf for mean in means]


def observe_ends(
    program: OrtProgram,
    weights: Weights,
    windows: Sequence[Mapping[str, Any]],
    regions: Sequence[Region],
    features: Callable[[str], int],
    step: Callable[[], None],
) -> Ends:
    """The ends of the regions on windows of one row each; `features` tells which dimension of a
    value is not a token's place, `step` is called for each region."""
    names = list(dict.fromkeys(name for r in regions for name in (r.entry, r.exit)))
    stop = max(program.position(name) for name in names) + 1
    totals, tokens = dict.fromkeys((r.name for r in regions), 0.0), 0
    last: dict[str, list[Array]] = {name: [] for name in names}
    stretch = None
    for window in windows:
        feeds = {name: np.asarray(value) for name, value in window.items()}
        stretch = stretch or program.stretch(0, stop, [name[1:] for name in names], feeds)
        found = stretch.run(feeds, weights)
        rows = {name: _rows(found[name[1:]], features(name)) for name in names}
        for name in names:
            last[name].append(rows[name][-1])
        for region in regions:
            totals[region.name] += float(_change(rows[region.entry], rows[region.exit]).sum())
        tokens += len(rows[names[0]])
    for _ in regions:
        step()
    influence = {name: total / tokens for name, total in totals.items()}
    return Ends(influence, {name: np.stack(vectors) for name, vectors in last.items()})


def _rows(value: Array, dim: int) -> npt.NDArray[np.float64]:
    """One vector for each position: (positions, features)."""
    moved = np.moveaxis(value, dim, -1)
    return moved.reshape(-1, moved.shape[-1]).astype(np.float64)


def _change(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> Array:
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    alike = (before * after).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return np.asarray(1 - alike)
