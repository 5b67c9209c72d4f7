"""Plot the rows of quality.py: quality over parameters left, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quality_rows import DENSE

__all__ = ["WORST", "plot"]

Document = dict[str, Any]
Cells = Mapping[tuple[str, int, str], Document]

OURS = "auto"
WORST = 20.0
"""Perplexities beyond so many times the dense one leave the plot, which would show nothing else."""
STEPS = (1, 1.5, 2, 3, 5, 8, 12, WORST)
"""Where the axis has numbers, in units of the dense perplexity."""
LEAST = 1e-6
"""What a similarity lacks to 1 is no less than this on the logarithmic axis."""
MARKERS = "osD^vP<X>ph*d"
WIDTH, HEIGHT, LEGEND = 3.4, 2.9, 1.2
"""Inches: of a panel, and what the names at the right take."""


def plot(
    path: Path, cells: Cells, titles: Mapping[str, str], shares: Sequence[int], names: Sequence[str]
) -> int:
    """Write an SVG file with a panel for each model and text; the number of points in it.

    `cells` holds rows by model, share and method, the dense one of each model at 100 %; models in
    `titles` without that have no panel. The same rows give the same file.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    dense = {name: cells.get((name, 100, DENSE), {}) for name in titles}
    models = [name for name, row in dense.items() if "quality" in row]
    if not models:
        return 0
    texts = list(dense[models[0]]["quality"])
    with matplotlib.rc_context(
        {"svg.hashsalt": "prunec", "svg.fonttype": "none", "font.size": 8.0}
    ):
        size = (WIDTH * len(texts) + LEGEND, HEIGHT * len(models))
        figure, axes = pyplot.subplots(len(models), len(texts), figsize=size, squeeze=False)
        points = 0
        for line, model in zip(axes, models, strict=True):
            for panel, text in zip(line, texts, strict=True):
                panel.set_title(f"{titles[model]}, {text}")
                for number, name in enumerate(names):
                    rows = [cells.get((model, share, name), {}) for share in shares]
                    points += _line(panel, rows, text, _style(number, name))
                _finish(panel, dense[model], text)
        _legend(figure, axes, (*names, DENSE))
        figure.tight_layout(rect=(0, 0, 1 - LEGEND / size[0], 1))
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return points


def _line(panel: Any, rows: Sequence[Document], text: str, style: Mapping[str, Any]) -> int:
    """One method: its rows that were measured, by size."""
    points = sorted(_point(row, text) for row in rows if "quality" in row)
    if points:
        panel.plot(*zip(*points, strict=True), **style)
    return len(points)


def _point(row: Document, text: str) -> tuple[float, float]:
    """Millions of parameters, and the perplexity or what the similarity lacks to 1."""
    value = row["quality"][text]
    if value is None:  # what overflows
        value = math.nan
    elif row["metric"] == "similarity":
        value = max(1 - value, LEAST)
    return row["params"] / 1e6, value


def _finish(panel: Any, dense: Document, text: str) -> None:
    """Axes and the dense model, which an encoder's axis has infinitely far below."""
    panel.set_xlabel("million parameters left")
    panel.set_yscale("log")
    panel.grid(alpha=0.25, linewidth=0.5)
    if dense["metric"] == "similarity":
        panel.set_ylabel("1 - cosine similarity")
        return
    value = dense["quality"][text]
    panel.set_ylabel("perplexity")
    panel.plot([dense["params"] / 1e6], [value], "kx", markersize=6, label=DENSE)
    panel.axhline(value, color="k", linewidth=0.5, linestyle=":")
    panel.set_ylim(value * 0.9, value * WORST)
    panel.set_yticks([value * step for step in STEPS], [f"{value * s:,.3g}" for s in STEPS])
    panel.minorticks_off()


def _style(number: int, name: str) -> dict[str, Any]:
    """Ours stands out; each of the others has a colour and a marker of its own."""
    if name == OURS:
        ours = {"color": "black", "linewidth": 2.2, "marker": "o", "markersize": 4, "zorder": 3}
        return {"label": name, **ours}
    from matplotlib import colormaps

    order = [*range(0, 20, 2), *range(1, 20, 2)]  # the strong ones of the pairs first
    return {
        "label": name,
        "color": colormaps["tab20"](order[number % 20]),
        "linewidth": 1.0,
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 3,
    }


def _legend(figure: Any, axes: Any, names: Sequence[str]) -> None:
    """One for all panels, in the order of the names."""
    found: dict[str, Any] = {}
    for panel in axes.flat:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    shown = [name for name in names if name in found]
    figure.legend([found[name] for name in shown], shown, loc="center right", frameon=False)
