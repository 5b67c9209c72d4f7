"""Masks of a sparse model as one safetensors file: a bit an entry.

Each tensor is named as its weight and holds, in the order of its entries (row-major, in the stored
layout), a 1 where the entry is not zero, eight to a byte, the first in the lowest bit; the last
byte is filled up with zeros. The metadata gives the shapes as JSON.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunec.backends.safetensors_writer import Entry, write
from prunec.frontends.safetensors_reader import SafetensorsFile
from prunec.passes.profile import Weights

if TYPE_CHECKING:
    from prunec.verbs.sparsifying import Sparsified

__all__ = ["KIND", "read_masks", "write_masks"]

KIND = "prunec.output.masks.1"


def write_masks(path: Path, found: Sparsified) -> None:
    """Write the masks of all sparse weights, in the dtype that the checkpoint has them in."""
    names = [layer.weight for layer in found.layers.found]
    shapes = {name: list(found.replaced[name].shape) for name in names}
    entries = []
    for name in names:

        def produce(name: str = name) -> npt.NDArray[Any]:
            kept = stored_values(found, name) != 0
            return np.packbits(kept.reshape(-1), bitorder="little")

        size = -(-math.prod(shapes[name]) // 8)
        entries.append(Entry(name, np.dtype(np.uint8), (size,), produce))
    write(path, entries, {"format": KIND, "shapes": json.dumps(shapes)})


def stored_values(found: Sparsified, name: str) -> npt.NDArray[Any]:
    """A sparse weight in its stored dtype, where small values may become zero too."""
    weight, stored = found.replaced[name], found.loaded.stored
    return weight.astype(stored[name].dtype) if name in stored else weight


def read_masks(path: Path, weights: Weights) -> dict[str, npt.NDArray[np.bool_]]:
    """The masks of a file for weights of these shapes: True where an entry is not zero."""
    file = SafetensorsFile(path)
    found = {}
    for name, packed in file.items():
        shape = weights[name].shape
        bits = np.unpackbits(packed, count=math.prod(shape), bitorder="little")
        found[name] = bits.reshape(shape).astype(bool)
    return found
