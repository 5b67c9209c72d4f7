"""Two symmetric matrices whose updates wait until there are enough for one matrix product.

Sweeps over a matrix change all of it at each step, but look at little of it: the blocks on the
diagonal and the columns of one block. Those are kept up to date; the rest follows a panel at a
time, as in blocked factorisations (Golub and Van Loan, Matrix Computations, section 3.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["PANEL", "Pending"]

Matrix = npt.NDArray[np.float64]

PANEL = 96
"""Columns of updates that may wait: wide enough for matrix products, and the panels (three of
n x 96) still fit the processor's cache."""


class Pending:
    """A and S (n, n), of which the first `count * size` rows and columns are blocks of `size`.

    `own_first` and `own_second` (count, size, size) are the current blocks on the diagonals.
    """

    def __init__(self, first: Matrix, second: Matrix, count: int, size: int) -> None:
        self.first, self.second = first, second
        self.size = size
        self._start(count)

    def _start(self, count: int) -> None:
        n, width = len(self.first), -(-PANEL // self.size) * self.size
        self.count, self.used = count, 0
        self.left, self.factor, self.slope = (np.empty((n, width)) for _ in range(3))
        self.own_first = _diagonal(self.first, count, self.size)
        self.own_second = _diagonal(self.second, count, self.size)

    @property
    def full(self) -> bool:
        return self.used == self.left.shape[1]

    def rows(self, block: int) -> slice:
        return slice(block * self.size, (block + 1) * self.size)

    def columns(self, block: int) -> tuple[Matrix, Matrix]:
        """The current columns of a block in A and in S, each (n, size)."""
        own, t = self.rows(block), self.used
        first = self.first[:, own] - self.left[:, :t] @ self.factor[own, :t].T
        second = self.second[:, own] - self.factor[:, :t] @ self.slope[own, :t].T
        second -= self.slope[:, :t] @ self.factor[own, :t].T
        return first, second

    def after(self, left: Matrix, factor: Matrix, slope: Matrix) -> tuple[Matrix, Matrix]:
        """The blocks on the diagonals as they would be after `add`."""
        blocks = (self.count, self.size, self.size)
        rows = self.count * self.size
        left, factor, slope = (x[:rows].reshape(blocks) for x in (left, factor, slope))
        change = _product(factor, slope)
        first = self.own_first - _product(left, factor)
        return first, self.own_second - change - change.transpose(0, 2, 1)

    def add(self, left: Matrix, factor: Matrix, slope: Matrix) -> None:
        """A <- A - left factor', S <- S - factor slope' - slope factor'; each (n, size), and
        left factor' symmetric. Not when the panel is full."""
        here = slice(self.used, self.used + self.size)
        self.left[:, here], self.factor[:, here], self.slope[:, here] = left, factor, slope
        self.used += self.size
        self.own_first, self.own_second = self.after(left, factor, slope)

    def correct(self, block: int, value: Matrix) -> None:
        """Set a block on the diagonal of A that rounding has touched."""
        own, t = self.rows(block), self.used
        self.own_first[block] = value
        self.first[own, own] = value + self.left[own, :t] @ self.factor[own, :t].T

    def settle(self, stays: npt.NDArray[np.bool_]) -> None:
        """Apply what waits, and drop the blocks (count,) that do not stay."""
        t = self.used
        keep = np.ones(len(self.first), dtype=bool)
        keep[: self.count * self.size] = np.repeat(stays, self.size)
        left, factor, slope = (x[keep, :t] for x in (self.left, self.factor, self.slope))
        if not stays.all():
            at = np.ix_(keep, keep)
            self.first, self.second = self.first[at], self.second[at]
        self.first -= left @ factor.T
        change = factor @ slope.T
        self.second -= change
        self.second -= change.T
        self._start(int(stays.sum()))


def _diagonal(matrix: Matrix, count: int, size: int) -> Matrix:
    """The blocks on the diagonal, as a copy."""
    if size == 1:
        return np.diag(matrix)[:count].reshape(-1, 1, 1).copy()
    starts = np.arange(count)[:, None] * size + np.arange(size)
    found: Matrix = matrix[starts[:, :, None], starts[:, None, :]]
    return found


def _product(x: Matrix, y: Matrix) -> Matrix:
    """x y' of each block; entry by entry where blocks are single numbers, which is much faster."""
    found: Matrix = x * y if x.shape[-1] == 1 else x @ y.transpose(0, 2, 1)
    return found
