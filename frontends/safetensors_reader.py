"""One safetensors file as read-only views of a memory map, trusted only after validation.

The format: 8 bytes little-endian header length N, N bytes of JSON, then the data. Every tensor
is `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets relative to the data. What is
checked before a byte of data is read:

 1. the file holds 8 + N bytes, and N is at most 100 MB;
 2. the header is a JSON object without repeated keys;
 3. every dtype is known, every shape is a list of non-negative integers;
 4. `end - begin` is the size of the tensor;
 5. tensors cover the data from the first to the last byte: no hole, no overlap, nothing after.

safetensors' own numpy interface copies every tensor it returns, hence this one.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
import numpy.typing as npt

from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["DTYPES", "Array", "Entry", "SafetensorsFile", "read_header"]

Array = npt.NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(scalar)
    for name, scalar in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": np.complex64,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}

LENGTH_BYTES = 8
MAX_HEADER = 100_000_000
RESIDENT = 16 << 20
"""Bytes of a file that may be opened before its pages are handed back."""
MAX_SHOWN = 60
AGAIN = "fetch or write the file again"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: `begin` is counted from the start of the file, in bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile(Mapping[str, Array]):
    """Tensors of one file by name, as read-only views of its memory map.

    The map lives as long as any view of it; opening reads the header alone. Pages are handed back
    (the file keeps them) each time that `RESIDENT` bytes have been opened, so that what is resident
    is what is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._opened = 0

    def __getitem__(self, name: str) -> Array:
        entry = self.entries[name]
        count = math.prod(entry.shape)
        if not count:
            return np.empty(entry.shape, entry.dtype)
        self._opened += entry.nbytes
        if self._opened > RESIDENT:
            self._hand_back()
            self._opened = entry.nbytes
        flat = np.frombuffer(self._map, entry.dtype, count, entry.begin)
        return flat.reshape(entry.shape)

    def rows(self, name: str, where: slice | Array) -> Array:
        """A copy of these indices of the first dimension, in rising order where they are numbers;
        the pages are handed back as it goes."""
        entry = self.entries[name]
        row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        flat = np.frombuffer(self._map, np.uint8, entry.nbytes, entry.begin)
        table = flat.view(entry.dtype).reshape(entry.shape)
        if isinstance(where, slice):
            found = table[where].copy()
            self._hand_back()
            return found
        found = np.empty((len(where), *entry.shape[1:]), entry.dtype)
        most = max(1, RESIDENT // max(row, 1))
        start = 0
        while start < len(where):
            stop = int(np.searchsorted(where, where[start] + most))
            found[start:stop] = table[where[start:stop]]
            self._hand_back()
            start = stop
        return found

    def _hand_back(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        self._opened = 0

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_header(path: Path) -> dict[str, Entry]:
    """The validated entries of a file, in the order of their data."""
    size, text = _header_text(path)
    header = _parse(text, path)
    header.pop("__metadata__", None)
    start = LENGTH_BYTES + len(text)
    ranges = sorted((_entry(name, item, path) for name, item in header.items()), key=_by_offset)
    reached = 0
    for name, _, begin, end in ranges:
        if begin != reached:
            what = "overlaps the one before it" if begin < reached else "leaves a hole before it"
            raise _broken(path, f"tensor {name} {what}: starts at byte {begin}, not {reached}")
        reached = end
    held = size - start
    if reached > held:
        message = f"truncated: the header promises {reached:,} bytes of data, the file has {held:,}"
        raise _broken(path, message)
    if reached < held:
        raise _broken(path, f"{held - reached:,} bytes follow the last tensor")
    return {name: Entry(kind.dtype, kind.shape, begin + start) for name, kind, begin, _ in ranges}


_Range = tuple[str, Entry, int, int]


def _by_offset(item: _Range) -> tuple[int, int]:
    return item[2], item[3]


def _header_text(path: Path) -> tuple[int, bytes]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES:
                raise _broken(path, f"truncated: {size} bytes, too short for a header")
            if length > MAX_HEADER:
                message = f"not a safetensors file: its header would be {length:,} bytes long"
                raise _broken(path, message)
            if LENGTH_BYTES + length > size:
                message = f"truncated: header of {length:,} bytes in a file of {size:,}"
                raise _broken(path, message)
            return size, file.read(length)
    except OSError as error:
        raise fail(
            "P101",
            f"cannot read weights: {error.strerror}",
            where=str(path),
            help="check the path and the permissions",
        ) from error


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise _broken(path, f"name {key!r} occurs twice in the header")
            found[key] = value
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "not a safetensors file: its header is not an object")
    return header


def _entry(name: str, item: object, path: Path) -> _Range:
    if not isinstance(item, dict):
        raise _broken(path, f"tensor {name} has no description")
    code, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise fail(
            "P104",
            f"tensor {name} has the unknown dtype {str(code)[:MAX_SHOWN]!r}",
            where=str(path),
            help=f"store the weights as one of {', '.join(DTYPES)}",
        )
    if not _naturals(shape):
        raise _broken(path, f"tensor {name} has the shape {str(shape)[:MAX_SHOWN]}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _broken(path, f"tensor {name} has the offsets {str(offsets)[:MAX_SHOWN]}")
    entry = Entry(DTYPES[code], tuple(shape), 0)
    begin, end = offsets
    if end - begin != entry.nbytes:
        message = f"tensor {name} is {end - begin} bytes; {code} {list(shape)} is {entry.nbytes}"
        raise _broken(path, message)
    return name, entry, begin, end


def _naturals(value: object) -> TypeGuard[list[int]]:
    """A list of integers of at least 0 (JSON's true is no integer here)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _broken(path: Path, message: str) -> PrunecError:
    return fail("P103", message, where=str(path), help=AGAIN)
