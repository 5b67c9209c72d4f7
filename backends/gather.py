"""Slices of a large array as a stream of flat chunks, through buffers that are reused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import numpy as np
import numpy.typing as npt

__all__ = ["CHUNK_BYTES", "Array", "Gather", "Indices", "carrier", "write_behind"]

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

CHUNK_BYTES = 1 << 20
"""Small enough that a chunk stays in the processor's cache between gathering and writing."""

_CARRIERS: Mapping[int, np.dtype[Any]] = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def carrier(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer of the same width: moving bits is fast for every dtype that way."""
    return _CARRIERS[dtype.itemsize]


class Gather:
    """Takes slices in chunks; one object serves any number of arrays and keeps its buffers.

    A chunk is valid until the second one after it is asked for: one can be written while the next
    is gathered.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._buffers: list[Array] = []
        self._turn = 0
        self._known: dict[int, tuple[int, Indices]] = {}

    def chunks(self, array: Array, keep: Mapping[int, Indices]) -> Iterator[Array]:
        """Flat chunks of `array[keep]` in row-major order, as unsigned integers.

        `keep` maps a dimension to the indices that stay, each in range; other dimensions stay
        whole. Nothing is copied where the slice is contiguous in memory.
        """
        kept = {d: k for d, k in keep.items() if not _whole(k, array.shape[d])}
        for d, indices in kept.items():
            inside = not indices.size or (indices.min() >= 0 and indices.max() < array.shape[d])
            assert inside, f"index out of range in dimension {d} of {array.shape}"
        # one to be written, one for every dimension that is taken on the way to the next
        missing = len(kept) + 1 - len(self._buffers)
        self._buffers += [np.empty(0, np.uint8) for _ in range(missing)]
        if array.size and all(k.size for k in kept.values()):
            self._known = {id(k): _blocks(k, array.shape[d]) for d, k in kept.items()}
            yield from self._chunks(array.view(carrier(array.dtype)), kept)

    def _chunks(self, array: Array, keep: Mapping[int, Indices]) -> Iterator[Array]:
        if not array.ndim:
            yield array.reshape(1)
            return
        if not keep and array.flags.c_contiguous:
            yield from self._flat(array)
            return
        rows = keep.get(0)
        count = array.shape[0] if rows is None else len(rows)
        inner = {d: k for d, k in keep.items() if d}
        row_bytes = array.nbytes // array.shape[0]
        if row_bytes > self._chunk_bytes:
            below = {d - 1: k for d, k in inner.items()}
            for i in range(count) if rows is None else rows:
                yield from self._chunks(array[i], below)
            return
        step = max(1, self._chunk_bytes // row_bytes)
        for start in range(0, count, step):
            stop = min(start + step, count)
            some = array[start:stop] if rows is None else self._rows(array, rows[start:stop])
            yield self._inner(some, inner).reshape(-1)

    def _flat(self, array: Array) -> Iterator[Array]:
        flat = array.reshape(-1)
        step = self._chunk_bytes // flat.itemsize
        for start in range(0, len(flat), step):
            yield flat[start : start + step]

    def _rows(self, array: Array, rows: Indices) -> Array:
        first, last = int(rows[0]), int(rows[-1])
        if _run(rows):
            return array[first : last + 1]
        return self._take(array, rows, 0)

    def _inner(self, chunk: Array, keep: Mapping[int, Indices]) -> Array:
        """Apply what is kept of the dimensions after the first."""
        if not chunk.flags.c_contiguous:
            chunk = np.ascontiguousarray(chunk)
        for d, indices in keep.items():
            before, size, after = chunk.shape[:d], chunk.shape[d], chunk.shape[d + 1 :]
            width, blocks = self._known[id(indices)]
            seen = chunk.reshape(*before, size // width, width * math.prod(after))
            chunk = self._take(seen, blocks, d).reshape(*before, len(indices), *after)
        return chunk

    def _take(self, array: Array, indices: Indices, d: int) -> Array:
        shape = (*array.shape[:d], len(indices), *array.shape[d + 1 :])
        out = self._room(math.prod(shape) * array.itemsize).view(array.dtype).reshape(shape)
        # numpy copies the whole result once more in its checking mode; indices were checked.
        return np.take(array, indices, axis=d, out=out, mode="clip")

    def _room(self, nbytes: int) -> Array:
        """The buffer that was handed out longest ago."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if len(self._buffers[self._turn]) < nbytes:
            self._buffers[self._turn] = np.empty(max(nbytes, self._chunk_bytes), np.uint8)
        return self._buffers[self._turn][:nbytes]


def write_behind(file: IO[bytes], chunks: Iterable[Array]) -> None:
    """Write the chunks of a Gather, each while the next is gathered."""
    written: Future[int] | None = None
    with ThreadPoolExecutor(1) as writer:
        for chunk in chunks:
            data = np.ascontiguousarray(chunk).data
            if written is not None:
                written.result()
            written = writer.submit(file.write, data)
        if written is not None:
            written.result()


def _whole(indices: Indices, size: int) -> bool:
    return len(indices) == size and _run(indices) and (not size or int(indices[0]) == 0)


def _run(indices: Indices) -> bool:
    """Whether the indices are consecutive."""
    return bool((np.diff(indices) == 1).all())


def _blocks(indices: Indices, size: int) -> tuple[int, Indices]:
    """The widest w such that the indices are whole aligned blocks of w, and those blocks.

    Heads are blocks of head_dim: moving blocks is several times faster than single entries.
    """
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [len(indices)]]))
    width = int(np.gcd.reduce(np.concatenate([[size], indices[starts], lengths])))
    return width, indices[::width] // width
