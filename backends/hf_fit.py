"""Fit new sizes into the fields of a stock config, or say why they cannot be held.

A field's expression is the contiguous part of the moved dimensions' axes whose size equals the
field's value (9 heads are `product(kv, g)` in a query projection); its new value is the new size
of that part. All dimensions that a field moves must agree, and the result is checked by
rebuilding the model on the meta device and comparing every shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunec.backends.hf_build import Shapes, changed, first_line, pattern, quiet, shapes
from prunec.backends.hf_families import ParameterAxes, by_every_name, families, parts
from prunec.backends.hf_fields import Family, Moved, Place
from prunec.ir.axes import Axis, atoms, new_size, size
from prunec.ir.diagnostics import Diagnostic

__all__ = [
    "UniformConfig",
    "allowed_counts",
    "families",
    "fit",
    "holdable",
    "wanted_shapes",
]

_KIND = tuple[str, tuple[int, ...]]
_PER_LAYER = "use --layout per-layer"
_MAX_COMBINATIONS = 64
_ALL_TRIED, _MAX_TRIED_COUNTS = 32, 256
_MAX_STEP = 128


@dataclass(frozen=True)
class UniformConfig:
    """A config from which the stock class builds the pruned shapes, and the fields set for it."""

    config: Any
    fields: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class _Task:
    """What the small model should become: by kind of parameter, its axes and its new shape."""

    axes: Mapping[_KIND, tuple[Axis, ...]]
    wanted: Mapping[_KIND, tuple[int, ...]]
    counts: Mapping[str, int]
    dense: Shapes

    def new(self, place: Place) -> int:
        name, dim = place
        shape = self.dense[name]
        return self.wanted.get((pattern(name), shape), shape)[dim]

    def axis(self, place: Place) -> Axis | None:
        name, dim = place
        found = self.axes.get((pattern(name), self.dense[name]))
        return found[dim] if found else None

    def changes(self, place: Place) -> bool:
        return self.new(place) != self.dense[place[0]][place[1]]


def fit(
    family: Family, axes: ParameterAxes, counts: Mapping[str, int]
) -> UniformConfig | list[Diagnostic]:
    """The stock config that builds the model with these counts left, or why there is none.

    `axes` are the axes of all parameters and buffers as inferred, `counts` the indices left of
    each pruned atom. Nothing but shapes is looked at: see `same_program` for the rest.
    """
    axes = by_every_name(family, axes)
    wanted = wanted_shapes(family, axes, counts)
    task = _task(family, axes, counts, wanted)
    if isinstance(task, Diagnostic):
        return [task]
    values = _values(family, task)
    if isinstance(values, Diagnostic):
        return [values]
    with quiet():
        return _first_that_builds(family, task, values, wanted)


def wanted_shapes(family: Family, axes: ParameterAxes, counts: Mapping[str, int]) -> Shapes:
    """The shape of every parameter and buffer once `counts` are left; others keep theirs."""
    axes = by_every_name(family, axes)
    new = {n: tuple(new_size(axis, counts) for axis in dims) for n, dims in axes.items()}
    free = {n: s for n, s in family.shapes.items() if n in axes or n not in family.derived}
    return {name: new.get(name, shape) for name, shape in free.items()}


def holdable(
    family: Family, axes: ParameterAxes, names: Iterable[str]
) -> dict[str, Diagnostic | None]:
    """For each atom, why a stock checkpoint can hold no smaller count of it; None when it can.

    An atom is tried together with its family (see `families`), at one count.
    """
    found: dict[str, Diagnostic | None] = {}
    for group in families(family, axes, names):
        reason = _first_reason(family, axes, group)
        found |= dict.fromkeys(group, reason)
    return found


def allowed_counts(family: Family, axes: ParameterAxes, group: Sequence[str]) -> Sequence[int]:
    """Which smaller counts of a family of atoms a stock checkpoint can hold, ascending.

    Other atoms stay whole. Above 32 indices all are taken to be allowed when two neighbours of
    the full count are. Above 256 not every count is tried otherwise: those are taken that lie a
    regular step below the full count.
    """
    full = _atom_sizes(axes)[group[0]]
    if full > _ALL_TRIED and all(_holds(family, axes, group, full - k) for k in (1, 2)):
        return range(1, full)
    if full <= _MAX_TRIED_COUNTS:
        return [k for k in range(1, full) if _holds(family, axes, group, k)]
    steps = (s for s in range(2, _MAX_STEP + 1) if _holds(family, axes, group, full - s))
    step = next(steps, 0)
    return range(full % step or step, full, step) if step else []


def _task(
    family: Family, axes: ParameterAxes, counts: Mapping[str, int], wanted: Shapes
) -> _Task | Diagnostic:
    """What each kind of parameter becomes, or the diagnostic that layers differ."""
    by_kind: dict[_KIND, tuple[int, ...]] = {}
    named: dict[_KIND, str] = {}
    for name, shape in wanted.items():
        kind = (pattern(name), family.shapes[name])
        before = by_kind.setdefault(kind, shape)
        if before != shape:
            return _layers_differ(family, named[kind], before, name, shape)
        named.setdefault(kind, name)
    kinds = {(pattern(n), family.shapes[n]): dims for n, dims in axes.items() if n in wanted}
    return _Task(kinds, by_kind, counts, family.fields.shapes)


def _values(family: Family, task: _Task) -> dict[str, list[int]] | Diagnostic:
    """The values to try for each field that moves a dimension which changes."""
    found: dict[str, list[int]] = {}
    covered: set[Place] = set()
    for field, moved in family.fields.fields.items():
        places = [p for p in sorted(moved.places) if _counts_here(family, task, p)]
        if not any(task.changes(p) for p in places):
            continue
        covered |= moved.places
        options = {p: _options(task, moved, p) for p in places}
        common = set.intersection(*options.values())
        if not common:
            return _tied(family, task, field, moved, options)
        found[field] = sorted(common)
    for name, shape in task.dense.items():
        for dim in range(len(shape)):
            if task.changes((name, dim)) and (name, dim) not in covered:
                return _no_field(family, task, (name, dim))
    return found


def _counts_here(family: Family, task: _Task, place: Place) -> bool:
    """Whether a dimension binds a field: derived buffers outside the program do not."""
    return place[0] not in family.derived or task.axis(place) is not None


def _options(task: _Task, moved: Moved, place: Place) -> set[int]:
    """New values of a field that explain what becomes of one dimension it moves."""
    if not task.changes(place):
        return {moved.value}
    axis = task.axis(place)
    assert axis is not None, "only dimensions with an axis change"
    found = {new_size(p, task.counts) for p in parts(axis) if size(p) == moved.value}
    if found:
        return found | ({1} if moved.value == 1 else set())
    whole, rest = divmod(task.new(place) * moved.value, size(axis))
    return {whole} if rest == 0 else set()


def _first_that_builds(
    family: Family, task: _Task, values: Mapping[str, list[int]], wanted: Shapes
) -> UniformConfig | list[Diagnostic]:
    """Try combinations of field values on the small model, then the first good one on the whole."""
    refusal: Diagnostic | None = None
    combinations = itertools.islice(itertools.product(*values.values()), _MAX_COMBINATIONS)
    for chosen in combinations:
        setting = dict(zip(values, chosen, strict=True))
        try:
            found = shapes(family.build(changed(family.fields.config, setting)))
        except Exception as error:  # config and model classes refuse with exceptions of any type
            refusal = refusal or _refused(family, setting, error)
            continue
        wrong = [n for n in task.dense if _differs(family, task, n, found)]
        if not wrong:
            return _whole(family, setting, wanted)
        refusal = refusal or _misshapen(family, wrong[0], found.get(wrong[0]), setting)
    assert refusal is not None, "there is always one combination"
    return [refusal]


def _differs(family: Family, task: _Task, name: str, found: Shapes) -> bool:
    kind = (pattern(name), task.dense[name])
    return kind in task.wanted and found.get(name) != task.wanted[kind]


def _whole(
    family: Family, setting: Mapping[str, int], wanted: Shapes
) -> UniformConfig | list[Diagnostic]:
    """Set the fields in the whole config, filled fields too, and compare every shape."""
    filled = _filled_fields(family)
    config = changed(family.config, filled | dict(setting))
    found = shapes(family.build(config))
    wrong = [n for n, shape in wanted.items() if found.get(n) != shape]
    if wrong or found.keys() != family.shapes.keys():
        name = wrong[0] if wrong else min(found.keys() ^ family.shapes.keys())
        return [_misshapen(family, name, found.get(name), setting)]
    before = {f: family.fields.fields[f].value for f in setting}
    moved = {f: (before[f], value) for f, value in setting.items() if value != before[f]}
    return UniformConfig(config, moved)


def _filled_fields(family: Family) -> dict[str, int]:
    """Fields that were empty and that discovery found to stand for a size."""
    before, after = family.small.to_dict(), family.fields.config.to_dict()
    return {
        name: value
        for name, value in after.items()
        if before.get(name) is None and type(value) is int
    }


def _atom_sizes(axes: ParameterAxes) -> dict[str, int]:
    return {a.name: a.size for dims in axes.values() for axis in dims for a in atoms(axis)}


def _holds(family: Family, axes: ParameterAxes, group: Sequence[str], count: int) -> bool:
    return isinstance(fit(family, axes, dict.fromkeys(group, count)), UniformConfig)


def _first_reason(family: Family, axes: ParameterAxes, group: Sequence[str]) -> Diagnostic | None:
    """Why no smaller count works; None as soon as one does."""
    full = _atom_sizes(axes).get(group[0], 1)
    halves = [full // 2, full // 4, full - 1, full - 2, full // 3, 1]
    reason = None
    for count in dict.fromkeys(k for k in halves if 0 < k < full):
        found = fit(family, axes, dict.fromkeys(group, count))
        if isinstance(found, UniformConfig):
            return None
        reason = reason or found[0]
    return reason


def _class(family: Family) -> str:
    return type(family.config).__name__


def _layers_differ(
    family: Family, one: str, shape: tuple[int, ...], other: str, shape2: tuple[int, ...]
) -> Diagnostic:
    return Diagnostic(
        "P602",
        f"layers differ in size: {one} becomes {list(shape)} and {other} {list(shape2)},"
        f" but {_class(family)} has one size for all layers",
        where=other,
        help=f"{_PER_LAYER}, or keep the same count in every layer",
    )


def _tied(
    family: Family, task: _Task, field: str, moved: Moved, options: Mapping[Place, set[int]]
) -> Diagnostic:
    """A field makes two dimensions that would need different values of it."""
    changing = next(p for p in options if task.changes(p))
    clash = next((p for p in options if not options[p] & options[changing]), changing)
    return Diagnostic(
        "P603",
        f"{_class(family)}.{field}={moved.value} makes both {_shown(task, changing)}"
        f" and {_shown(task, clash)}: one value cannot give both",
        where=changing[0],
        help=f"{_PER_LAYER}, or leave this group whole with --groups",
    )


def _no_field(family: Family, task: _Task, place: Place) -> Diagnostic:
    return Diagnostic(
        "P604",
        f"no field of {_class(family)} alone makes {_shown(task, place)}",
        where=place[0],
        help=f"{_PER_LAYER}, or leave this group whole with --groups",
    )


def _refused(family: Family, setting: Mapping[str, int], error: Exception) -> Diagnostic:
    values = ", ".join(f"{field}={value}" for field, value in setting.items())
    return Diagnostic(
        "P605",
        f"{_class(family)} refuses {values}: {first_line(error)}",
        where="config.json",
        help=f"{_PER_LAYER}, or keep a count that it accepts",
    )


def _misshapen(
    family: Family, name: str, found: tuple[int, ...] | None, setting: Mapping[str, int]
) -> Diagnostic:
    values = ", ".join(f"{field}={value}" for field, value in setting.items())
    made = "no such parameter" if found is None else f"shape {list(found)}"
    return Diagnostic(
        "P606",
        f"{_class(family)} with {values} gives {made} for {name}, which is not what is left of it",
        where=name,
        help=_PER_LAYER,
    )


def _shown(task: _Task, place: Place) -> str:
    name, dim = place
    old, new = task.dense[name][dim], task.new(place)
    return f"{name}[{dim}] ({old} -> {new})" if old != new else f"{name}[{dim}] (stays {old})"
