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
FORMATS = {"onnx": 1e-4, "torchscript": 1e-5}
"""Largest difference of what a format computes in float32: ONNX Runtime has its own kernels."""
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


def agrees(row: Row, name: str) -> bool | None:
    """Whether a format of the smaller program computes what the executor does; None when it was
    not tried."""
    found = row.get("formats", {}).get(name)
    return None if found is None else found.get("difference", np.inf) <= FORMATS[name]


def write_pages(rows: Sequence[Row], folder: Path, registered: int = 0) -> None:
    """`coverage.md`, `coverage.json` and `coverage.png` in a folder; `registered` is the number of
    types that there are to try."""
    ordered = sorted(rows, key=lambda row: (row.get("task", ""), row["model"]))
    found = {"registered": registered, **summary(ordered)}
    document = {"summary": found, "rows": [_kept(row) for row in ordered]}
    text = json.dumps(document, indent=0, ensure_ascii=False)
    (folder / "coverage.json").write_text(text + "\n", encoding="utf-8")
    (folder / "coverage.md").write_text("\n".join(_page(ordered, found)) + "\n", encoding="utf-8")
    _plot(ordered, found, folder / "coverage.png")


def _kept(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("sources", "seconds")}


def _is(row: Row, roles: Iterable[str], *marks: str) -> bool:
    """Whether the roles have one of the marks; a program that did not run has proven none."""
    return bool(row["roles"]) and all(mark(row["roles"].get(role)) in marks for role in roles)


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
        "other_programs": sum(_differs(row) is not None for row in traced),
        "together": [
            sum(mark(_all(row)) == "ok" for row in traced),
            sum("together" in row for row in traced),
        ],
        "silent": sum(bool(row["silent"]) for row in traced),
        "formats": {
            name: [sum(map(bool, tried)), len(tried)]
            for name in FORMATS
            if (tried := [a for row in traced if (a := agrees(row, name)) is not None])
        },
        "rival": _rival(traced),
        "sources": len({row["sources"] for row in rows if row.get("sources")}),
        "reachable": statistics.median(row["reachable"] for row in traced) if traced else None,
        **_typing(traced),
    }


def _differs(row: Row) -> str | None:
    """How far the traced program is from the model itself, where that is more than rounding."""
    found = row.get("program", {})
    if "reason" in found:
        return str(found["reason"])
    far = found.get("difference", 0.0)
    return f"{far:.2g} of the largest output" if far > FORMATS["onnx"] else None


def _all(row: Row) -> Row | None:
    """All groups pruned at once, as a role that everything has."""
    found = row.get("together")
    return None if found is None else {"groups": 1, "pinned": 0, **found}


def _rival(traced: Sequence[Row]) -> Row:
    """How the rival fared: the roles that it was asked for, by outcome, and the models of which it
    could prune all roles."""
    tried = [row["rival"] for row in traced if row.get("rival")]
    outcomes = Counter(role["outcome"] for roles in tried for role in roles.values())
    whole = sum(all(r["outcome"] == EQUAL for r in roles.values()) for roles in tried)
    return {"models": len(tried), "whole": whole, "roles": dict(outcomes)} if tried else {}


EQUAL = "equal"


def _typing(traced: Sequence[Row]) -> Row:
    """Typing time against nodes: the median rate, the line of least squares, and the power."""
    timed = [row for row in traced if row.get("type_seconds")]
    if len(timed) < 2:
        return {}
    nodes = np.array([row["nodes"] for row in timed], dtype=float)
    operations = np.array([row["operations"] for row in timed], dtype=float)
    times = np.array([row["type_seconds"] for row in timed]) * 1000
    slope, start = np.polyfit(nodes, times, 1)
    power, _ = np.polyfit(np.log(nodes), np.log(times), 1)
    return {
        "milliseconds_per_1000_nodes": round(float(np.median(times / nodes)) * 1000, 2),
        "milliseconds_per_1000_operations": round(float(np.median(times / operations)) * 1000, 2),
        "fit_slope": round(float(slope) * 1000, 2),
        "fit_start": round(float(start), 3),
        "fit_r2": round(float(np.corrcoef(nodes, times)[0, 1]) ** 2, 3),
        "fit_exponent": round(float(power), 2),
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
    yield from _reasons("Formats that do not agree", list(_formats(traced)))
    yield from _reasons(
        "Programs unlike the model that is not traced",
        [(row["model"], far, "") for row in traced if (far := _differs(row)) is not None],
    )
    yield from _reasons("What Torch-Pruning could not prune", list(_beaten(traced)))
    for status, title in (
        ("not traced", "Not traced"),
        ("stopped", "Stopped for their time or memory"),
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
        "axis. What is pinned for being an input, an output, a kernel's window or the number of a "
        "part (query, key and value in one matrix; sine and cosine) is not counted. "
        "`all`: every group of every role pruned at once; that program is also written as ONNX and "
        "TorchScript, read back, and run beside the executor at the same shapes in float32 (1e-4 "
        "and 1e-5). Times are of the processor: of tracing, and of inferring the axes (the mean of "
        "as many times as take 0.2 s), on the machine that happened to run it. How models are "
        "shrunk, what the zoo taught and which adapters tracing needs: "
        "[design/zoo.md](design/zoo.md)."
    )
    yield ""
    yield (
        "Torch-Pruning 1.6.1 is asked for the same units of the same layers "
        "(`benchmarks/torch_pruning_zoo.py`), with no hand-written settings for a model, and its "
        "model is compared with the same masked program, at 1e-4 since it sums in float32; the "
        "column counts the roles that it prunes so."
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
    yield f"| traced program unlike the model that is not traced | {found['other_programs']} |"
    told = {"all roles at once equal to masking": found["together"]}
    told |= {f"{name} agrees with the executor": pair for name, pair in found["formats"].items()}
    for what, (good, tried) in told.items():
        yield f"| {what} | {good} of {tried} tried |"
    yield f"| a dimension neither in a group nor pinned | {found['silent']} |"
    if found.get("reachable") is not None:
        yield f"| share of the parameters in some group, median | {found['reachable']:.1%} |"
    if "fit_exponent" in found:
        yield (
            f"| typing, median of {found['timed']} | {found['milliseconds_per_1000_nodes']} ms per "
            f"1,000 nodes (operations, parameters, inputs and the output, as fx counts them; "
            f"{found['milliseconds_per_1000_operations']} ms per 1,000 operations); the line of "
            f"least squares is {found['fit_start']} ms + {found['fit_slope']} ms per 1,000 nodes "
            f"(R² {found['fit_r2']}), the power of nodes {found['fit_exponent']} |"
        )
    if rival := found["rival"]:
        roles = ", ".join(f"{count} {outcome}" for outcome, count in sorted(rival["roles"].items()))
        yield (
            f"| Torch-Pruning, every role equal to masking | {rival['whole']} of "
            f"{rival['models']} models; roles: {roles} |"
        )
    yield (
        "| states of prunec's sources that the rows were found with, at least | "
        f"{found['sources']} |"
    )
    yield ""
    yield "![typing time against nodes](coverage.png)"


def _table(task: str, rows: Sequence[Row]) -> Iterator[str]:
    heads = (*COLUMNS, "all", *FORMATS, "Torch-Pruning", "reachable", "nodes", "trace s")
    yield f"## {task.replace('_', ' ')}"
    yield ""
    yield f"| model type | {' | '.join(heads)} | typing ms |"
    yield "|---|" + "---|" * (len(heads) + 1)
    for row in rows:
        cells = [MARKS[mark(row["roles"].get(role))] for role in COLUMNS]
        cells += [MARKS[mark(_all(row))], *(AGREES[agrees(row, name)] for name in FORMATS)]
        cells += [_asked(row), f"{row['reachable']:.0%}", str(row["nodes"])]
        cells += [f"{row['trace_seconds']:.1f}", _milliseconds(row)]
        yield f"| {row['model']} | {' | '.join(cells)} |"
    yield ""


AGREES = {True: "✓", False: "**no**", None: "–"}


def _asked(row: Row) -> str:
    roles = row.get("rival")
    if not roles:
        return "–"
    return f"{sum(r['outcome'] == EQUAL for r in roles.values())} of {len(roles)}"


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


def _formats(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for row in rows:
        for name in FORMATS:
            if agrees(row, name) is False:
                held = row["formats"][name]
                yield row["model"], f"{name}: {held.get('error') or held['difference']}", ""


def _beaten(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for row in rows:
        for role, held in row.get("rival", {}).items():
            if held["outcome"] != EQUAL:
                yield row["model"], f"{role}, {held['outcome']}: {held['reason']}", ""


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


def _plot(rows: Sequence[Row], found: Row, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traced = [row for row in rows if row["status"] == DONE and row.get("type_seconds")]
    nodes = [row["nodes"] for row in traced]
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    axes.plot(nodes, [1000 * row["type_seconds"] for row in traced], ".", alpha=0.6)
    if "fit_slope" in found:
        ends = np.array([0, max(nodes)])
        slope, start = found["fit_slope"], found["fit_start"]
        label = f"{start} ms + {slope} ms per 1,000 (R² {found['fit_r2']})"
        axes.plot(ends, start + ends * slope / 1000, "--", label=label)
        axes.legend()
    axes.set_xlabel("nodes of the traced program")
    axes.set_ylabel("typing time in ms")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
