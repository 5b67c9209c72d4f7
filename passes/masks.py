"""Which entries of a value are removed: the mask that pruning is compared with (law 1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Atom, Axis, Indices, Product, Selection, Sum, atoms, positions
from prunec.ir.graph import TensorType

__all__ = ["Mask", "removed", "resized", "touched"]

Mask = npt.NDArray[np.bool_]


def touched(type_: TensorType, selections: Mapping[str, Selection]) -> bool:
    """Whether a value of this type loses anything."""
    return any(a.name in selections for axis in type_.axes for a in atoms(axis))


def removed(type_: TensorType, selections: Mapping[str, Selection]) -> Mask | None:
    """Where a value of this type holds removed indices: boolean, broadcastable to its static
    dimensions; None when nothing of it is pruned."""
    gone: Mask | None = None
    names = {a.name: None for axis in type_.axes for a in atoms(axis) if a.name in selections}
    for name in names:
        mask = _removed_by(type_.axes, name, selections[name])
        gone = mask if gone is None else gone | mask
    return gone


def _removed_by(axes: tuple[Axis, ...], name: str, selection: Selection) -> Mask:
    rank = len(axes)
    gone = np.zeros([1] * rank, dtype=bool)
    for dim, axis in enumerate(axes):
        for where in positions(axis, name):
            if (where < 0).all():
                continue
            if selection.parent is not None:
                gone = gone | _ragged(axes, dim, where, selection)
                continue
            table = np.ones(int(where.max()) + 1, dtype=bool)
            table[selection.keep[selection.keep < len(table)]] = False
            mask = np.where(where >= 0, table[where], False)
            gone = gone | mask.reshape([-1 if d == dim else 1 for d in range(rank)])
    return gone


def _ragged(axes: tuple[Axis, ...], dim: int, where: Indices, selection: Selection) -> Mask:
    """The parent may stand in the same dimension or in another one."""
    assert selection.parent is not None
    rank = len(axes)
    table = np.ones((selection.keep.shape[0], int(where.max()) + 1), dtype=bool)
    np.put_along_axis(table, selection.keep, False, axis=1)
    outer = positions(axes[dim], selection.parent)[0]
    if (outer >= 0).any():
        mask = np.where(where >= 0, table[outer, where], False)
        return mask.reshape([-1 if d == dim else 1 for d in range(rank)])
    at = next(d for d, axis in enumerate(axes) if (positions(axis, selection.parent) >= 0).any())
    parent = positions(axes[at], selection.parent)[0]
    mask = np.where(where[None, :] >= 0, table[parent[:, None], where[None, :]], False)
    mask = mask if at < dim else mask.T
    shape = [
        mask.shape[0 if d == min(dim, at) else 1] if d in (dim, at) else 1 for d in range(rank)
    ]
    return mask.reshape(shape)


def resized(axis: Axis, sizes: Mapping[str, int]) -> Axis:
    """The axis with other sizes of the atoms that are named."""
    match axis:
        case Atom(name, size):
            return Atom(name, sizes.get(name, size))
        case Product(factors):
            return Product(tuple(resized(f, sizes) for f in factors))
        case Sum(terms):
            return Sum(tuple(resized(t, sizes) for t in terms))
