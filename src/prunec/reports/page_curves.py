"""Curves of groups and the front of sizes, as the lines and points that the page draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prunec.reports.data import CurveRow, FrontRow, GroupRow

__all__ = ["Curves", "Front", "fronts", "role_curves"]

LEFT, RIGHT, TOP, BOTTOM = 52, 440, 14, 170
"""The frame of a plot, in its own units."""

TICKS = 4


@dataclass(frozen=True)
class Line:
    """A curve; `shade` is 0 for the first layer and 1 for the last, `x`, `y` where it was cut."""

    points: str
    shade: float
    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curves:
    """The curves of the groups of one role; `kind` as in `CurveRow`."""

    role: str
    kind: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Dot:
    """A point of a front."""

    x: float
    y: float
    title: str
    chosen: bool


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, `at` in the plot's units."""

    at: float
    label: str


@dataclass(frozen=True)
class Front:
    """What is lost against a cost; `line` joins the dots where they are of one kind."""

    across: str
    line: str
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    rows: tuple[Tick, ...]


def role_curves(curves: Sequence[CurveRow], groups: Sequence[GroupRow]) -> list[Curves]:
    """A plot for each role and kind of curve, its groups in the order of the report."""
    known = {group.name: group for group in groups}
    found: dict[tuple[str, str], list[CurveRow]] = {}
    for curve in curves:
        found.setdefault((known[curve.group].role, curve.kind), []).append(curve)
    return [
        Curves(
            role or "group",
            kind,
            tuple(
                _line(curve, known[curve.group], place / max(1, len(members) - 1))
                for place, curve in enumerate(members)
            ),
        )
        for (role, kind), members in found.items()
    ]


def fronts(rows: Sequence[FrontRow]) -> list[Front]:
    """Against parameters, and against time where plans were timed."""
    timed = [row for row in rows if row.seconds is not None]
    found = []
    if len(rows) > 1:
        even = [row for row in rows if row.seconds is None or row.chosen]
        costs = [100 * row.params for row in even]
        found.append(_front("parameters left, %", even, costs, joined=True))
    if len(timed) > 1:
        costs = [1e3 * row.seconds for row in timed if row.seconds is not None]
        found.append(_front("milliseconds, measured", timed, costs, joined=False))
    return found


def _line(curve: CurveRow, group: GroupRow, shade: float) -> Line:
    size = curve.kept[-1]
    left = size if group.kept is None else group.kept
    points = [
        (_across(k, 0, size), _down(v, 1)) for k, v in zip(curve.kept, curve.lost, strict=True)
    ]
    y = _between(curve, left)
    return Line(
        " ".join(f"{x},{y}" for x, y in points),
        round(shade, 3),
        _across(left, 0, size),
        _down(y, 1),
        f"{group.name}: {left} of {size} kept, {100 * y:.1f} % lost",
    )


def _between(curve: CurveRow, count: int) -> float:
    """The value at a count, on the line between the nearest points."""
    pairs = list(zip(curve.kept, curve.lost, strict=True))
    for (low, before), (high, after) in pairwise(pairs):
        if low <= count <= high:
            return before + (after - before) * (count - low) / (high - low)
    return pairs[-1][1]


def _front(across: str, rows: Sequence[FrontRow], costs: Sequence[float], *, joined: bool) -> Front:
    low, high = min(costs), max(costs)
    marks = _marks(0, 100 * max((row.lost for row in rows), default=0.0) or 1.0, over=True)
    top = marks[-1] / 100
    dots = tuple(
        Dot(
            _across(cost, low, high),
            _down(row.lost, top),
            f"{cost:.3g}: {100 * row.lost:.1f} % lost",
            row.chosen,
        )
        for row, cost in zip(rows, costs, strict=True)
    )
    line = " ".join(f"{dot.x},{dot.y}" for dot in dots if not dot.chosen) if joined else ""
    ticks = tuple(Tick(_across(mark, low, high), f"{mark:.4g}") for mark in _marks(low, high))
    rows_ = tuple(Tick(_down(mark / 100, top), f"{mark:.4g} %") for mark in marks)
    return Front(across, line, dots, ticks, rows_)


def _marks(low: float, high: float, *, over: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, a handful; with `over` the last one is beyond."""
    if high <= low:
        return [low]
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (1, 2, 2.5, 5, 10) if power * part >= rough * 0.999)
    last = (math.ceil if over else math.floor)(high / step * (1 - 1e-9 if over else 1 + 1e-9))
    return [step * number for number in range(math.ceil(low / step * (1 - 1e-9)), last + 1)]


def _across(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(LEFT + share * (RIGHT - LEFT), 2)


def _down(value: float, top: float) -> float:
    return round(BOTTOM - value / top * (BOTTOM - TOP), 2)
