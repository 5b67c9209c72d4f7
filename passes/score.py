"""What a criterion is, and how values per index of an axis are folded onto a group.

A criterion judges each index of a group: by its weights, by what its consumers read, or by the
slope of the loss. Values come per column of a consumer or per index of a place and are folded onto
the group's atom along its axis, so one definition serves neurons, heads, channels and experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Axis, Indices, positions
from prunec.passes.coupling import Consumer, Coupling, Group, Place
from prunec.passes.profile import Moments, Slopes, Weights

__all__ = [
    "NEEDS",
    "Choosing",
    "Chosen",
    "Criterion",
    "Curved",
    "Lost",
    "Observed",
    "Ranked",
    "Scores",
    "Sloped",
    "Watching",
    "fold",
    "folded",
    "group_shape",
    "lost_score",
    "members",
]

Scores = npt.NDArray[np.float64]
Observed = Sequence[tuple[Consumer, Moments]]

NEEDS = ("squares", "sums", "absolute", "gram", "gradients")
"""What a criterion may ask profiling for: fields of `Moments`, and the slopes of the loss."""


class Criterion(Protocol):
    """Scores shape (size,), or (parent size, size) for a group with a parent; higher stays."""

    @property
    def needs(self) -> frozenset[str]:
        """What must be observed before scoring, out of `NEEDS`; empty: the weights alone."""

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        """`observed` are the moments of the inputs of the group's own consumers."""


@dataclass(frozen=True)
class Ranked:
    """Scores and what each count costs: `curve[c]` is the error when c indices stay (under each
    index of the parent), shape (size + 1,), zero at full size and falling with c; None where no
    consumer tells."""

    scores: Scores
    curve: Scores | None


@runtime_checkable
class Curved(Protocol):
    """A criterion that knows the error at every count, for allocators."""

    def rank(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Ranked: ...


@dataclass(frozen=True)
class Lost:
    """What is lost when so many indices stay (under each index of the parent), shape (size + 1,),
    zero at full size: `kind` is `error`, as a curve has it, or `score`, the share of all scores."""

    kind: str
    at: Scores


@dataclass(frozen=True)
class Chosen:
    """What stays, ascending, shape (count,) or (parent size, count), and what other counts lose."""

    kept: Indices
    lost: Lost


@runtime_checkable
class Choosing(Protocol):
    """A criterion whose choice at one count is not always a part of that at a larger one."""

    def choose(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed, count: int
    ) -> Chosen:
        """What stays at this count."""


@runtime_checkable
class Sloped(Protocol):
    """A criterion that looks at gradients, which are measured once, before anything is pruned."""

    def with_slopes(self, slopes: Mapping[Place, Slopes]) -> Criterion:
        """The same criterion with the slopes of all places of the groups to score."""


@runtime_checkable
class Watching(Protocol):
    """A criterion that looks at inputs of other layers than the group's consumers too."""

    def watches(self, coupling: Coupling, group: Group) -> tuple[Consumer, ...]:
        """Layers to observe beside the consumers; they may lie ahead of them."""


def lost_score(scores: Scores) -> Lost:
    """The share of all scores that the lowest ones are. Those below zero count from the lowest."""
    above = np.sort(scores - min(0.0, float(scores.min())), axis=-1)
    gone = np.cumsum(above.reshape(-1, scores.shape[-1]).sum(axis=0))
    at = np.concatenate([[0.0], gone])[::-1]
    return Lost("score", at / at[0] if at[0] > 0 else at.copy())


def group_shape(coupling: Coupling, group: Group) -> tuple[int, ...]:
    """Shape of the group's scores."""
    if group.parent is None:
        return (group.size,)
    return (coupling.sizes[group.parent], group.size)


def members(axis: Axis, group: Group) -> Indices:
    """For each index of `axis` the flat index into the group's scores, or -1; shape (k, n).

    k is 1 unless the atom stands several times in one product, as for both halves of a pair.
    """
    where = positions(axis, group.name)
    if group.parent is None:
        return where
    outer = np.maximum(positions(axis, group.parent)[0], 0)
    return np.where(where >= 0, outer * group.size + where, -1)


def folded(values: Scores, where: Indices, shape: tuple[int, ...]) -> Scores:
    """Sum values per column (n,) over what belongs to each index of a group; `where` (k, n)."""
    total = np.zeros(int(np.prod(shape)))
    for row in where:
        inside = row >= 0
        total += np.bincount(row[inside], weights=values[inside], minlength=len(total))
    return total.reshape(shape)


def fold(values: Scores, axis: Axis, group: Group, coupling: Coupling) -> Scores:
    """Sum values given per index of `axis` over what belongs to each index of the group."""
    return folded(values, members(axis, group), group_shape(coupling, group))
