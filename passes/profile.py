"""What calibration observes, and the protocols of whoever runs the program to observe it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunec.passes.coupling import Consumer, Place

__all__ = ["Array", "Gradients", "Moments", "Slopes", "Stream", "Weights"]

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
"""Parameters by name; opening one may read it from disk."""


@dataclass(frozen=True)
class Moments:
    """Moments of a consumer's inputs X (T tokens, n columns), summed over all calibration tokens.

    `squares` is the sum of X_j^2, shape (n,); `sums` the sum of X_j, shape (n,); `gram` X'X,
    shape (n, n), or None when nobody asked for it; `absolute` the sum of |X_j|, shape (n,). All
    float64.
    """

    tokens: int
    squares: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    gram: npt.NDArray[np.float64] | None = None
    absolute: npt.NDArray[np.float64] | None = None

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """Euclidean norm of each column."""
        return np.sqrt(self.squares)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.tokens + other.tokens,
            self.squares + other.squares,
            self.sums + other.sums,
            _sum(self.gram, other.gram),
            _sum(self.absolute, other.absolute),
        )

    def part(self, start: int, stop: int) -> Moments:
        """The moments of columns `start` to `stop` (exclusive) alone."""
        return Moments(
            self.tokens,
            self.squares[start:stop],
            self.sums[start:stop],
            None if self.gram is None else self.gram[start:stop, start:stop],
            None if self.absolute is None else self.absolute[start:stop],
        )


def _sum(
    a: npt.NDArray[np.float64] | None, b: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64] | None:
    return None if a is None or b is None else a + b


@dataclass(frozen=True)
class Slopes:
    """Products of weights w and slopes g of the loss at one dimension (n indices) of a parameter,
    summed over its other dimensions. All float64.

    With g_s the gradient of sequence s, g their mean and F the mean of g_s^2 (the diagonal of the
    empirical Fisher information): `sums` is the sum of w g_s, shape (sequences, n), signed; `first`
    that of |w g|, `second` that of w^2 F / 2, `mixed` that of |w g - w^2 F / 2|, each shape (n,).
    """

    sums: npt.NDArray[np.float64]
    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]
    mixed: npt.NDArray[np.float64]


class Stream(Protocol):
    """Calibration data on its way through the program.

    `observe` brings all batches to the first of the consumers, which must lie ahead, and returns
    the moments of the inputs of each. `replace` changes weights of what lies ahead, so that
    everything later is observed on the already pruned program.
    """

    def observe(self, consumers: Sequence[Consumer], gram: bool) -> list[Moments]: ...

    def replace(self, weights: Weights) -> None: ...


class Gradients(Protocol):
    """Slopes of a loss of the dense program on the calibration data."""

    def slopes(self, places: Iterable[Place]) -> dict[Place, Slopes]: ...
