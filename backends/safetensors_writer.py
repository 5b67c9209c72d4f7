"""Write safetensors as a stream: the header first, then one chunk of one tensor after the other.

Two tensors are written at a time, so that one is gathered while the other goes to the disk. Memory
holds what their producers return, if they return whole ones, and buffers of a few MB. Slices of
memory-mapped tensors never exist as a whole: they are gathered chunk by chunk into those buffers,
so pruning a checkpoint costs about as much as copying it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np

from prunec.backends.gather import Array, Gather, Indices
from prunec.ir.diagnostics import fail

__all__ = ["Entry", "Sliced", "write"]

# Names as in the format's specification.
CODES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
ALIGNMENT = 8
AT_ONCE = 2
"""Tensors that are written at the same time."""
# Bits of the exponent: all set in infinities and NaN.
EXPONENT: Mapping[str, int] = {"float16": 0x7C00, "bfloat16": 0x7F80}


@dataclass(frozen=True)
class Sliced:
    """A slice that has not been taken yet: per dimension, the indices that stay, ascending."""

    array: Array
    keep: Mapping[int, Indices] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self.keep.get(d, range(n))) for d, n in enumerate(self.array.shape))


@dataclass(frozen=True)
class Entry:
    """A tensor to write; `produce` is called once, when its turn comes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    produce: Callable[[], Array | Sliced]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> int:
    """Write all entries to `path` and return the bytes written.

    Tensors are laid out by falling size of their items, as safetensors does, which aligns each.
    The caller gives a scratch path and renames it. Raises P150 for values that are not finite
    (naming the tensor) and P151 when the disk is full.
    """
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header = _header(ordered, metadata or {})
    total = len(header) + sum(entry.nbytes for entry in ordered)
    _check_space(path, total)
    starts = accumulate((entry.nbytes for entry in ordered), initial=len(header))
    try:
        with path.open("wb", buffering=0) as file:
            _Writer(file.fileno()).write(header, list(zip(starts, ordered, strict=False)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise fail(
            "P151",
            f"no space left while writing {total:,} bytes",
            where=str(path),
            help="free some space, or choose another output folder",
        ) from error
    return total


def _header(entries: list[Entry], metadata: Mapping[str, str]) -> bytes:
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        assert entry.name not in described, f"{entry.name} is written twice"
        described[entry.name] = {
            "dtype": CODES[entry.dtype.name],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _check_space(path: Path, total: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if total <= free:
        return
    raise fail(
        "P151",
        f"{total:,} bytes are to be written, {free:,} are free",
        where=str(path.parent),
        help="free some space, or choose another output folder",
    )


class _Writer:
    """Writes to places of one open file."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.stopped = Event()
        self.opening = Lock()  # producers need not know that there are threads

    def write(self, header: bytes, entries: list[tuple[int, Entry]]) -> None:
        self._put(header, 0)
        turns = [entries[i::AT_ONCE] for i in range(AT_ONCE)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for done in [pool.submit(self._entries, turn) for turn in turns]:
                    done.result()
            except BaseException:  # Ctrl-C too: the other thread ends with its tensor
                self.stopped.set()
                raise

    def _entries(self, entries: list[tuple[int, Entry]]) -> None:
        gather = Gather()
        for start, entry in entries:
            if self.stopped.is_set():
                return
            self._entry(start, entry, gather)

    def _entry(self, start: int, entry: Entry, gather: Gather) -> None:
        with self.opening:
            made = entry.produce()
        sliced = made if isinstance(made, Sliced) else Sliced(made)
        assert sliced.shape == entry.shape, f"{entry.name}: {sliced.shape}, promised {entry.shape}"
        assert sliced.array.dtype == entry.dtype, f"{entry.name}: {sliced.array.dtype}"
        if not entry.nbytes:
            return
        written = 0
        for chunk in gather.chunks(sliced.array, sliced.keep):
            _check_finite(chunk, entry, written // entry.dtype.itemsize)
            self._put(chunk.view(np.uint8).data, start + written)
            written += chunk.nbytes
        assert written == entry.nbytes, f"{entry.name}: wrote {written} of {entry.nbytes} bytes"

    def _put(self, data: bytes | memoryview, at: int) -> None:
        """One call may write less than it is given."""
        rest = memoryview(data).cast("B")
        while rest:
            count = os.pwrite(self.file, rest, at)
            rest, at = rest[count:], at + count


def _check_finite(chunk: Array, entry: Entry, offset: int) -> None:
    """`chunk` holds bits as unsigned integers; `offset` counts the entries before it."""
    name = entry.dtype.name
    if name in EXPONENT:
        mask = chunk.dtype.type(EXPONENT[name])
        if (chunk & mask).max() < mask:
            return
    elif np.issubdtype(entry.dtype, np.integer) or name == "bool":
        return
    values = chunk.view(entry.dtype)
    finite = np.isfinite(values)
    if finite.all():
        return
    first = int(np.flatnonzero(~finite)[0])
    at = [int(i) for i in np.unravel_index(offset + first, entry.shape)]
    raise fail(
        "P150",
        f"{entry.name} holds {values[first]} at {at}, which is no weight",
        where=entry.name,
        help="check the original checkpoint; if it is sound, use a stronger ridge or"
        " `--restore none`",
    )
