"""Axes: the types of tensor dimensions.

    axis := atom(size) | product(axis, ...)  row-major, as in a reshape
          | sum(axis, ...)  in order, as in a concatenation

An axis here is a resolved, immutable term. `prunec.ir.unify.Axes` is where they are inferred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "Atom",
    "Axis",
    "Product",
    "Selection",
    "Sum",
    "atoms",
    "kept_positions",
    "new_size",
    "positions",
    "size",
]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Atom:
    """An axis with no inner structure; `name` is unique within a graph."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product: index = (outer * size(inner) + inner), as a reshape lays it out."""

    factors: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """Concatenation of its terms, in order."""

    terms: tuple[Axis, ...]


Axis = Atom | Product | Sum


@dataclass(frozen=True)
class Selection:
    """The indices of one atom that stay.

    `keep` has shape (k,), sorted and unique; or, for a ragged selection, (size(parent), k):
    row p holds what stays under index p of the atom `parent`, so only the count must agree.
    """

    keep: Indices
    parent: str | None = None

    @property
    def count(self) -> int:
        return int(self.keep.shape[-1])


def size(axis: Axis) -> int:
    """Number of indices of an axis."""
    match axis:
        case Atom():
            return axis.size
        case Product():
            return math.prod(size(f) for f in axis.factors)
        case Sum():
            return sum(size(t) for t in axis.terms)


def atoms(axis: Axis) -> Iterator[Atom]:
    """The leaves of an axis, left to right, with repeats."""
    match axis:
        case Atom():
            yield axis
        case Product(parts) | Sum(parts):
            for part in parts:
                yield from atoms(part)


def new_size(axis: Axis, counts: Mapping[str, int]) -> int:
    """Size of an axis once each atom named in `counts` has that many indices left."""
    match axis:
        case Atom():
            return counts.get(axis.name, axis.size)
        case Product():
            return math.prod(new_size(f, counts) for f in axis.factors)
        case Sum():
            return sum(new_size(t, counts) for t in axis.terms)


def positions(axis: Axis, name: str) -> Indices:
    """For each index of `axis`, the index of atom `name` it belongs to, or -1.

    Shape (k, size(axis)); k is 1 unless the atom stands several times in one product, as in the
    product of a vector with itself, where an index belongs to several indices of the atom.
    """
    rows = _rows(axis, name)
    return np.stack(rows) if rows else np.full((1, size(axis)), -1)


def _rows(axis: Axis, name: str) -> list[Indices]:
    match axis:
        case Atom():
            return [np.arange(axis.size)] if axis.name == name else []
        case Sum():
            parts = [(_rows(t, name), size(t)) for t in axis.terms]
            most = max(len(rows) for rows, _ in parts)
            return [
                np.concatenate([r[i] if i < len(r) else np.full(n, -1) for r, n in parts])
                for i in range(most)
            ]
        case Product():
            sizes = [size(f) for f in axis.factors]
            found = []
            for i, factor in enumerate(axis.factors):
                shape = [-1 if j == i else 1 for j in range(len(sizes))]
                for row in _rows(factor, name):
                    found.append(np.broadcast_to(row.reshape(shape), sizes).reshape(-1))
            return found


def kept_positions(axis: Axis, selections: Mapping[str, Selection]) -> Indices:
    """Which indices of `axis` stay, ascending within every parent; shape (new_size(axis),).

    A ragged selection is looked up under the parent's own index, so the parent must be an
    outer factor of the same dimension.
    """
    keep = np.ones(size(axis), dtype=bool)
    for atom in {a.name: a for a in atoms(axis)}.values():
        if atom.name not in selections:
            continue
        selection = selections[atom.name]
        for where in positions(axis, atom.name):
            carried = where >= 0
            if selection.parent is None:
                table = np.zeros(atom.size, dtype=bool)
                table[selection.keep] = True
                keep[carried] &= table[where[carried]]
                continue
            outer = positions(axis, selection.parent)[0]
            assert (outer[carried] >= 0).all(), f"{selection.parent} is not outside {atom.name}"
            rows = np.zeros((selection.keep.shape[0], atom.size), dtype=bool)
            np.put_along_axis(rows, selection.keep, True, axis=1)
            keep[carried] &= rows[outer[carried], where[carried]]
    return np.flatnonzero(keep)
