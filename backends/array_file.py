"""Arrays by name in one file that nothing but numbers and text can come out of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 and its like by name from then on
import numpy as np

__all__ = ["read_arrays", "write_arrays"]

Array = np.ndarray[Any, Any]

TEXT = "OUS"
"""Kinds of arrays whose entries are words."""


def write_arrays(arrays: Mapping[str, Array], path: Path) -> None:
    """One line that describes the arrays, then their bytes; words stand in the line itself."""
    told = [
        (name, a.dtype.name, a.shape, a.ravel().tolist() if a.dtype.kind in TEXT else None)
        for name, a in arrays.items()
    ]
    with path.open("wb") as file:
        file.write(json.dumps(told).encode() + b"\n")
        for array in arrays.values():
            if array.dtype.kind not in TEXT:
                array.tofile(file)


def read_arrays(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    with path.open("rb") as file:
        for name, dtype, shape, words in json.loads(file.readline()):
            if words is None:
                array = np.fromfile(file, np.dtype(dtype), math.prod(shape))
            else:
                array = np.array(words, dtype=object)
            found[name] = array.reshape(shape)
    return found
