"""Stored arrays as torch tensors, without copying."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

__all__ = ["as_array", "as_tensor"]

_CARRIED = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.int8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e5m2): (np.int8, torch.float8_e5m2),
}


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor on the array's own memory, which may be a read-only file: never write to it."""
    carrier, dtype = _CARRIED.get(array.dtype, (None, None))
    array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if carrier is None or dtype is None:
            return torch.from_numpy(array)
        return torch.from_numpy(array.view(carrier)).view(dtype)


def as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The same numbers as an array."""
    tensor = tensor.detach().cpu().contiguous()
    for array_dtype, (carrier, dtype) in _CARRIED.items():
        if tensor.dtype is dtype:
            integers = torch.int16 if carrier is np.int16 else torch.int8
            return tensor.view(integers).numpy().view(array_dtype)
    return tensor.numpy()
