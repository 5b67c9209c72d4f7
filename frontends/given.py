"""Inputs that one source of calibration data gives, by the names of the model's inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from prunec.frontends.arrays import Array
from prunec.frontends.mixture import Part

__all__ = ["ARRAYS", "MASK", "TOKENS", "Inputs", "Progress", "Reads"]

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do, in tokens."""

TOKENS, MASK = "input_ids", "attention_mask"
ARRAYS = "arrays"
"""What the origin of inputs begins with that were read as arrays."""


@dataclass(frozen=True)
class Inputs:
    """Inputs by name, one row a window in the first dimension, and what to know of them."""

    arrays: dict[str, Array]
    origin: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


class Reads(Protocol):
    """Reads sources for one model."""

    def read(self, part: Part, n: int) -> Inputs:
        """At most `n` windows."""
