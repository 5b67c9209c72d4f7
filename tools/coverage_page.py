"""Render the rows of `coverage.py`: a page, a document for programs, and a plot of typing times."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ALLOWED", "mark", "summary", "write_pages"]

Row = dict[str, Any]

ALLOWED = 1e-5
COLUMNS = ("neuron", "query_head", "kv_head", "head_dim", "channel", "expert", "hidden")
ATTENTION = ("query_head", "kv_head")
MARKS = {"ok": "✓", "part": "some", "pinned": "pinned", "FAIL": "**fails**", "-": "–"}
DONE = "traced"


def mark(role: Row | None) -> str:
    """`ok`: all groups of a role prunable and equal to masking; `part`: others of it are pinned;
    `pinned`; `FAIL`: not equal to masking; `-`: the model has none."""
    if role is None:
        return "-"
    if role.get("error") or role.get("difference", 0.0) > ALLOWED:
        return "FAIL"
    if not role["groups"]:
        return "pinned" if role["pinned"] else "-"
    return "part" if role["pinned"] else "ok"


def write_pages(rows: Sequence[Row], folder: Path, registered: int = 0) -> None:
    """`coverage.md`, `coverage.json` and `coverage.png` in a folder; `registered` is the number of
    types that there are to try."""
    ordered = sorted(rows, key=lambda row: (row.get("task", ""), row["model"]))
    found = {"registered": registered, **summary(ordered)}
    document = {"summary": found, "rows": [_kept(row) for row in ordered]}
    text = json.dumps(document, indent=0, ensure_ascii=False)
    (folder / "coverage.json").write_text(text + "\n", encoding="utf-8")
    (folder / "coverage.md").write_text("\n".join(_page(ordered, found)) + "\n", encoding="utf-8")
    _plot(ordered, folder / "coverage.png")


def _kept(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("sources", "seconds")}


def _is(row: Row, roles: Iterable[str], *marks: str) -> bool:
    return all(mark(row["roles"].get(role)) in marks for role in roles)


def summary(rows: Sequence[Row]) -> Row:
    """The figures that the page begins with."""
    by_status = Counter(row["status"] for row in rows)
    traced = [row for row in rows if row["status"] == DONE]
    built = [row for row in rows if row["status"] != "not built"]
    hidden = [row for row in traced if mark(row["roles"].get("hidden")) != "-"]
    both = [row for row in traced if _is(row, ("neuron", *ATTENTION), "ok", "-")]
    return {
        "attempted": len(rows),
        "built": len(built),
        "traced": len(traced),
        "statuses": dict(by_status),
        "neurons_and_heads": len(both),
        "with_hidden": len(hidden),
        "hidden": sum(_is(row, ("hidden",), "ok") for row in hidden),
        "failing": sum(any(mark(r) == "FAIL" for r in row["roles"].values()) for row in traced),
        "silent": sum(bool(row["silent"]) for row in traced),
        "reachable": statistics.median(row["reachable"] for row in traced) if traced else None,
        **_typing(traced),
    }


def _typing(traced: Sequence[Row]) -> Row:
    timed = [row for row in traced if row.get("type_seconds")]
    if len(timed) < 2:
        return {}
    nodes = np.array([row["nodes"] for row in timed], dtype=float)
    times = np.array([row["type_seconds"] for row in timed]) * 1000
    power = np.polyfit(np.log(nodes), np.log(times), 1)
    return {
        "milliseconds_per_1000_nodes": round(float(np.median(times / nodes)) * 1000, 2),
        "fit_exponent": round(float(power[0]), 2),
        "timed": len(timed),
    }


# -- the page ---------------------------------------------------------------------------------


def _page(rows: Sequence[Row], found: Row) -> Iterator[str]:
    traced = [row for row in rows if row["status"] == DONE]
    yield "# Coverage: every model type of transformers"
    yield ""
    yield from _introduction(found)
    yield ""
    for task in dict.fromkeys(row["task"] for row in traced):
        yield from _table(task, [row for row in traced if row["task"] == task])
    yield from _pins(traced)
    yield from _reasons("Not equal to masking", list(_failing(traced)))
    for status, title in (
        ("not traced", "Not traced"),
        ("stopped", "Stopped"),
        ("crashed", "Ended by a fault"),
        ("not built", "Not built"),
    ):
        listed = [
            (r["model"], r["reason"], r.get("where", "")) for r in rows if r["status"] == status
        ]
        yield from _reasons(title, listed)


def _introduction(found: Row) -> Iterator[str]:
    traced, hidden = max(found["traced"], 1), max(found["with_hidden"], 1)
    yield (
        "Written by `make zoo`. Every model type that transformers registers is built small with "
        "random weights from its own configuration (`tools/shrink.py`), traced, typed, and pruned "
        "role by role: a third of the indices of every group at random. ✓ means that the smaller "
        "program equals the dense one with the same indices zeroed, to 1e-5 of the largest output "
        "(float32 values, sums in float64), at two shapes where the model has no fixed one. "
        "`some`: the same, and further axes of the role are pinned. `–`: the model has no such "
        "axis. What is pinned for being an input, an output or a kernel's window is not counted. "
        "Times are seconds of processor, of tracing and of inferring the axes, on the machine that "
        "happened to run it. A run goes on where the last one stopped."
    )
    yield ""
    yield "| what | found |"
    yield "|---|---|"
    yield f"| model types registered | {found['registered']} |"
    yield f"| attempted so far | {found['attempted']} |"
    yield f"| built | {found['built']} |"
    yield f"| traced | {found['traced']} |"
    share = found["neurons_and_heads"] / traced
    yield (
        f"| of those, every FFN and attention head group prunable and equal to masking | "
        f"{found['neurons_and_heads']} ({share:.1%}) |"
    )
    yield (
        f"| hidden size prunable and equal to masking | {found['hidden']} of "
        f"{found['with_hidden']} that have one ({found['hidden'] / hidden:.1%}) |"
    )
    yield f"| some role not equal to masking | {found['failing']} |"
    yield f"| a dimension neither in a group nor pinned | {found['silent']} |"
    if found.get("reachable") is not None:
        yield f"| share of the parameters in some group, median | {found['reachable']:.1%} |"
    if "fit_exponent" in found:
        yield (
            f"| typing, median of {found['timed']} | {found['milliseconds_per_1000_nodes']} ms per "
            f"1,000 nodes; grows with nodes to the power {found['fit_exponent']} |"
        )
    yield ""
    yield "![typing time against nodes](coverage.png)"


def _table(task: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"## {task.replace('_', ' ')}"
    yield ""
    yield f"| model type | {' | '.join(COLUMNS)} | reachable | nodes | trace s | typing ms |"
    yield "|---|" + "---|" * (len(COLUMNS) + 4)
    for row in rows:
        marks = " | ".join(MARKS[mark(row["roles"].get(role))] for role in COLUMNS)
        yield (
            f"| {row['model']} | {marks} | {row['reachable']:.0%} | {row['nodes']} | "
            f"{row['trace_seconds']:.1f} | {_milliseconds(row)} |"
        )
    yield ""


def _milliseconds(row: Row) -> str:
    seconds = row.get("type_seconds")
    return f"{1000 * seconds:.1f}" if seconds else "–"


def _pins(rows: Sequence[Row]) -> Iterator[str]:
    listed = [
        (row["model"], f"{role}, {pin['places'][0]}: {pin['reason']}", pin["where"])
        for row in rows
        for role, held in row["roles"].items()
        if role in ("neuron", *ATTENTION, "hidden")
        for pin in held.get("pins", [])[:1]
    ]
    yield from _reasons("Pinned neurons, heads and hidden sizes", listed)


def _failing(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for row in rows:
        for role, held in row["roles"].items():
            if mark(held) == "FAIL":
                yield row["model"], f"{role}: {held.get('error') or held['difference']}", ""


def _reasons(title: str, listed: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    if not listed:
        return
    yield f"## {title}"
    yield ""
    yield "| model type | reason | where |"
    yield "|---|---|---|"
    for model, reason, where in listed:
        yield f"| {model} | {_cell(reason)} | {_cell(where)} |"
    yield ""


def _cell(text: str) -> str:
    """Text that fits a table: one line, no bars, no folders of the machine."""
    words = " ".join(text.split())[:240].replace("|", "\\|").split(" ")
    return " ".join(word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in words)


def _plot(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traced = [row for row in rows if row["status"] == DONE and row.get("type_seconds")]
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    nodes = [row["nodes"] for row in traced]
    axes.loglog(nodes, [1000 * row["type_seconds"] for row in traced], ".", alpha=0.6)
    if traced:
        ends = np.array([min(nodes), max(nodes)])
        slope = summary(traced).get("milliseconds_per_1000_nodes", 0.0)
        axes.loglog(ends, ends * slope / 1000, "--", label=f"{slope} ms per 1,000 nodes (median)")
        axes.legend()
    axes.set_xlabel("operations in the traced program")
    axes.set_ylabel("typing time in ms")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
