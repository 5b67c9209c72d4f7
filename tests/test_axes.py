"""Axes against a brute-force reading: an index of an axis is a path of atom indices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.ir.axes import (
    Atom,
    Axis,
    Indices,
    Product,
    Selection,
    Sum,
    atoms,
    kept_positions,
    new_size,
    positions,
    size,
)

SIZES = {"a": 2, "b": 3, "c": 4, "p": 3, "r": 4}
A, B, C, P, R = (Atom(name, extent) for name, extent in SIZES.items())
PARENT, RAGGED = P.name, R.name

Path = tuple[tuple[str, int], ...]
"""The atoms that an index of an axis passes through, outermost first, each with its index."""


def paths(axis: Axis) -> list[Path]:
    """The path of each index of an axis, by enumeration."""
    match axis:
        case Atom(name, extent):
            return [((name, i),) for i in range(extent)]
        case Sum(terms):
            return [path for term in terms for path in paths(term)]
        case Product(factors):
            choices = itertools.product(*map(paths, factors))
            return [tuple(itertools.chain.from_iterable(choice)) for choice in choices]


def stays(path: Path, selections: Mapping[str, Selection]) -> bool:
    return all(index in kept(name, path, selections) for name, index in path)


def kept(name: str, path: Path, selections: Mapping[str, Selection]) -> list[int]:
    if name not in selections:
        return list(range(SIZES[name]))
    selection = selections[name]
    if selection.parent is None:
        return [int(i) for i in selection.keep]
    return [int(i) for i in selection.keep[dict(path)[selection.parent]]]


def brute(axis: Axis, selections: Mapping[str, Selection]) -> list[int]:
    return [i for i, path in enumerate(paths(axis)) if stays(path, selections)]


# Axes in which no product repeats an atom, and `r` stands under `p` only, as a ragged atom must.


def products(axes: st.SearchStrategy[Axis]) -> st.SearchStrategy[Axis]:
    factors = st.lists(axes, min_size=1, max_size=3).map(tuple)
    return factors.map(Product).filter(no_repeats)


def no_repeats(axis: Axis) -> bool:
    return all(len(dict(path)) == len(path) for path in paths(axis))


def sums(axes: st.SearchStrategy[Axis]) -> st.SearchStrategy[Axis]:
    return st.lists(axes, min_size=1, max_size=3).map(tuple).map(Sum)


leaves = st.sampled_from(
    [A, B, C, P, Product((P, R)), Product((P, A, R)), Sum((A, Product((P, R))))]
)
axes = st.recursive(leaves, lambda inner: products(inner) | sums(inner), max_leaves=4)


def subsets(extent: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, extent - 1), min_size=1, unique=True).map(sorted)


def plain(extent: int) -> st.SearchStrategy[Selection]:
    return subsets(extent).map(lambda keep: Selection(np.array(keep)))


@st.composite
def ragged(draw: st.DrawFn, rows: int, extent: int) -> Selection:
    count = draw(st.integers(1, extent))
    orders = [draw(st.permutations(range(extent))) for _ in range(rows)]
    return Selection(np.array([sorted(order[:count]) for order in orders]), PARENT)


@st.composite
def selections(draw: st.DrawFn, sizes: Mapping[str, int] = SIZES) -> dict[str, Selection]:
    """A selection for some of the atoms, that of `r` plain or ragged."""
    names = draw(st.sets(st.sampled_from(sorted(sizes))))
    chosen = {name: draw(plain(sizes[name])) for name in sorted(names)}
    if RAGGED in chosen and draw(st.booleans()):
        chosen[RAGGED] = draw(ragged(sizes[PARENT], sizes[RAGGED]))
    return chosen


@given(axes)
def test_size_counts_the_paths(axis: Axis) -> None:
    assert size(axis) == len(paths(axis))


@given(axes)
def test_atoms_are_those_on_the_paths(axis: Axis) -> None:
    assert {a.name for a in atoms(axis)} == {name for path in paths(axis) for name, _ in path}


@given(axes, st.sampled_from(sorted(SIZES)))
def test_positions_follow_the_paths(axis: Axis, name: str) -> None:
    assert positions(axis, name).tolist() == [[dict(path).get(name, -1) for path in paths(axis)]]


@given(axes, selections())
def test_kept_positions_are_those_of_the_enumeration(
    axis: Axis, chosen: dict[str, Selection]
) -> None:
    assert kept_positions(axis, chosen).tolist() == brute(axis, chosen)


@given(axes, selections())
def test_new_size_counts_the_kept_positions(axis: Axis, chosen: dict[str, Selection]) -> None:
    counts = {name: selection.count for name, selection in chosen.items()}
    assert len(kept_positions(axis, chosen)) == new_size(axis, counts)


@given(axes)
def test_keeping_everything_is_the_identity(axis: Axis) -> None:
    everything = {name: Selection(np.arange(extent)) for name, extent in SIZES.items()}
    everything[RAGGED] = Selection(np.tile(np.arange(R.size), (P.size, 1)), PARENT)
    assert kept_positions(axis, everything).tolist() == list(range(size(axis)))
    assert kept_positions(axis, {}).tolist() == list(range(size(axis)))


@given(axes, st.data())
def test_two_steps_are_one(axis: Axis, data: st.DataObject) -> None:
    first = data.draw(selections())
    left = {n: first[n].count if n in first else extent for n, extent in SIZES.items()}
    second = data.draw(selections(left))
    once = kept_positions(axis, first)
    twice = once[kept_positions(shrunk(axis, left), second)]
    both = {name: composed(name, first, second) for name in SIZES}
    assert twice.tolist() == kept_positions(axis, both).tolist()


def shrunk(axis: Axis, left: Mapping[str, int]) -> Axis:
    match axis:
        case Atom(name):
            return Atom(name, left[name])
        case Product(factors):
            return Product(tuple(shrunk(factor, left) for factor in factors))
        case Sum(terms):
            return Sum(tuple(shrunk(term, left) for term in terms))


def composed(
    name: str, first: Mapping[str, Selection], second: Mapping[str, Selection]
) -> Selection:
    """The selection that does at once what the two do one after the other."""
    if name != RAGGED:
        kept_first = flat(name, first, SIZES[name])
        return Selection(kept_first[flat(name, second, len(kept_first))])
    before = table(first, np.arange(P.size), R.size)
    rows = flat(PARENT, first, P.size)
    after = table(second, np.arange(len(rows)), before.shape[1])
    result = before[:, : after.shape[1]].copy()  # rows that leave with their parent do not matter
    result[rows] = np.take_along_axis(before[rows], after, axis=1)
    return Selection(result, PARENT)


def flat(name: str, chosen: Mapping[str, Selection], extent: int) -> Indices:
    """The kept indices of an atom, all of them without selection."""
    return chosen[name].keep if name in chosen else np.arange(extent)


def table(chosen: Mapping[str, Selection], rows: Indices, extent: int) -> Indices:
    """What is kept of `r` under each index of its parent, one row each."""
    selection = chosen.get(RAGGED, Selection(np.arange(extent)))
    if selection.parent is not None:
        return selection.keep
    return np.tile(selection.keep, (len(rows), 1))


# Cases that a reader can check


def test_product_is_row_major() -> None:
    chosen = {"a": Selection(np.array([1])), "b": Selection(np.array([0, 2]))}
    assert kept_positions(Product((A, B)), chosen).tolist() == [3, 5]
    assert kept_positions(Product((B, A)), chosen).tolist() == [1, 5]


def test_sum_is_a_concatenation() -> None:
    chosen = {"b": Selection(np.array([2]))}
    assert kept_positions(Sum((B, A, B)), chosen).tolist() == [2, 3, 4, 7]


def test_ragged_selection_drops_another_index_under_each_parent() -> None:
    keep = np.array([[0, 1], [1, 3], [2, 3]])
    chosen = {"r": Selection(keep, parent="p")}
    assert kept_positions(Product((P, R)), chosen).tolist() == [0, 1, 5, 7, 10, 11]
    assert kept_positions(Product((R, P)), chosen).tolist() == [0, 3, 4, 8, 10, 11]


def test_ragged_selection_needs_its_parent_in_the_same_axis() -> None:
    chosen = {"r": Selection(np.array([[0], [1], [2]]), parent="p")}
    with pytest.raises(AssertionError, match="p is not outside r"):
        kept_positions(Product((A, R)), chosen)


def test_an_atom_twice_in_one_product_is_cut_twice() -> None:
    chosen = {"b": Selection(np.array([0, 2]))}
    assert kept_positions(Product((B, B)), chosen).tolist() == [0, 2, 6, 8]
