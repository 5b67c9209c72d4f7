"""What calibration observes, and the protocols of whoever runs the program to observe it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from prunec.ir.diagnostics import fail
from prunec.passes.coupling import Consumer, Place

__all__ = [
    "Array",
    "Gradients",
    "Moments",
    "Sample",
    "Seen",
    "Slopes",
    "Stream",
    "Targets",
    "Weights",
    "checked",
]

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]
"""Parameters by name; opening one may read it from disk."""


@dataclass(frozen=True)
class Moments:
    """Moments of a consumer's inputs X (T tokens, n columns), summed over all calibration tokens.

    `squares` is the sum of X_j^2, shape (n,); `sums` the sum of X_j, shape (n,); `gram` X'X,
    shape (n, n), and `absolute` the sum of |X_j|, shape (n,), or None when nobody asked for them.
    All float64. The Gram matrix may lie in a file, which `prunec.passes.paged` reads in parts.
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

    def grown(self, other: Moments) -> Moments:
        """The same as a sum, in the memory of this one's arrays, which are lost."""
        return Moments(
            self.tokens + other.tokens,
            _onto(self.squares, other.squares),
            _onto(self.sums, other.sums),
            None if self.gram is None or other.gram is None else _onto(self.gram, other.gram),
            None
            if self.absolute is None or other.absolute is None
            else _onto(self.absolute, other.absolute),
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


def _onto(a: npt.NDArray[np.float64], b: Array) -> npt.NDArray[np.float64]:
    a += b
    return a


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


@dataclass(frozen=True)
class Targets:
    """What a consumer should give for its inputs X (T, n): Y (T, m), the output of the dense
    program and, where it is added to a residual stream, what that stream lacks by now.

    `cross` is Y'X, shape (m, n); `sums` the sum of Y, shape (m,); `squares` the sum of its squares.
    """

    cross: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    squares: float

    def __add__(self, other: Targets) -> Targets:
        return Targets(
            self.cross + other.cross, self.sums + other.sums, self.squares + other.squares
        )


@dataclass(frozen=True)
class Sample:
    """Inputs of a consumer over some tokens, and targets where they were asked for."""

    moments: Moments
    targets: Targets | None = None

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.moments + other.moments, self._targets(other))

    def grown(self, other: Sample) -> Sample:
        """The same as a sum, in the memory of this one's moments, which are lost."""
        return Sample(self.moments.grown(other.moments), self._targets(other))

    def _targets(self, other: Sample) -> Targets | None:
        if self.targets is None or other.targets is None:
            return None
        return self.targets + other.targets


@dataclass(frozen=True)
class Seen:
    """What a consumer saw: tokens to learn from, and others to judge by, or None; `total` is the
    two together where somebody has added them up.

    `influence` is 1 - cos between the residual stream before and after the consumer's output has
    joined it, mean over all tokens; None when nobody asked or there is no such stream.
    """

    fit: Sample
    held: Sample | None = None
    influence: float | None = None
    total: Sample | None = None

    @property
    def whole(self) -> Sample:
        if self.total is not None:
            return self.total
        return self.fit if self.held is None else self.fit + self.held

    def __add__(self, other: Seen) -> Seen:
        held = self.held if other.held is None else other.held
        if self.held is not None and other.held is not None:
            held = self.held + other.held
        return Seen(self.fit + other.fit, held, self._mean_influence(other))

    def _mean_influence(self, other: Seen) -> float | None:
        known = [
            (seen.influence, seen.whole.moments.tokens)
            for seen in (self, other)
            if seen.influence is not None
        ]
        tokens = sum(count for _, count in known)
        return sum(value * count for value, count in known) / tokens if tokens else None


def checked(seen: Seen, consumer: Consumer) -> Seen:
    """The same; raises P310 when it is not finite."""
    samples = [sample for sample in (seen.fit, seen.held) if sample is not None]
    if all(np.isfinite(sample.moments.squares).all() for sample in samples):
        return seen
    raise fail(
        "P310",
        "calibration meets values that are not finite",
        where=str(consumer.weight.parameter),
        snippet=f"inputs of {consumer.op}",
        help="the model overflows on these data or its weights are damaged: choose other"
        " calibration data, or run a model in half precision in float32",
    )


class Stream(Protocol):
    """Calibration data on its way through the program.

    `observe` brings all batches to the first of the consumers, which must lie ahead, and returns
    what each of them sees: the Gram matrix when `needs` has `gram`, `targets` and `influence` when
    it has those, some batches apart when it has `held`. `replace` changes weights of what lies
    ahead, so that everything later is observed on the already pruned program; `replaced` holds all
    that were.
    """

    @property
    def replaced(self) -> Weights: ...

    def observe(
        self, consumers: Sequence[Consumer], needs: frozenset[str] = frozenset()
    ) -> list[Seen]: ...

    def replace(self, weights: Weights) -> None: ...


class Gradients(Protocol):
    """Slopes of a loss of the dense program on the calibration data."""

    def slopes(self, places: Iterable[Place]) -> dict[Place, Slopes]: ...
