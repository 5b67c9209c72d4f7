"""Stored tensors as ONNX initializers that are read when they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from prunec.backends.onnx_build import NUMPY_DTYPES, ONNX_DTYPES, Unsupported
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Parameter

__all__ = ["stored"]


def stored(parameter: Parameter, weights: Mapping[str, Any]) -> ir.Value:
    """An initializer under the parameter's name. Raises P202 when the value is missing."""
    dtype = ONNX_DTYPES.get(parameter.type.dtype)
    if dtype is None:
        raise Unsupported(f"dtype {parameter.type.dtype}")
    names = (parameter.name, *parameter.aliases)
    found = next((name for name in names if name in weights), None)
    if found is None:
        raise fail("P202", f"no value is given for {parameter.name}", where=parameter.name)
    shape = ir.Shape(parameter.type.shape)

    def read() -> ir.TensorProtocol:
        array = _array(weights[found], parameter)
        return ir.Tensor(array, dtype=dtype, name=parameter.name)

    tensor = ir.LazyTensor(read, dtype=dtype, shape=shape, name=parameter.name)
    return ir.Value(name=parameter.name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)


def _array(stored: Any, parameter: Parameter) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = stored if isinstance(stored, np.ndarray) else _from_torch(stored)
    if array.shape != parameter.type.shape:
        wanted = list(parameter.type.shape)
        raise fail(
            "P202",
            f"{parameter.name} has shape {list(array.shape)}, but the graph says {wanted}",
            where=parameter.name,
        )
    return array.astype(NUMPY_DTYPES[parameter.type.dtype], copy=False)


def _from_torch(tensor: Any) -> npt.NDArray[Any]:
    from prunec.backends.tensors import as_array

    return as_array(tensor)
