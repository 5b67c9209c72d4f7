"""docs/choosing.md from the rows of compose.py: tables, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_page"]

Row = dict[str, Any]

SLIGHT, LATER = 1.03, 1.05
"""A perplexity within 3 % of dense counts as near; a latency within 5 % counts as the same."""

HEAD = """# Choosing: structure, zeros, low rank, quantisation

Written by `python benchmarks/compose.py --write docs` from what it measured: {windows} windows of
at most {window} tokens of WikiText-2 test, one sequence of 128 tokens for latencies, in turns with
the dense file, no training afterwards. Bytes are those of the ONNX file; *packed* is the file after
gzip. Peak memory is that of a process that loads the file and runs it, and of the largest process
that made it; the time to make it is that of the processor, over all steps. Two models in one
process wait for one another's threads, so that milliseconds are more than those of one alone (the
row of dense): compare by *times dense*.
"""


def write_page(rows: Sequence[Row], path: Path, windows: int, window: int) -> None:
    """Write the page; rows with an error stand in it with their error."""
    parts = [HEAD.format(windows=windows, window=window)]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        parts.append("\n".join([f"## {name}", "", *_table(own), "", *_said(own), ""]))
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("", lambda r: r["stack"]),
        ("MB", lambda r: _number(r.get("bytes"), 1e-6, ",.1f")),
        ("packed", lambda r: _number(r.get("compressed"), 1e-6, ",.1f")),
        (_metric(rows), lambda r: _number(_quality(r), 1, ".4g")),
        ("ONNX Runtime, ms", lambda r: _number(r.get("onnxruntime_ms"), 1, ".1f")),
        ("times dense", lambda r: _number(r.get("onnxruntime_speedup"), 1, ".2f")),
        ("OpenVINO, ms", lambda r: _number(r.get("openvino_ms"), 1, ".1f")),
        ("times dense", lambda r: _number(r.get("openvino_speedup"), 1, ".2f")),
        ("peak while running, MB", lambda r: _number(r.get("onnxruntime_peak"), 1e-6, ",.0f")),
        ("making it: s", lambda r: _number(r.get("compress_seconds"), 1, ",.0f")),
        ("peak, MB", lambda r: _number(r.get("compress_peak"), 1e-6, ",.0f")),
    ]
    yield "| " + " | ".join(name for name, _ in columns) + " |"
    yield "|---" + "|---:" * (len(columns) - 1) + "|"
    for row in rows:
        if "error" in row:
            yield f"| {row['stack']} | not measured: {_one_line(row['error'])} |" + " |" * (
                len(columns) - 2
            )
            continue
        yield "| " + " | ".join(show(row) for _, show in columns) + " |"


def _said(rows: Sequence[Row]) -> Iterator[str]:
    """Sentences that follow from the figures."""
    dense = next((row for row in rows if row["stack"] == "dense" and "error" not in row), None)
    if dense is None:
        return
    others = [row for row in rows if row is not dense and "error" not in row]
    yield from _smallest(dense, others)
    yield from _fastest(others)
    yield from _zeros(dense, others)
    yield from _stacking(rows)


def _smallest(dense: Row, others: Sequence[Row]) -> Iterator[str]:
    near = [row for row in others if _loss(row, dense) <= SLIGHT]
    if near:
        best = min(near, key=lambda row: row["bytes"])
        times = dense["bytes"] / best["bytes"]
        yield (
            f"- **The smallest file that is nearly as good:** {best['stack']}, {times:.1f} times"
            f" smaller at {_told(best, dense)}."
        )
    else:
        yield f"- No row is within {SLIGHT - 1:.0%} of the dense model without training."
    least = min(others, key=lambda row: row["bytes"], default=None)
    if least is not None:
        yield (
            f"- **The smallest of all:** {least['stack']}, {dense['bytes'] / least['bytes']:.1f}"
            f" times smaller, at {_told(least, dense)}."
        )


def _fastest(others: Sequence[Row]) -> Iterator[str]:
    for runtime, name in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        gain = f"{runtime}_speedup"
        gains = {row["stack"]: row[gain] for row in others if row.get(gain)}
        if not gains:
            continue
        faster = {stack: gain for stack, gain in gains.items() if gain > LATER}
        slower = {stack: gain for stack, gain in gains.items() if gain < 1 / LATER}
        same = [stack for stack in gains if stack not in faster | slower]
        yield f"- **Faster in {name}:** {_gains(faster) or 'none'}."
        yield f"  - Slower: {_gains(slower) or 'none'}."
        yield f"  - As fast as dense: {', '.join(same) or 'none'}."


def _zeros(dense: Row, others: Sequence[Row]) -> Iterator[str]:
    for row in others:
        if row["stack"] in ("2:4", "unstructured 50 %"):
            yield (
                f"- **Zeros ({row['stack']})** leave the file at"
                f" {row['bytes'] / dense['bytes']:.2f} of its size and the packed one at"
                f" {row['compressed'] / dense['compressed']:.2f},"
                f" at {_told(row, dense)}."
            )


def _stacking(rows: Sequence[Row]) -> Iterator[str]:
    """Whether what is stacked costs more quality than its parts do together."""
    found = {row["stack"]: row for row in rows if "error" not in row}
    dense = found["dense"]
    for stack, row in found.items():
        parts = stack.split(" + ")
        if len(parts) < 2 or any(part not in found for part in parts):
            continue
        together = 1.0
        for part in parts:
            together *= _loss(found[part], dense)
        yield (
            f"- {stack}: {dense['bytes'] / row['bytes']:.1f} times smaller, {_told(row, dense)};"
            f" the losses of its parts multiply to {together:.3f}, it has {_loss(row, dense):.3f}."
        )


def _metric(rows: Sequence[Row]) -> str:
    return "perplexity" if any(row.get("perplexity") for row in rows) else "similarity"


def _quality(row: Row) -> float | None:
    found: float | None = row.get("perplexity") or row.get("similarity")
    return found


def _loss(row: Row, dense: Row) -> float:
    """How many times worse than dense: the ratio of perplexities, or of similarities."""
    if row.get("perplexity"):
        return float(row["perplexity"] / dense["perplexity"])
    return float(dense["similarity"] / max(row["similarity"], 1e-9))


def _told(row: Row, dense: Row) -> str:
    if row.get("perplexity"):
        return f"perplexity {row['perplexity']:.4g} (dense {dense['perplexity']:.4g})"
    return f"similarity {row['similarity']:.4f}"


def _gains(gains: dict[str, float]) -> str:
    ordered = sorted(gains.items(), key=lambda item: -item[1])
    return ", ".join(f"{stack} {gain:.2f}x" for stack, gain in ordered)


def _number(value: float | None, scale: float, form: str) -> str:
    return "-" if value is None else format(value * scale, form)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[-200:]
