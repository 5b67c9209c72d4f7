"""How far a program without some regions is from the whole one, for many sets of regions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prunec.backends.forward import Forward
from prunec.engines.damage import damage_of
from prunec.passes.regions import Region
from prunec.runs.loading import Loaded

__all__ = ["distances"]


@torch.no_grad()
def distances(
    loaded: Loaded, windows: Sequence[Mapping[str, Any]], sets: Sequence[Sequence[Region]]
) -> list[float]:
    """One number for each set; see `prunec.engines.engine.Engine.distances`.

    Windows hold one row each.
    """
    score = damage_of(loaded, windows)
    dense = Forward(loaded.graph, loaded.weights, windows)
    programs = []
    for gone in sets:
        programs.append(Forward(loaded.without(gone).graph, loaded.weights, windows))
        programs[-1].tail.weights = dense.tail.weights  # the same ones, held once
    for window in range(len(windows)):
        score(None, window, dense.result(window))
        for number, program in enumerate(programs):
            score(str(number), window, program.result(window))
    found = [score.found(str(number)) for number in range(len(sets))]
    values = [f.error if math.isnan(f.loss) else f.divergence for f in found]
    return [value if math.isfinite(value) else math.inf for value in values]
