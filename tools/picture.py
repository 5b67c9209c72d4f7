"""The picture of the README, drawn from the report of a real run: how a model becomes smaller, and
what became of one.

    prunec prune ./smollm2 -o small --target params=80% --layout per-layer --verify ...
    python tools/picture.py small/report.json > docs/picture.svg

Every figure in it is one of the report. The stages are those of the pipeline.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, MARGIN = 900, 356, 24
STAGES = (
    ("trace", "torch, ONNX, GGUF:", "a typed graph"),
    ("couple", "dimensions that", "are one: groups"),
    ("score", "what an index is", "worth, on data"),
    ("plan", "how much of each", "group stays"),
    ("refit", "what stays, to make", "up for what goes"),
    ("slice", "drop indices,", "derive constants"),
    ("write", "HF, ONNX, Torch-", "Script: dense"),
)
INK, SOFT, KEPT, GONE, LINE = "#1c2733", "#5d6b7a", "#2a6f97", "#d5dde6", "#c3ccd6"
STYLE = f"""<style>
text {{ font-family: system-ui, sans-serif; fill: {SOFT}; font-size: 10.5px; }}
.name {{ fill: {INK}; font-size: 14px; font-weight: 600; }}
.big {{ fill: {INK}; font-size: 21px; font-weight: 600; }}
</style>"""
TALL = 104
"""Height of the bars."""


def picture(report: dict[str, Any]) -> str:
    """The picture as SVG."""
    parts = [*_stages(), *_facts(report), *_bars(report)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = f"<title>{escape(_what(report))}</title>"
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>'
    return "\n".join([head, title, STYLE, paper, *parts, "</svg>", ""])


def _what(report: dict[str, Any]) -> str:
    targets = ", ".join(target["text"] for target in report["targets"])
    return f"{Path(report['model']).name} pruned to {targets}, method {report['method']}"


def _stages() -> Iterator[str]:
    step = (WIDTH - 2 * MARGIN + 14) / len(STAGES)
    for number, (name, *lines) in enumerate(STAGES):
        x, wide = MARGIN + number * step, step - 14
        yield _box(x, 24, wide, 74, "#f5f7fa", f' rx="7" stroke="{LINE}"')
        yield _text(x + wide / 2, 46, name, "name", "middle")
        for row, line in enumerate(lines):
            yield _text(x + wide / 2, 66 + 15 * row, line, anchor="middle")
        if number:
            line = f"M{x - 11:.1f} 61h7m-3.5 -3.5l4 3.5l-4 3.5"
            yield f'<path d="{line}" fill="none" stroke="{SOFT}"/>'


def _facts(report: dict[str, Any]) -> Iterator[str]:
    """What the run came to, on the left."""
    dense, pruned = report["dense"], report["pruned"]
    facts = [
        ("parameters", _amount(dense["params"]), _amount(pruned["params"])),
        ("bytes of weights", _amount(dense["bytes"]), _amount(pruned["bytes"])),
        ("FLOPs", _amount(dense["flops"]), _amount(pruned["flops"])),
    ]
    spoken = [s for s in report["sources"] if s["metric"] == "cross_entropy"]
    facts += [
        (f"perplexity, {s['name']}", f"{math.exp(s['dense']):.4g}", f"{math.exp(s['pruned']):.4g}")
        for s in spoken[:1]
    ]
    yield _text(MARGIN, 132, _what(report), "name")
    for number, (what, before, after) in enumerate(facts):
        y = 168 + 46 * number
        yield _text(MARGIN, y, f"{before} → {after}", "big")
        yield _text(MARGIN, y + 16, what)


def _bars(report: dict[str, Any]) -> Iterator[str]:
    """What was kept of the groups of each role that lost most, layer by layer, on the right."""
    left, wide = 330, WIDTH - MARGIN - 330
    role, groups = max(_roles(report).items(), key=lambda item: _lost(item[1]))
    step = wide / len(groups)
    size = max(group["size"] for group in groups)
    base = 152 + TALL
    for number, group in enumerate(groups):
        x, kept = left + number * step, group["size"] if group["kept"] is None else group["kept"]
        for share, colour in ((group["size"] / size, GONE), (kept / size, KEPT)):
            tall = TALL * share
            yield _box(x, base - tall, 0.8 * step, tall, colour)
        if number % 5 == 0:
            yield _text(x + 0.4 * step, base + 15, str(number), anchor="middle")
    yield _text(left, base + 34, f"{_said(role)} kept of {size} in each layer", "name")
    others = [
        f"{_left(rows):,} of {_size(rows):,} {_said(role)}" for role, rows in _roles(report).items()
    ]
    yield _text(left, base + 52, "in all: " + ", ".join(others))
    checks = [f"{_check(c)} {c['difference']:.0e}" for c in report["checks"]]
    if checks:
        yield _text(left, base + 71, "largest differences: " + ", ".join(checks))


def _check(check: dict[str, Any]) -> str:
    return "prune = mask" if check["name"] == "law 1" else str(check["name"])


def _roles(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Groups of a layer that lost something, by role."""
    found: dict[str, list[dict[str, Any]]] = {}
    for group in report["groups"]:
        found.setdefault(group["role"], []).append(group)
    return {role: sorted(rows, key=_layer) for role, rows in found.items() if _lost(rows)}


def _said(role: str) -> str:
    return role.replace("_", " ") + "s"


def _layer(group: dict[str, Any]) -> int:
    numbers = re.findall(r"\d+", group["places"][0][0])
    return int(numbers[0]) if numbers else -1


def _size(groups: Sequence[dict[str, Any]]) -> int:
    return sum(group["size"] for group in groups)


def _left(groups: Sequence[dict[str, Any]]) -> int:
    return sum(g["size"] if g["kept"] is None else g["kept"] for g in groups)


def _lost(groups: Sequence[dict[str, Any]]) -> int:
    return _size(groups) - _left(groups)


def _amount(value: float) -> str:
    for suffix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g} {suffix}"
    return f"{value:.4g}"


def _box(x: float, y: float, wide: float, tall: float, fill: str, more: str = "") -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
    return f'<rect {size} fill="{fill}"{more}/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'


if __name__ == "__main__":
    print(picture(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
