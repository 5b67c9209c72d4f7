"""Two symmetric matrices whose updates wait until there are enough for one matrix product.

Sweeps over a matrix change all of it at each step, but look at little of it: the blocks on the
diagonal and the columns of one block. Those are kept up to date; the rest follows a panel at a
time, as in blocked factorisations (Golub and Van Loan, Matrix Computations, section 3.2). All of
it happens in the memory of the two matrices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices
from prunec.passes.definite import PANEL, subtract

__all__ = ["Pending"]

Matrix = npt.NDArray[np.float64]


class Pending:
    """A and S (n, n), of which the last `count * size` rows and columns are blocks of `size`.

    Their memory is used for the work. `own_first` and `own_second` (count, size, size) are the
    current blocks on the diagonals.
    """

    def __init__(self, first: Matrix, second: Matrix, count: int, size: int) -> None:
        self.first, self.second = first, second
        self.size = size
        self._start(count)

    def _start(self, count: int) -> None:
        n, width = len(self.first), -(-PANEL // self.size) * self.size
        self.count, self.used = count, 0
        self.others = n - count * self.size
        self.left, self.factor, self.slope = (np.empty((n, width)) for _ in range(3))
        self.own_first = self._diagonal(self.first)
        self.own_second = self._diagonal(self.second)

    @property
    def full(self) -> bool:
        return self.used == self.left.shape[1]

    def rows(self, block: int) -> slice:
        start = self.others + block * self.size
        return slice(start, start + self.size)

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
        left, factor, slope = (x[self.others :].reshape(blocks) for x in (left, factor, slope))
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

    def settle(self, stays: npt.NDArray[np.bool_]) -> Indices:
        """Apply what waits and drop the blocks (count,) that do not stay; the last ones take
        their places. Gives the old number of each block that is left."""
        count, t = int(stays.sum()), self.used
        order = np.arange(count)
        holes = np.flatnonzero(~stays[:count])
        order[holes] = np.flatnonzero(stays[count:]) + count
        index = np.concatenate([np.arange(self.others), self._spread(order)])
        left, factor, slope = (x[index, :t] for x in (self.left, self.factor, self.slope))
        pairs = self._spread(holes), self._spread(order[holes])
        self.first = _moved(self.first, *pairs, len(index))
        self.second = _moved(self.second, *pairs, len(index))
        subtract(self.first, left, factor)
        both = np.concatenate([factor, slope], axis=1)
        subtract(self.second, both, np.concatenate([slope, factor], axis=1))
        self._start(count)
        return order

    def _spread(self, blocks: Indices) -> Indices:
        """The rows of blocks."""
        inside = np.arange(self.size)
        found: Indices = (self.others + blocks[:, None] * self.size + inside).reshape(-1)
        return found

    def _diagonal(self, matrix: Matrix) -> Matrix:
        """The blocks on the diagonal, as a copy."""
        if self.size == 1:
            return np.diag(matrix)[self.others :].reshape(-1, 1, 1).copy()
        rows = self._spread(np.arange(self.count)).reshape(self.count, self.size)
        found: Matrix = matrix[rows[:, :, None], rows[:, None, :]]
        return found


def _moved(matrix: Matrix, holes: Indices, sources: Indices, size: int) -> Matrix:
    """The front of a matrix once rows and columns from behind have filled its holes."""
    matrix[holes] = matrix[sources]
    matrix[:, holes] = matrix[:, sources]
    return matrix[:size, :size]


def _product(x: Matrix, y: Matrix) -> Matrix:
    """x y' of each block; entry by entry where blocks are single numbers, which is much faster."""
    found: Matrix = x * y if x.shape[-1] == 1 else x @ y.transpose(0, 2, 1)
    return found
