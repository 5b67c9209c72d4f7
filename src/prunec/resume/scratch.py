"""Arrays that are too many for memory, in a file without a name that goes with the process."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Scratch"]

Array = npt.NDArray[Any]
Place = tuple[np.dtype[Any], tuple[int, ...], int]


class Scratch(MutableMapping[str, Array]):
    """Arrays by name. What is read is a view of the file, resident as long as it is used.

    An array that replaces another is written behind it: the file only grows.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="prunec-")  # noqa: SIM115, open while we live
        self._places: dict[str, Place] = {}

    def __setitem__(self, name: str, value: Array) -> None:
        end = self._file.seek(0, 2)
        start = self._file.seek(-(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
        self._file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        self._file.flush()
        self._places[name] = (value.dtype, value.shape, start)

    def __getitem__(self, name: str) -> Array:
        dtype, shape, start = self._places[name]
        count = int(np.prod(shape))
        if not count:
            return np.empty(shape, dtype)
        view = mmap.mmap(
            self._file.fileno(), count * dtype.itemsize, access=mmap.ACCESS_READ, offset=start
        )
        return np.frombuffer(view, dtype, count).reshape(shape)

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
