"""Criteria that look at the inputs of the consumers, column by column.

A group that no layer consumes (the inside of query and key heads) falls back to magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from prunec.passes.coupling import Coupling, Group
from prunec.passes.criteria.weight import Magnitude
from prunec.passes.profile import Moments, Weights
from prunec.passes.readers import Reader, readers
from prunec.passes.score import Observed, Scores, folded, group_shape

__all__ = ["Activation", "Fluctuation", "Wanda"]


@dataclass(frozen=True)
class Wanda:
    """Column score sum_i |W_ij| * ||X_j|| of the consumers (Sun et al., ICLR 2024, eq. 1, summed
    over the column as in FASP, arXiv 2501.09412, section 3.2, and in Wanda-sp, the baseline of
    FLAP, AAAI 2024)."""

    needs: ClassVar[frozenset[str]] = frozenset({"squares"})

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        return _summed(self, coupling, group, weights, observed)

    def column(self, reader: Reader) -> Scores:
        return reader.absolute() * reader.moments.norms


@dataclass(frozen=True)
class Fluctuation:
    """Sample variance of an input channel times the squared norm of the weights that read it,
    var(X_j) * ||W_j||^2 (An et al., FLAP, AAAI 2024: structured fluctuation metric; its sections
    have no numbers).

    FLAP standardises the scores of each layer afterwards (adaptive structure search), which is
    the allocator's part here. Departures: the variance is taken over all calibration tokens,
    where FLAP's code updates it sequence by sequence; a head has the sum of its columns.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"squares", "sums"})

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        return _summed(self, coupling, group, weights, observed)

    def column(self, reader: Reader) -> Scores:
        return variance(reader.moments) * reader.squares()


def variance(moments: Moments) -> Scores:
    """Sample variance of each column; rounding never makes it negative."""
    tokens = max(moments.tokens, 2)
    spread: Scores = np.maximum(moments.squares - moments.sums**2 / tokens, 0) / (tokens - 1)
    return spread


def _summed(
    criterion: Wanda | Fluctuation,
    coupling: Coupling,
    group: Group,
    weights: Weights,
    observed: Observed,
) -> Scores:
    """Column scores of all consumers, summed over what belongs to each index."""
    found = readers(coupling, group, weights, observed)
    if not found:
        return Magnitude().score(coupling, group, weights, observed)
    total = np.zeros(group_shape(coupling, group))
    for reader in found:
        total += folded(criterion.column(reader), reader.where, total.shape)
    return total


@dataclass(frozen=True)
class Activation:
    """Size of the activations that the consumers read: the mean of |X_j|, or the norm ||X_j||
    (Minitron, Muralidharan et al., NeurIPS 2024, section 2.2). A head has the L2 norm over its
    columns. Several consumers of one value count once.

    Departure: both are taken over all tokens at once, where the paper chooses one aggregation
    over the positions of a sequence and another over sequences.
    """

    norm: Literal["mean", "l2"] = "l2"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"absolute" if self.norm == "mean" else "squares"})

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        found = readers(coupling, group, weights, observed)
        if not found:
            return Magnitude().score(coupling, group, weights, observed)
        total = np.zeros(group_shape(coupling, group))
        for reader in {reader.source: reader for reader in found}.values():
            total += folded(self._squares(reader.moments), reader.where, total.shape)
        return np.sqrt(total)

    def _squares(self, moments: Moments) -> Scores:
        if self.norm == "l2":
            return moments.squares
        assert moments.absolute is not None, "the sum of |X| was not asked for"
        mean: Scores = moments.absolute / max(moments.tokens, 1)
        return mean**2
