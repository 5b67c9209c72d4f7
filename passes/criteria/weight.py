"""Criteria that look at weights alone, or at nothing."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from prunec.passes.coupling import Coupling, Group
from prunec.passes.profile import Array, Weights
from prunec.passes.score import Observed, Scores, fold, group_shape

__all__ = ["Magnitude", "Random"]


@dataclass(frozen=True)
class Magnitude:
    """Norm of all weights that would leave together: the sum of |w| with `power` 1 (Li et al.,
    ICLR 2017, section 3.1), the Euclidean norm with 2; over the whole group as in DepGraph, CVPR
    2023, eq. 4."""

    power: Literal[1, 2] = 2
    needs: ClassVar[frozenset[str]] = frozenset()

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        total = np.zeros(group_shape(coupling, group))
        for place in group.places:
            if coupling.graph.parameters[place.parameter].kind != "parameter":
                continue
            powers = _powers(weights[place.parameter], place.dim, self.power)
            axis = coupling.axes(place.parameter)[place.dim]
            total = total + fold(powers, axis, group, coupling)
        return total if self.power == 1 else np.sqrt(total)


def _powers(weight: Array, dim: int, power: int, chunk: int = 1 << 18) -> Scores:
    """Sum of |w|^power over all other dimensions, read in slices that the cache holds."""
    rows = max(1, chunk * weight.shape[0] // max(weight.size, 1))
    total = np.zeros(weight.shape[dim])
    buffer = np.empty((rows, *weight.shape[1:]), np.float32)
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows]
        if power == 1 or part.dtype != np.float32:  # else it is read where it lies
            part = buffer[: len(part)]
            part[...] = weight[start : start + rows]
        if dim == 0:
            flat = part.reshape(len(part), -1)
            total[start : start + rows] = _sums(flat, "ij->i", power)
        else:
            shape = (math.prod(part.shape[:dim]), part.shape[dim], -1)
            total += _sums(part.reshape(shape), "ijk->j", power)
    return total


def _sums(part: Array, how: str, power: int) -> Array:
    """Sums as einsum's notation says, without a second buffer of squares."""
    if power == 1:
        total: Array = np.einsum(how, np.abs(part, out=part))
    else:
        entries, kept = how.split("->")
        total = np.einsum(f"{entries},{entries}->{kept}", part, part)
    return total


@dataclass(frozen=True)
class Random:
    """Random scores, reproducible by seed and group name: the baseline to beat."""

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        name = zlib.crc32(group.name.encode())
        generator = np.random.default_rng([self.seed, name])
        return generator.random(group_shape(coupling, group))
