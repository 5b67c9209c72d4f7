"""The report of a run as one page of HTML that opens offline: no script, nothing fetched.

Everything that comes from the model, its files or the user is escaped where it is put into the
page, by jinja2, and control characters are spelled out first: a name cannot become markup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from prunec.cli.show import (
    alike,
    amount,
    in_unit,
    kind_of_pin,
    measured_on,
    patterns,
    perplexity,
)
from prunec.reports.card import SHOWN, model_name, told_calibration
from prunec.reports.data import GroupRow, PinRow, PruneReport
from prunec.reports.escape import printable
from prunec.reports.page_curves import fronts, role_curves

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render_page"]

LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
WIDTH, LEFT, TALL = 900, 38, 90
"""Of a chart, in its own units: width, where bars begin, height of the highest."""
MOST_PLACES = 24
LABELS = 24
"""Bars that are labelled, about."""


@dataclass(frozen=True)
class Bar:
    """One group in a chart: heights in the chart's units."""

    x: float
    dense: float
    kept: float
    label: str
    title: str


@dataclass(frozen=True)
class Chart:
    """The groups of one role, layer by layer."""

    role: str
    dense: str
    kept: str
    top: int
    thick: float
    bars: tuple[Bar, ...]
    width: int = WIDTH

    @property
    def layered(self) -> bool:
        return any(bar.label for bar in self.bars)


@dataclass(frozen=True)
class Place:
    """Where a group lies: a parameter with its layer left out, and which dimension of it."""

    name: str
    dim: int

    @property
    def what(self) -> str:
        return {0: "rows", 1: "columns"}.get(self.dim, f"dimension {self.dim}")


@dataclass(frozen=True)
class Kept:
    """A group in a table."""

    name: str
    size: int
    left: int


@dataclass(frozen=True)
class Family:
    """Groups that differ by nothing but their layer."""

    role: str
    size: int
    count: int
    cost: int
    cut: int
    places: tuple[Place, ...]
    more: int
    groups: tuple[Kept, ...]


def render_page(report: PruneReport, recipe: str = "") -> str:
    """The page of a run; `recipe` is the text of recipe.yaml, empty where there is none."""
    costs = [(label, getattr(report.dense, f), getattr(report.pruned, f)) for label, f in SHOWN]
    return _template().render(
        report=report,
        recipe=recipe,
        name=model_name(report.model),
        calibration=told_calibration(report.calibration),
        costs=[row for row in costs if row[1]],
        entropy=bool(report.sources) and report.sources[0].metric == "cross_entropy",
        charts=list(_charts([*_layers(report), *report.groups])),
        curves=role_curves(report.curves, report.groups),
        fronts=fronts(report.front),
        families=[_family(groups) for groups in alike(report.groups)],
        pinned=_pinned(report.pinned),
        unrestored=sorted(report.notes.get("unrestored", {}).items()),
        amount=amount,
        in_unit=in_unit,
        perplexity=perplexity,
        measured_on=measured_on,
        milliseconds=lambda seconds: f"{1e3 * seconds:,.3g} ms",
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown)
    text = resources.files("prunec.reports").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def _shown(value: Any) -> Any:
    """What an expression puts into the page: plain text without characters that hide or move
    others. Markup that is escaped already has none."""
    return printable(value) if type(value) is str else value


def _charts(groups: Iterable[GroupRow]) -> Iterable[Chart]:
    """A chart for each role that lost something, its groups in the order of layers."""
    by_role: dict[str, list[GroupRow]] = {}
    for group in groups:
        by_role.setdefault(group.role, []).append(group)
    for role, members in by_role.items():
        if any(_left(g) < g.size for g in members):
            yield _chart(role, sorted(members, key=_layer))


def _layers(report: PruneReport) -> list[GroupRow]:
    """The layers of a model of which something went as a whole, each with its groups as indices."""
    found: dict[int, list[GroupRow]] = {}
    for group in report.groups if report.removed else ():
        found.setdefault(_layer(group), []).append(group)
    found.pop(-1, None)
    return [
        GroupRow(
            f"groups of layer {number}", "layer", len(groups), groups[0].places,
            kept=sum(_left(group) > 0 for group in groups),
        )
        for number, groups in found.items()
    ]  # fmt: skip


def _chart(role: str, groups: Sequence[GroupRow]) -> Chart:
    top = max(g.size for g in groups)
    step = min(90.0, (WIDTH - LEFT) / len(groups))
    every = -(-len(groups) // LABELS)
    numbers = [_layer(g) for g in groups]
    distinct = max(Counter(numbers).values()) == 1
    bars = tuple(
        Bar(
            x=round(LEFT + i * step, 2),
            dense=round(TALL * g.size / top, 2),
            kept=round(TALL * _left(g) / top, 2),
            label=str(numbers[i]) if distinct and numbers[i] >= 0 and i % every == 0 else "",
            title=f"{g.name}: {_left(g)} of {g.size} kept",
        )
        for i, g in enumerate(groups)
    )
    dense, kept = (sum(x) for x in zip(*((g.size, _left(g)) for g in groups), strict=True))
    return Chart(role, f"{dense:,}", f"{kept:,}", top, round(step * 0.8, 2), bars)


def _left(group: GroupRow) -> int:
    return group.size if group.kept is None else group.kept


def _layer(group: GroupRow) -> int:
    """The number of the layer that a group is in; -1 when it is in none, or in several."""
    found = {m[1] for name, _ in group.places if (m := LAYER.search(name))}
    return int(found.pop()) if len(found) == 1 else -1


def _family(groups: Sequence[GroupRow]) -> Family:
    first = groups[0]
    places = [_place(text) for text in patterns(first)]
    return Family(
        role=first.role or "group",
        size=first.size,
        count=len(groups),
        cost=first.params_per_index,
        cut=sum(_left(g) < g.size for g in groups),
        places=tuple(places[:MOST_PLACES]),
        more=max(0, len(places) - MOST_PLACES),
        groups=tuple(Kept(g.name, g.size, _left(g)) for g in sorted(groups, key=_layer)),
    )


def _place(text: str) -> Place:
    name, _, dim = text.removesuffix("]").rpartition("[")
    return Place(name, int(dim))


def _pinned(pins: Iterable[PinRow]) -> list[tuple[str, list[PinRow]]]:
    """Pins by reason, the commonest first."""
    found: dict[str, list[PinRow]] = {}
    for pin in pins:
        found.setdefault(kind_of_pin(pin.reason), []).append(pin)
    return sorted(found.items(), key=lambda item: -len(item[1]))
