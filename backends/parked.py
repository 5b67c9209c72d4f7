"""Matrices that wait in a file: of a Gram matrix there is one in memory, the one that is summed."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["parked"]

Array = npt.NDArray[Any]

SMALL = 1 << 20
"""Bytes that are not worth a file."""


def parked(matrix: Array) -> Array:
    """A copy as a view of a file in `$TMPDIR` that goes with it; of a small one in memory. Pages
    that were looked at are resident until `prunec.passes.paged` hands them back."""
    if matrix.nbytes <= SMALL:
        return matrix.copy()
    with tempfile.TemporaryFile(prefix="prunec-") as file:
        file.write(np.ascontiguousarray(matrix).reshape(-1).view(np.uint8).data)
        file.flush()
        view = mmap.mmap(file.fileno(), matrix.nbytes)
    return np.frombuffer(view, matrix.dtype).reshape(matrix.shape)
