"""Families of atoms: those that a stock config can only shrink together, and parts of axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from prunec.backends.hf_build import pattern
from prunec.backends.hf_fields import Family, Moved
from prunec.ir.axes import Atom, Axis, Product, Sum, atoms, size

__all__ = ["ParameterAxes", "by_every_name", "families", "parts"]

ParameterAxes = Mapping[str, tuple[Axis, ...]]
"""The axes of each dimension of the parameters, by parameter name."""


def parts(axis: Axis) -> Iterator[Axis]:
    """The axis, its runs of neighbouring factors or terms, and the parts of each of those."""
    yield axis
    if isinstance(axis, Atom):
        return
    make, members = (Product, axis.factors) if isinstance(axis, Product) else (Sum, axis.terms)
    for i, j in itertools.combinations(range(len(members) + 1), 2):
        if 1 < j - i < len(members):
            yield make(members[i:j])
    for member in members:
        yield from parts(member)


def by_every_name(family: Family, axes: ParameterAxes) -> ParameterAxes:
    """The axes under each name of tied parameters."""
    known = {family.tied[name]: dims for name, dims in axes.items() if name in family.tied}
    return {name: known[first] for name, first in family.tied.items() if first in known}


def families(family: Family, axes: ParameterAxes, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group atoms that can only have one count in a stock config.

    These are the atoms at the same places of different layers, and those that one field makes,
    such as the feed-forward widths of an encoder and its decoder.
    """
    names = tuple(names)
    alike: dict[frozenset[tuple[str, int, int]], list[str]] = {}
    for name, where in _places(axes, names).items():
        alike.setdefault(where, []).append(name)
    complete = by_every_name(family, axes)
    made = [_made_alone(family, complete, moved) for moved in family.fields.fields.values()]
    group = {name: name for name in names}
    for members in [*alike.values(), *made]:
        targets = {group[name] for name in members if name in group}
        for name in names:
            if group[name] in targets:
                group[name] = min(targets)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(group[name], []).append(name)
    return [tuple(members) for members in found.values()]


def _places(
    axes: ParameterAxes, names: Iterable[str]
) -> dict[str, frozenset[tuple[str, int, int]]]:
    """Where each atom stands: parameter without its layer, dimension, place in the axis."""
    found: dict[str, set[tuple[str, int, int]]] = {name: set() for name in names}
    for parameter, dims in axes.items():
        for dim, axis in enumerate(dims):
            for i, atom in enumerate(atoms(axis)):
                if atom.name in found:
                    found[atom.name].add((pattern(parameter), dim, i))
    return {name: frozenset(where) for name, where in found.items()}


def _made_alone(family: Family, axes: ParameterAxes, moved: Moved) -> set[str]:
    """Atoms that are themselves what a field counts: nothing else there has that size."""
    kinds = {(pattern(n), family.shapes[n]): dims for n, dims in axes.items()}
    found = set()
    for name, dim in moved.places:
        dims = kinds.get((pattern(name), family.fields.shapes[name]))
        if dims is None:
            continue
        candidates = {part for part in parts(dims[dim]) if size(part) == moved.value}
        if len(candidates) == 1 and isinstance(atom := candidates.pop(), Atom):
            found.add(atom.name)
    return found
