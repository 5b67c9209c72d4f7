"""Render the rows of quality.py as a page of tables, with their plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quality_plot import WORST, plot
from quality_rows import DENSE, FIRST

__all__ = ["Page"]

Document = dict[str, Any]

TITLES = {"smollm2": "SmolLM2-135M", "gemma3": "Gemma-3-270M", "minilm": "MiniLM-L6"}
METRICS = {
    "perplexity": "Perplexity, lower is better:",
    "similarity": "Cosine similarity to the dense model, higher is better:",
}
MANY = 8
"""So many missing rows are listed one by one; more are counted."""
LONG = 200
"""Characters of an error that are shown."""

INTRO = """\
# Quality

What the smaller model can still do, by method. Every preset of `--method` prunes the same models
to the same shares of their blocks (everything but embeddings and output head), calibrated on the
same {samples} windows of {length} tokens of WikiText-2 valid, without retraining:

    prunec prune MODEL -o OUT --target blocks=P% --method NAME \\
        --layout {layout} --format hf --calibration wikitext2-valid.txt \\
        --calibration-samples {samples} --calibration-length {length}

Language models have their perplexity on the first {windows} windows of {window} tokens of three
texts: `wikitext` is WikiText-2 test, `docs` prose from Python's documentation, which nothing was
calibrated on, and `code` source code of Python's standard library. Encoders have the mean cosine
between their pooled outputs and those of the dense model, on as many tokens in shorter windows.
`x` is the ratio to dense. GFLOPs are those of one sequence of {flops_length} tokens. Seconds are
the wall time of the whole command, from reading the model to writing it; `peak` is its resident
memory, files that it maps included, `own` what is not backed by a file.
{load}

[Methods](methods.md) says what the names mean. This page is written by

    python benchmarks/quality.py --write docs

from the rows that were measured{versions}.
"""

PLOT = f"""\
![Quality over the parameters that are left](quality.svg)

(Axes are logarithmic; perplexities beyond {WORST:.0f} times the dense one are not in the picture.)
"""


@dataclass(frozen=True)
class Page:
    """What is known: rows that were measured, and labels of those that were not."""

    setting: Mapping[str, Any]
    rows: tuple[Document, ...]
    missing: tuple[str, ...]
    shares: tuple[int, ...]
    methods: tuple[str, ...]

    @cached_property
    def cells(self) -> Mapping[tuple[str, int, str], Document]:
        return {(row["model"], row["share"], row["method"]): row for row in self.rows}

    @cached_property
    def titles(self) -> Mapping[str, str]:
        names = {row["model"]: Path(row["model"]).name for row in self.rows}
        return {model: TITLES.get(name, name) for model, name in names.items()}

    def plot(self, path: Path) -> int:
        """Write the plot; the number of points in it."""
        return plot(path, self.cells, self.titles, self.shares, self.methods)

    def text(self) -> str:
        sources = sorted({row["sources"] for row in self.rows})
        versions = f" by sources {', '.join(sources)}" if sources else ""
        length = next((row["length"] for row in self.rows if "length" in row), 512)
        loads = [row["load_before"] for row in self.rows if "load_before" in row]
        load = f"The load of the machine before was at most {max(loads):.1f}.\n" if loads else ""
        told = {"versions": versions, "load": load, "flops_length": length}
        parts = [INTRO.format(**self.setting, **told)]
        parts += self._absent()
        parts += [PLOT]
        for model, title in self.titles.items():
            parts += [f"## {title}\n"]
            for share in self.shares:
                parts += [f"### {title}, blocks at {share} %\n", *self._share(model, share)]
            parts += self._times(model)
        return "\n".join(parts)

    def _absent(self) -> list[str]:
        if not self.missing:
            return []
        some, more = ", ".join(self.missing[:MANY]), len(self.missing) - MANY
        return [f"Not measured: {some}{f' and {more} more' if more > 0 else ''}.\n"]

    def _dense(self, model: str) -> Document | None:
        found = self.cells.get((model, 100, DENSE))
        return None if found is None or "error" in found else found

    def _rows(self, model: str, share: int) -> list[Document]:
        found = (self.cells.get((model, share, method)) for method in self.methods)
        return [row for row in found if row is not None]

    def _share(self, model: str, share: int) -> list[str]:
        """Dense first, then from best to worst on the first text, then what failed."""
        rows = self._rows(model, share)
        done = sorted((row for row in rows if "error" not in row), key=_badness)
        told = []
        if done:
            dense = self._dense(model)
            told += [f"{METRICS[done[0]['metric']]}\n", _table(dense, done)]
        told += [
            f"`{row['method']}` failed: {_flat(row['error'])}\n" for row in rows if "error" in row
        ]
        absent = [m for m in self.methods if (model, share, m) not in self.cells]
        if absent:
            told.append(f"Not measured: {', '.join(absent)}.\n")
        return told

    def _times(self, model: str) -> list[str]:
        """Where the time goes, at the first share that was measured."""
        for share in (*FIRST, *self.shares):
            rows = [row for row in self._rows(model, share) if "parts" in row]
            if not rows:
                continue
            parts = list(dict.fromkeys(part for row in rows for part in row["parts"]))
            lines = [_line(["method", *parts, "all"]), "|---|" + "---:|" * (len(parts) + 1)]
            for row in rows:
                times = [f"{row['parts'][p]:.1f}" if p in row["parts"] else "" for p in parts]
                lines.append(_line([f"`{row['method']}`", *times, f"{row['seconds']:.1f}"]))
            title = f"### {self.titles[model]}: seconds by part, blocks at {share} %\n"
            return [title, "\n".join(lines) + "\n"]
        return []


def _table(dense: Document | None, done: Sequence[Document]) -> str:
    shown = [*([dense] if dense else ()), *done]
    texts = list(shown[0]["quality"])
    head = ["method", "parameters", "blocks", "GFLOPs"]
    head += [name for text in texts for name in _columns(text, shown[0]["metric"])]
    head += ["seconds", "peak GB", "own GB"]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    lines += [_line(_cells(row, dense, texts)) for row in shown]
    return "\n".join(lines) + "\n"


def _cells(row: Document, dense: Document | None, texts: Sequence[str]) -> list[str]:
    name = DENSE if row["method"] == DENSE else f"`{row['method']}`"
    if not row.get("met", True):
        name += " (target missed)"
    values = []
    for text in texts:
        ratio = row.get("ratio", {}).get(text)
        shown = (_value(row["quality"][text], row["metric"]), _ratio(ratio))
        values += shown[: len(_columns(text, row["metric"]))]
    return [
        name,
        f"{row['params'] / 1e6:,.2f} M",
        f"{row['blocks'] / dense['blocks']:.2%}" if dense else "",
        f"{row['flops'] / 1e9:,.2f}",
        *values,
        f"{row['seconds']:,.0f}" if "seconds" in row else "",
        _gigabytes(row.get("peak_rss")),
        _gigabytes(row.get("peak_anonymous")),
    ]


def _columns(text: str, metric: str) -> tuple[str, ...]:
    """The value on a text, and the ratio to dense where that is not the same."""
    return (text, "x") if metric == "perplexity" else (text,)


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"


def _gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def _value(value: float | None, metric: str) -> str:
    if value is None:
        return "overflows"
    if metric == "similarity":
        return f"{value:.4f}"
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _badness(row: Document) -> float:
    value = next(iter(row["quality"].values()))
    if value is None:
        return math.inf
    return float(-value if row["metric"] == "similarity" else value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _flat(error: str) -> str:
    """On one line, and short."""
    words = " ".join(error.split())
    return words if len(words) < LONG else f"{words[:LONG]} ..."
