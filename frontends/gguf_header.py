"""Hold every length in the header of a GGUF file against the bytes that the file has.

The reader of the package `gguf` counts to whatever number stands there, past the end of the file
and for as long as it takes; so a damaged header is told before it is read. The layout is that of
the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

__all__ = ["check_header"]

ARRAY, STRING = 9, 8
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the other types of value: integers, floats and booleans."""
MOST_ITEMS = 2**23
"""Of all arrays of a header; the largest vocabularies have about a million in three of them."""
MOST_DIMS = 4


def check_header(path: Path) -> None:
    """Raise ValueError when the header cannot be what it says."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data)
        tensors, fields = header.number("Q"), header.number("Q")
        for _ in range(header.count(fields, 13, "fields")):
            header.string("the name of a field")
            header.value(header.number("I"))
        for _ in range(header.count(tensors, 24, "tensors")):
            header.tensor()


class _Header:
    """A place in the header, which moves on as it is read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.items = data, 0
        self.at, self.order = 4, "<"
        if self.number("I") & 0xFFFF == 0:  # the version, in the other order of bytes
            self.order = ">"

    def number(self, kind: str) -> int:
        layout = self.order + kind
        try:
            found = int(struct.unpack_from(layout, self.data, self.at)[0])
        except struct.error:
            raise ValueError("the file ends within its header") from None
        self.at += struct.calcsize(layout)
        return found

    def count(self, number: int, least: int, what: str) -> int:
        """A number of things that take at least so many bytes each, if there is room for them."""
        if number * least > len(self.data) - self.at:
            raise ValueError(f"its header tells of {number} {what}, which the file has no room for")
        return number

    def skip(self, size: int, what: str) -> None:
        self.at += self.count(size, 1, f"bytes of {what}")

    def string(self, what: str) -> None:
        self.skip(self.number("Q"), what)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == STRING:
            self.string("a text")
        elif kind == ARRAY and depth < MOST_DIMS:
            inner, number = self.number("I"), self.number("Q")
            self.count(number, SIZES.get(inner, 8), "values in an array")
            self.items += number
            if self.items > MOST_ITEMS:
                raise ValueError(f"its header tells of more than {MOST_ITEMS} values in arrays")
            if inner in SIZES:
                self.skip(number * SIZES[inner], "an array")
                return
            for _ in range(number):
                self.value(inner, depth + 1)
        elif kind in SIZES:
            self.skip(SIZES[kind], "a value")
        else:
            raise ValueError(f"its header has a value of the unknown type {kind}")

    def tensor(self) -> None:
        self.string("the name of a tensor")
        dims = self.number("I")
        if dims > MOST_DIMS:
            raise ValueError(f"its header tells of a tensor with {dims} dimensions")
        self.skip(dims * 8 + 4 + 8, "a tensor's shape")
