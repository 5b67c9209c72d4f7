"""Criteria: how much each index of a group matters.

A criterion gives scores per column of a consumer, or per index of a place; both are folded onto
the group's atom along its axis, so one definition serves neurons, heads, channels and experts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Axis, positions
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.profile import Array, Moments, Weights

__all__ = ["CRITERIA", "Criterion", "Magnitude", "Random", "Scores", "Wanda", "fold"]

Scores = npt.NDArray[np.float64]
Observed = Sequence[tuple[Consumer, Moments]]


class Criterion(Protocol):
    """Scores shape (size,), or (parent size, size) for a group with a parent; higher stays."""

    @property
    def calibrated(self) -> bool:
        """Whether the scores need observed activations."""

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores: ...


def fold(values: Scores, axis: Axis, group: Group, coupling: Coupling) -> Scores:
    """Sum values given per index of `axis` over what belongs to each index of the group."""
    total = _empty(coupling, group).reshape(-1)
    for where in positions(axis, group.name):
        inside = where >= 0
        at = where[inside]
        if group.parent is not None:
            at = np.maximum(positions(axis, group.parent)[0][inside], 0) * group.size + at
        total = total + np.bincount(at, weights=values[inside], minlength=len(total))
    return total.reshape(_empty(coupling, group).shape)


def _empty(coupling: Coupling, group: Group) -> Scores:
    if group.parent is None:
        return np.zeros(group.size)
    return np.zeros((coupling.by_name[group.parent].size, group.size))


def _except(weight: Array, dim: int) -> tuple[int, ...]:
    return tuple(d for d in range(weight.ndim) if d != dim)


@dataclass(frozen=True)
class Magnitude:
    """Euclidean norm of all weights that would leave together (Li et al., ICLR 2017, with the
    norm taken over the whole group as in DepGraph, CVPR 2023, eq. 4)."""

    calibrated: bool = False

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        total = _empty(coupling, group)
        for place in group.places:
            if coupling.graph.parameters[place.parameter].kind != "parameter":
                continue
            weight = weights[place.parameter]
            squares = _squares(weight, place.dim)
            axis = coupling.axes(place.parameter)[place.dim]
            total = total + fold(squares, axis, group, coupling)
        return np.sqrt(total)


def _squares(weight: Array, dim: int, chunk: int = 1 << 22) -> Scores:
    """Sum of squares over all other dimensions, read in slices of bounded size."""
    rows = max(1, chunk * weight.shape[0] // max(weight.size, 1))
    total = np.zeros(weight.shape[dim])
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows].astype(np.float32)
        found = np.einsum("...,...->...", part, part).sum(_except(part, dim), dtype=np.float64)
        if dim == 0:
            total[start : start + rows] = found
        else:
            total += found
    return total


@dataclass(frozen=True)
class Random:
    """Random scores, reproducible by seed and group name: the baseline to beat."""

    seed: int = 0
    calibrated: bool = False

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        shape = _empty(coupling, group).shape
        name = zlib.crc32(group.name.encode())
        return np.random.default_rng([self.seed, name]).random(shape)


@dataclass(frozen=True)
class Wanda:
    """Column score sum_i |W_ij| * ||X_j|| of the consumers (Sun et al., ICLR 2024, eq. 1, summed
    over the column as in FASP, arXiv 2501.09412, section 3.2).

    A group that no layer consumes (the inside of query and key heads) falls back to magnitude.
    """

    calibrated: bool = True

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        if not observed:
            return Magnitude().score(coupling, group, weights, observed)
        total = _empty(coupling, group)
        for consumer, moments in observed:
            place = consumer.weight
            weight = weights[place.parameter]
            axis = coupling.axes(place.parameter)[place.dim]
            sums = np.abs(weight.astype(np.float32)).sum(_except(weight, place.dim), dtype=float)
            norms = _spread(moments.norms, len(sums))
            total = total + fold(sums * norms, axis, group, coupling)
        return total


def _spread(norms: Scores, size: int) -> Scores:
    """Norms by input channel for a weight whose dimension lacks the group factor (grouped
    convolution): the mean over the convolution's groups."""
    return norms if len(norms) == size else norms.reshape(-1, size).mean(0)


CRITERIA: Mapping[str, type] = {"magnitude": Magnitude, "random": Random, "wanda": Wanda}
"""Criteria by the names that `--method` takes."""
