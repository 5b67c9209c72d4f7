"""Matrices that may lie in a file: looked at some rows at a time, so that few are in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices

__all__ = ["blocks", "diagonal", "loaded", "release"]

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]

BLOCK = 8 << 20
"""Bytes of a matrix that are looked at together."""


def blocks(matrix: Array, rows: Indices | None = None) -> Iterator[tuple[slice, Array]]:
    """Some rows of a matrix after the others, and where they lie among `rows` (indices, else all
    of them). What is given is good until the next is asked for."""
    count = len(matrix) if rows is None else len(rows)
    step = max(1, BLOCK // max(1, matrix[:1].nbytes))
    for start in range(0, count, step):
        some = slice(start, min(start + step, count))
        yield some, matrix[some if rows is None else rows[some]]
        release(matrix)


def release(matrix: Array) -> None:
    """Hand back the pages of the file that a matrix lies in; nothing, where it lies in none."""
    base: Any = matrix
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def loaded(matrix: Array) -> Matrix:
    """A copy in memory, in float64."""
    found = np.empty(matrix.shape)
    for rows, block in blocks(matrix):
        found[rows] = block
    return found


def diagonal(matrix: Array) -> Matrix:
    """A copy of the diagonal of a square matrix."""
    found = np.empty(len(matrix))
    for rows, block in blocks(matrix):
        found[rows] = np.diagonal(block, rows.start)
    return found
