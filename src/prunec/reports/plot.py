"""Pictures of a sensitivity report: a heat map of what goes alone, and curves over the widths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from prunec.verbs.sensitivity import SensitivityReport, SensitivityRow

__all__ = ["picture"]

NUMBERED = re.compile(r".*?\b\d+\b")
LEAST = 1e-6
"""What costs less, or nothing at all, is drawn as so much."""

STYLE: Any = {"svg.hashsalt": "prunec", "font.size": 8}


def picture(report: SensitivityReport, path: Path) -> None:
    """Write one picture as SVG or PNG, as the name of the file says. Damage is on a logarithmic
    scale: the increase in loss, the error of the outputs, or the estimate of the former."""
    from matplotlib.figure import Figure

    alone = [row for row in report.rows if row.kept is None]
    widths = [row for row in report.rows if row.kept is not None]
    panels = [(draw, rows) for draw, rows in ((_heat, alone), (_curves, widths)) if rows]
    with mpl.rc_context(STYLE):
        layers = len(_layers(alone or widths))
        figure = Figure(figsize=(6.4 * len(panels), 2 + 0.16 * layers), layout="constrained")
        for axes, (draw, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels,
                                      strict=True):  # fmt: skip
            draw(axes, rows, report)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def damage(row: SensitivityRow) -> float:
    """The figure that is drawn: what there is of loss, error and estimate."""
    return next((v for v in (row.loss, row.error, row.estimate) if v == v), float("nan"))


def _layers(rows: Sequence[SensitivityRow]) -> list[str]:
    """The first numbered modules on the paths of what was removed, in their order."""
    return list(dict.fromkeys(_placed(row)[0] for row in rows))


def _placed(row: SensitivityRow) -> tuple[str, str]:
    """The numbered module that something lies in, and what it is there."""
    path = row.name.partition("/")[0]
    layer = NUMBERED.match(path)
    inside = path[layer.end() :].removeprefix(".") if layer else ""
    return layer[0] if layer else path, f"{inside} {row.role}".strip()


def _heat(axes: Any, rows: Sequence[SensitivityRow], report: SensitivityReport) -> None:
    """One line a layer; columns of what it has, each index of a group beside the others."""
    from matplotlib.colors import LogNorm

    layers = _layers(rows)
    columns: dict[tuple[str, int | None], int] = {}
    for what in dict.fromkeys(_placed(row)[1] for row in rows):
        indices = {row.index for row in rows if _placed(row)[1] == what}
        for index in sorted(indices, key=lambda i: -1 if i is None else i):
            columns[what, index] = len(columns)
    grid = [[float("nan")] * len(columns) for _ in layers]
    for row in rows:
        layer, what = _placed(row)
        grid[layers.index(layer)][columns[what, row.index]] = max(damage(row), LEAST)
    image = axes.imshow(grid, aspect="auto", norm=LogNorm(), cmap="viridis")
    axes.set_yticks(range(len(layers)), layers, fontsize=5)
    firsts: dict[str, int] = {}
    for (what, _), column in columns.items():
        firsts.setdefault(what, column)
    axes.set_xticks(list(firsts.values()), list(firsts), rotation=30, ha="right", fontsize=6)
    for column in list(firsts.values())[1:]:
        axes.axvline(column - 0.5, color="white", linewidth=2)
    axes.set_title(f"removed alone: {_what(report)}")
    axes.figure.colorbar(image, ax=axes)


def _curves(axes: Any, rows: Sequence[SensitivityRow], report: SensitivityReport) -> None:
    """Damage over depth, one curve for each share that stays."""
    layers = _layers(rows)
    for kept in sorted({row.kept for row in rows if row.kept is not None}, reverse=True):
        own = [row for row in rows if row.kept == kept]
        x = [layers.index(_placed(row)[0]) for row in own]
        axes.plot(x, [max(damage(row), LEAST) for row in own], marker=".", label=f"{kept:.0%} left")
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    axes.set_title(f"widths: {_what(report)}")
    axes.legend()


def _what(report: SensitivityReport) -> str:
    if report.fast:
        return "first-order estimate"
    return "increase in loss" if report.loss == report.loss else "error of the outputs"
