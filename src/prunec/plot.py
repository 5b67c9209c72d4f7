"""Pictures of a sensitivity report: a heat map of what goes alone, and curves over the widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

if TYPE_CHECKING:
    from prunec.sensitivity import SensitivityReport, SensitivityRow

__all__ = ["picture"]

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
    return list(dict.fromkeys(row.layer for row in rows))


def _heat(axes: Any, rows: Sequence[SensitivityRow], report: SensitivityReport) -> None:
    """One line a module, one cell for each thing in it that was removed alone."""
    from matplotlib.colors import LogNorm

    layers = _layers(rows)
    places: dict[str, int] = {}
    cells: list[tuple[int, int, float]] = []
    for row in rows:
        line = layers.index(row.layer)
        column = places.get(row.layer, 0)
        places[row.layer] = column + 1
        cells.append((line, column, max(damage(row), 1e-6)))
    grid = [[float("nan")] * max(places.values()) for _ in layers]
    for line, column, value in cells:
        grid[line][column] = value
    image = axes.imshow(grid, aspect="auto", norm=LogNorm(), cmap="viridis")
    axes.set_yticks(range(len(layers)), layers, fontsize=5)
    axes.set_xlabel("heads, sublayers and layers, in the order of the table")
    axes.set_title(f"removed alone: {_what(report)}")
    axes.figure.colorbar(image, ax=axes)


def _curves(axes: Any, rows: Sequence[SensitivityRow], report: SensitivityReport) -> None:
    """Damage over depth, one curve for each share that stays."""
    layers = _layers(rows)
    for kept in sorted({row.kept for row in rows if row.kept is not None}, reverse=True):
        own = [row for row in rows if row.kept == kept]
        x = [layers.index(row.layer) for row in own]
        axes.plot(x, [max(damage(row), 1e-6) for row in own], marker=".", label=f"{kept:.0%} left")
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_title(f"widths: {_what(report)}")
    axes.legend()


def _what(report: SensitivityReport) -> str:
    if report.fast:
        return "first-order estimate"
    return "increase in loss" if report.loss == report.loss else "error of the outputs"
