"""Weights of which some rows can be had without the others."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from prunec.ir.axes import Indices
from prunec.passes.profile import Array, Weights

__all__ = ["Parted", "is_parted"]


@runtime_checkable
class Parted(Protocol):
    """A store that has more to offer than whole weights."""

    def parted(self, name: str) -> bool:
        """Whether rows of this one cost no more than they hold."""

    def rows(self, name: str, where: slice | Indices) -> Array:
        """These indices of the first dimension, as a copy; in rising order, where they are
        numbers."""


def is_parted(weights: Weights, name: str) -> bool:
    return isinstance(weights, Parted) and weights.parted(name)
