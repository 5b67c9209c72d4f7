"""What calibration observes, and the protocol of whoever runs the program to observe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunec.passes.coupling import Consumer

__all__ = ["Array", "Moments", "Stream", "Weights"]

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
"""Parameters by name; opening one may read it from disk."""


@dataclass(frozen=True)
class Moments:
    """Moments of a consumer's inputs X (T tokens, n columns), summed over all calibration tokens.

    `squares` is the sum of X_j^2, shape (n,); `sums` the sum of X_j, shape (n,); `gram` X'X,
    shape (n, n), or None when nobody asked for it. All float64.
    """

    tokens: int
    squares: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    gram: npt.NDArray[np.float64] | None = None

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """Euclidean norm of each column."""
        return np.sqrt(self.squares)

    def __add__(self, other: Moments) -> Moments:
        gram = None if self.gram is None or other.gram is None else self.gram + other.gram
        return Moments(
            self.tokens + other.tokens,
            self.squares + other.squares,
            self.sums + other.sums,
            gram,
        )


class Stream(Protocol):
    """Calibration data on its way through the program.

    `observe` brings all batches to the first of the consumers, which must lie ahead, and returns
    the moments of the inputs of each. `replace` changes weights of what lies ahead, so that
    everything later is observed on the already pruned program.
    """

    def observe(self, consumers: Sequence[Consumer], gram: bool) -> list[Moments]: ...

    def replace(self, weights: Weights) -> None: ...
