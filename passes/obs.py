"""Optimal Brain Surgeon with blocks: one sweep gives the order of removal and every width's error.

A layer W (m, n) reads inputs with second moments G; H = G + lambda I. Removing a block B of columns
and refitting the others costs at least

    e_B = sum of (W_B (A_BB)^-1) * W_B,    A = H^-1

(Hassibi and Stork, NeurIPS 1993, eq. 5, for blocks as in ZipLM, NeurIPS 2023, eq. 3). The sweep
removes the cheapest block again and again. Needed are only A and S = W'W:

    C = A_:B (A_BB)^-1        A <- A - C A_B:        S <- S - C S_B: - S_:B C' + C S_BB C'

These updates are gathered in panels of columns, as in a blocked Cholesky factorisation with
pivoting: within a panel only the block diagonals of A and S and the columns of the removed block
are brought up to date, and at its end the rest with three matrix products. That is exact, takes
about 4 n^3 operations for all widths, and drops removed columns as it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices

__all__ = ["Quadratic", "Sweep", "damped", "removal_error", "sweep", "update"]

Matrix = npt.NDArray[np.float64]

PANEL = 96
"""Columns removed between two full updates: wide enough for matrix products, and the panels
(three of n x 96) still fit the processor's cache. 1,536 columns take 0.8 s on one core."""

FLOOR = 1e-8
"""The least ridge: below it rounding errors of the inverse show in float64."""


@dataclass(frozen=True)
class Quadratic:
    """The error of one layer: `hessian` H (n, n), positive definite; `outer` W'W (n, n).

    `blocks[i]` are the columns that leave with index i. Blocks are disjoint, of any size; columns
    in none of them always stay.
    """

    hessian: Matrix
    outer: Matrix
    blocks: Sequence[Indices]


@dataclass(frozen=True)
class Sweep:
    """`order` (k,): blocks in the order of their removal; `errors` (k + 1,): the error once so
    many are gone, starting with 0."""

    order: Indices
    errors: Matrix


def damped(gram: Matrix, ridge: float) -> Matrix:
    """H = G + lambda I with lambda = ridge * mean(diag G); the identity when G is zero.

    The ridge is at least `FLOOR`: G is singular whenever there are more columns than tokens.
    """
    scale = float(np.mean(np.diag(gram)))
    if scale <= 0:
        return np.eye(len(gram))
    found: Matrix = gram.astype(np.float64)  # a copy
    found[np.diag_indices(len(gram))] += max(ridge, FLOOR) * scale
    return found


def sweep(problems: Sequence[Quadratic], rows: Indices | None = None) -> Sweep:
    """Remove all blocks one after the other, the one with the least error first.

    Several problems share the numbering of their blocks, and their errors are added. With `rows`
    (k,), the row of each block, every row loses one block before any loses the next, so that the
    rows keep equal counts. Ties go to the block with the lower number.
    """
    count = len(problems[0].blocks)
    assert all(len(p.blocks) == count for p in problems)
    states = [_State(p) for p in problems]
    alive = np.ones(count, dtype=bool)
    turn = np.ones(count, dtype=bool)
    order = np.empty(count, dtype=np.int64)
    errors = np.zeros(count + 1)
    for step in range(count):
        costs = sum((state.costs() for state in states), start=np.zeros(count))
        costs[~(alive & turn)] = np.inf
        block = int(np.argmin(costs))
        order[step] = block
        errors[step + 1] = errors[step] + max(float(costs[block]), 0.0)
        alive[block] = False
        for state in states:
            state.remove(block)
        if rows is not None:
            turn[rows == rows[block]] = False
            if not (alive & turn).any():
                turn[:] = True
    return Sweep(order, errors)


class _State:
    """One problem on its way: what is left of A and S, and the panel of pending updates."""

    def __init__(self, problem: Quadratic) -> None:
        self.size = max((len(b) for b in problem.blocks), default=1)
        self.active = np.arange(len(problem.blocks))
        self.place = np.arange(len(problem.blocks))
        columns = self._columns(problem)
        inverse: Matrix = np.linalg.inv(problem.hessian)
        self.inverse = _padded(inverse, columns, 1.0)
        self.outer = _padded(problem.outer, columns, 0.0)
        self._start()

    def _columns(self, problem: Quadratic) -> Indices:
        """Columns block by block, each filled up to the same size with -1, then all others."""
        table = np.full((len(problem.blocks), self.size), -1)
        for i, block in enumerate(problem.blocks):
            table[i, : len(block)] = block
        others = np.ones(len(problem.outer), dtype=bool)
        others[table[table >= 0]] = False
        return np.concatenate([table.reshape(-1), np.flatnonzero(others)])

    def _start(self) -> None:
        """An empty panel."""
        n, b, k = len(self.inverse), self.size, len(self.active)
        self.alive = np.ones(k, dtype=bool)
        self.used = 0
        width = -(-PANEL // b) * b
        self.left = np.empty((n, width))
        self.shift = np.empty((n, width))
        self.slope = np.empty((n, width))
        self.own_inverse = _diagonal(self.inverse, k, b)
        self.own_outer = _diagonal(self.outer, k, b)

    def costs(self) -> Matrix:
        """Error of removing each block next, by block number; meaningless for those gone."""
        found = np.full(len(self.place), np.inf)
        if self.size == 1:
            costs = (self.own_outer / self.own_inverse)[:, 0, 0]
        else:
            costs = np.trace(np.linalg.solve(self.own_inverse, self.own_outer), axis1=1, axis2=2)
        found[self.active] = costs
        return found

    def remove(self, block: int) -> None:
        b, t, at = self.size, self.used, int(self.place[block])
        own = slice(at * b, (at + 1) * b)
        a = self.inverse[:, own] - self.left[:, :t] @ self.left[own, :t].T
        s = self.outer[:, own] - self.shift[:, :t] @ self.slope[own, :t].T
        s -= self.slope[:, :t] @ self.shift[own, :t].T
        root = _inverse_root(a[own])
        left = a @ root.T
        shift = left @ root
        slope = s - shift @ s[own] / 2
        self.left[:, t : t + b] = left
        self.shift[:, t : t + b] = shift
        self.slope[:, t : t + b] = slope
        self.used = t + b
        self.alive[at] = False
        if self.used == self.left.shape[1]:
            self._flush()
            return
        blocks = (len(self.active), b, b)
        left, shift, slope = (
            x[: len(self.active) * b].reshape(blocks) for x in (left, shift, slope)
        )
        self.own_inverse -= _product(left, left)
        change = _product(shift, slope)
        self.own_outer -= change + change.transpose(0, 2, 1)
        # what is gone: a harmless value, since it is divided by
        self.own_inverse[at] = np.eye(b)

    def _flush(self) -> None:
        """Apply the panel to what is left and drop what is gone."""
        b, t = self.size, self.used
        keep = np.ones(len(self.inverse), dtype=bool)
        keep[: len(self.active) * b] = np.repeat(self.alive, b)
        left, shift, slope = (x[keep, :t] for x in (self.left, self.shift, self.slope))
        at = np.ix_(keep, keep)
        self.inverse = self.inverse[at]
        self.inverse -= left @ left.T
        change = shift @ slope.T
        self.outer = self.outer[at]
        self.outer -= change
        self.outer -= change.T
        self.active = self.active[self.alive]
        self.place[self.active] = np.arange(len(self.active))
        self._start()


def _padded(matrix: Matrix, columns: Indices, diagonal: float) -> Matrix:
    """Rows and columns in the given order; -1 is an empty one with `diagonal` on the diagonal."""
    found: Matrix = matrix[np.ix_(columns, columns)]
    empty = np.flatnonzero(columns < 0)
    found[empty, :] = 0
    found[:, empty] = 0
    found[empty, empty] = diagonal
    return found


def _diagonal(matrix: Matrix, count: int, size: int) -> Matrix:
    """The blocks on the diagonal, (count, size, size), as a copy."""
    if size == 1:
        return np.diag(matrix)[:count].reshape(-1, 1, 1).copy()
    starts = np.arange(count)[:, None] * size + np.arange(size)
    found: Matrix = matrix[starts[:, :, None], starts[:, None, :]]
    return found


def _inverse_root(block: Matrix) -> Matrix:
    """R with R'R the inverse of a small positive definite block."""
    if block.shape == (1, 1):
        return 1 / np.sqrt(block)
    found: Matrix = np.linalg.inv(np.linalg.cholesky(block))
    return found


def _product(x: Matrix, y: Matrix) -> Matrix:
    """x y' of each block."""
    found: Matrix = x * y if x.shape[-1] == 1 else x @ y.transpose(0, 2, 1)
    return found


def removal_error(hessian: Matrix, weight: Matrix, pruned: Indices) -> float:
    """Error of removing the columns `pruned` at once: the least of tr(D H D') over all changes D
    of `weight` (m, n) that bring these columns to zero."""
    inner = np.linalg.inv(hessian)[np.ix_(pruned, pruned)]
    gone = weight[:, pruned]
    return float(np.sum(np.linalg.solve(inner, gone.T).T * gone))


def update(hessian: Matrix, weight: Matrix, pruned: Indices) -> Matrix:
    """`weight` (m, n) with the columns `pruned` at zero and the others at their optimum,
    W_K + W_P H_PK (H_KK)^-1.

    That equals W - W_P (A_PP)^-1 A_P: of the sweep, whatever the order of removal, and the least
    squares solution of `prunec.passes.restore` with the same lambda, since G and H differ on the
    diagonal alone: H_PK = G_PK.
    """
    kept = np.setdiff1d(np.arange(weight.shape[1]), pruned)
    found = np.zeros(weight.shape)
    right = hessian[np.ix_(kept, pruned)] @ weight[:, pruned].T
    inner = hessian[np.ix_(kept, kept)]
    found[:, kept] = weight[:, kept] + np.linalg.solve(inner, right).T
    return found
