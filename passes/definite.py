"""Symmetric positive definite matrices, worked on in their own memory.

The usual routines copy what they are given, and a copy of the largest matrix of a run is what
memory does not have. These go through blocks of columns (Golub and Van Loan, Matrix Computations,
section 4.2), with most of the work in matrix products, and without pivoting, which such a matrix
does not need.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["PANEL", "invert", "solve", "subtract", "upper_factor"]

Matrix = npt.NDArray[np.float64]

PANEL = 96
"""Columns of a block: wide enough for matrix products, and panels of n x 96 fit the processor's
cache."""

WORK = 8 << 20
"""Bytes of a product that is computed at a time, so that no second matrix is needed."""


def invert(matrix: Matrix) -> Matrix:
    """The inverse. Blocks of columns are swept out one after the other (Goodnight, The American
    Statistician 1979)."""
    for own, _ in _panels(len(matrix)):
        inner = np.linalg.inv(matrix[own, own])
        columns = matrix[:, own].copy()
        factor = columns @ inner
        subtract(matrix, factor, columns)
        matrix[:, own] = factor
        matrix[own] = factor.T
        matrix[own, own] = -inner
    return np.negative(matrix, out=matrix)


def solve(matrix: Matrix, right: Matrix) -> Matrix:
    """X (m, n) with X `matrix` = `right`, in the memory of `right`; `matrix` is lost.

    With L D L' = matrix, block by block: first X L D, then the rest of the way back.
    """
    for own, rest in _panels(len(matrix)):
        across = matrix[own, rest].copy()
        matrix[own, own] = np.linalg.inv(matrix[own, own])
        matrix[own, rest] = factor = matrix[own, own] @ across
        _subtract_upper(matrix[rest, rest], across, factor)
        subtract(right[:, rest], right[:, own], factor.T)
    for own, rest in reversed(list(_panels(len(matrix)))):
        right[:, own] = right[:, own] @ matrix[own, own] - right[:, rest] @ matrix[own, rest].T
    return right


def upper_factor(matrix: Matrix) -> Matrix:
    """U, upper triangular, with U'U the inverse: from the Cholesky factor of the matrix read
    backwards."""
    backwards = matrix[::-1, ::-1]
    _cholesky(backwards)
    _invert_lower(backwards)
    return matrix


def subtract(matrix: Matrix, left: Matrix, right: Matrix) -> None:
    """matrix -= left right', a few rows at a time."""
    step = _step(matrix.shape[1])
    work = np.empty((min(step, len(matrix)), matrix.shape[1]))
    for start in range(0, len(matrix), step):
        rows = matrix[start : start + step]
        rows -= np.matmul(left[start : start + step], right.T, out=work[: len(rows)])


def _subtract_upper(matrix: Matrix, left: Matrix, right: Matrix) -> None:
    """matrix -= left' right on and above the diagonal, and in the whole of each panel on it."""
    step = _step(len(matrix))
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        subtract(matrix[rows, start:], left[:, rows].T, right[:, start:].T)


def _cholesky(matrix: Matrix) -> None:
    """L, lower triangular, with L L' the matrix."""
    for own, rest in _panels(len(matrix)):
        matrix[own, own] = factor = np.linalg.cholesky(matrix[own, own])
        matrix[rest, own] = below = matrix[rest, own] @ np.linalg.inv(factor).T
        matrix[own, rest] = 0
        # the lower half is the upper one of the matrix turned over
        _subtract_upper(matrix[rest, rest].T, below.T, below.T)


def _invert_lower(matrix: Matrix) -> None:
    """The inverse of a lower triangular matrix."""
    for own, rest in reversed(list(_panels(len(matrix)))):
        matrix[own, own] = np.linalg.inv(matrix[own, own])
        below = matrix[rest, own] @ matrix[own, own]
        inner, found = matrix[rest, rest], matrix[rest, own]
        step = _step(len(inner))
        for start in range(0, len(inner), step):  # a matrix read backwards is copied for products
            stop = min(start + step, len(inner))
            found[start:stop] = -(inner[start:stop, :stop] @ below[:stop])


def _panels(size: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of columns, and what comes after each."""
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        yield slice(start, stop), slice(stop, size)


def _step(width: int) -> int:
    """Rows at a time: whole panels."""
    return max(1, WORK // (8 * PANEL * max(1, width))) * PANEL
