"""Tensors of which a part stays, cut when they are written, a chunk at a time."""

from __future__ import annotations

import io
import math
import mmap
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from prunec.backends.gather import Gather, Indices, write_behind

__all__ = ["CutTensor"]

Array = npt.NDArray[Any]


class CutTensor:
    """Implements onnx-ir's tensor protocol: `read()` gives the whole array, of which `keep` says
    what stays by dimension."""

    def __init__(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        read: Callable[[], Array],
        keep: Mapping[int, Indices],
    ) -> None:
        self.name, self.dtype = name, dtype
        self.shape = ir.Shape([len(keep[d]) if d in keep else n for d, n in enumerate(shape)])
        self.doc_string: str | None = None
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}
        self._read, self._keep = read, dict(keep)

    @property
    def raw(self) -> Any:
        return self._read

    @property
    def size(self) -> int:
        return math.prod(int(n) for n in self.shape.numpy())

    @property
    def nbytes(self) -> int:
        return math.ceil(self.size * self.dtype.bitwidth / 8)

    def numpy(self) -> Array:
        array = self._read()
        for dim, indices in self._keep.items():
            array = np.take(array, indices, dim)
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.numpy(), dtype=dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def tobytes(self) -> bytes:
        held = io.BytesIO()
        self.tofile(held)
        return held.getvalue()

    def tofile(self, file: IO[bytes]) -> None:
        """Write the bytes as ONNX stores them."""
        if self.dtype.bitwidth % 8:
            file.write(ir.Tensor(self.numpy(), dtype=self.dtype).tobytes())
            return
        array = self._read()
        write_behind(file, Gather().chunks(array, self._keep))
        _given_back(array)


def _given_back(array: Array) -> None:
    """Pages of a mapped file that were read are free to go."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    held = getattr(base, "obj", base)
    if isinstance(held, mmap.mmap) and hasattr(held, "madvise"):
        held.madvise(mmap.MADV_DONTNEED)
