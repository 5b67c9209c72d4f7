"""Tensors of torch and arrays of numpy, sharing memory, with the small floats included."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

__all__ = ["to_numpy", "to_torch"]

# numpy has no such dtypes: they travel as integers of the same width.
SMALL: dict[torch.dtype, tuple[torch.dtype, np.dtype[Any]]] = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.int8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.int8, np.dtype(ml_dtypes.float8_e5m2)),
    torch.float8_e4m3fnuz: (torch.int8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    torch.float8_e5m2fnuz: (torch.int8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    torch.float8_e8m0fnu: (torch.int8, np.dtype(ml_dtypes.float8_e8m0fnu)),
}
BY_NUMPY = {there: (here, carrier) for here, (carrier, there) in SMALL.items()}


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The same numbers as an array, without copying when the tensor is contiguous on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype not in SMALL:
        return tensor.numpy()
    carrier, dtype = SMALL[tensor.dtype]
    return tensor.view(carrier).numpy().view(dtype)


def to_torch(array: npt.NDArray[Any]) -> torch.Tensor:
    """The same numbers as a tensor; it shares memory with a writeable array, else it is a copy."""
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    if array.dtype not in BY_NUMPY:
        return torch.from_numpy(array)
    dtype, carrier = BY_NUMPY[array.dtype]
    integers = np.dtype(np.int16 if carrier is torch.int16 else np.int8)
    return torch.from_numpy(array.view(integers)).view(dtype)
