"""report.html: one file without scripts, whole figures, and nothing in it that a model wrote."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zoo
from worded import maker

from prunec.cli.app import main
from prunec.ir.diagnostics import Diagnostic
from prunec.measuring.samples import first_numbers, next_tokens
from prunec.reports.data import (
    Check,
    CurveRow,
    FrontRow,
    GroupRow,
    LatencyRow,
    PinRow,
    PruneReport,
    SampleRow,
    Sizes,
    SourceRow,
    TargetRow,
    WrittenFormat,
)
from prunec.reports.page import render_page

TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "b", "span", "div",
    "table", "tr", "th", "td", "details", "summary", "code", "pre", "svg", "g", "rect", "line",
    "path", "text", "figure", "figcaption", "polyline", "circle",
}  # fmt: skip
"""All that the page is made of. None of them runs or fetches anything."""
EMPTY = {"meta"}
FETCHING = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Notes every tag, attribute and text, and that all tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_harmless(page: str) -> Reader:
    found = Reader(page)
    assert found.tags <= TAGS
    names = {name for name, _ in found.attributes}
    assert not names & FETCHING
    assert not [name for name in names if name.startswith("on") or name == "style"]
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page.partition("</head>")[0]
    return found


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'}}{{ 7*7 }}{% raw %}",
    "</title></style></pre><svg onload=alert(1)>",
    "javascript:alert(1)",
    "\u202ereversed\u0007\x1b[31m\u2028",
    "]]><!--",
)


def report(name: str) -> PruneReport:
    """A report in which everything that can come from a model is `name`."""
    group = GroupRow(name, name, 8, ((f"{name}.3.w", 0), (name, 1), (name, 2)), 5, name, 3)
    return PruneReport(
        model=name,
        out=name,
        method=name,
        restore=name,
        calibration="none",
        layout=name,
        dense=Sizes(1000, 900, 4000, 5000, 6, 7),
        pruned=Sizes(700, 600, 2800, 3500, 5, 7),
        targets=(TargetRow(name, 1000, 750, 700, True),),
        groups=(group, replace(group, name=name + "2", kept=8)),
        pinned=(PinRow(name, name, name),),
        formats=(WrittenFormat(name, name, 12),),
        checks=(Check(name, 1e-7, 1e-5), Check("law 1", 1.0, 1e-5)),
        sources=(
            SourceRow(
                name,
                name,
                1.0,
                4,
                4,
                True,
                99,
                "cross_entropy",
                2.0,
                2.5,
                (SampleRow(name, name, name, name),),
            ),
        ),
        seconds={name: 1.0},
        warnings=(Diagnostic("P1", name, name, name, name),),
        notes={"unrestored": {name: name}},
        versions={name: name},
        remote_code=True,
        removed=(name,),
        curves=(CurveRow(name, "error", (0, 4, 8), (1.0, 0.5, 0.0)),),
        front=(
            FrontRow(1, 1, 0),
            FrontRow(0.7, 0.6, 0.4, 0.002),
            FrontRow(0.6, 0.5, 0.3, 0.001, True),
        ),
        latency=(LatencyRow(name, name, None, "prefill", 1, 128, 0.004, 0.002),),
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_name_holds_stays_text(name: str) -> None:
    page = render_page(report(name), recipe=f"model: {name}")
    found = check_harmless(page)
    assert not set(page) & set("\u202e\u0007\x1b\u2028")
    plain = name.isprintable()
    assert found.text.count(" ".join(name.split())) >= 15 or not plain
    assert "7*7" in page or "7*7" not in name, "templates of a model are not evaluated"


def test_the_page_says_what_the_report_says() -> None:
    text = check_harmless(render_page(report("thing"), recipe="seed: 17")).text
    for part in (
        "70.0 %", "met", "1.0e-07", "failed", "7.389 → 12.18",
        "4 windows held out, 99 tokens", "seed: 17", "thing thing", "--trust-remote-code",
        "rows", "columns", "dimension 2", "4 ms", "2 ms", "2.00×", "Removed as a whole: thing",
        "share of the error lost", "thing: 3 of 8 kept, 62.5 % lost", "parameters left, %",
        "milliseconds, measured", "60: 30.0 % lost", "What both give for thing",
    ):  # fmt: skip
        assert part in text, part


def test_a_chart_has_a_bar_for_every_layer() -> None:
    places = [((f"layers.{i}.mlp.up.weight", 0),) for i in range(30)]
    groups = tuple(GroupRow(f"g{i}", "neuron", 100, p, 9, "", i + 1) for i, p in enumerate(places))
    page = render_page(replace(report("x"), groups=groups, curves=()))
    assert page.count("of 100 kept</title>") == 30
    heights = re.findall(r'<rect class="kept" x="[^"]+" y="[^"]+" [^>]*height="([^"]+)"', page)
    assert [float(h) for h in heights] == [round(0.9 * (i + 1), 2) for i in range(30)]


def test_layers_that_went_are_seen() -> None:
    groups = tuple(
        GroupRow(f"{i}/{role}", role, 4, ((f"layers.{i}.{role}.weight", 0),), kept=kept)
        for i, kept in enumerate((4, 0, 2))
        for role in ("neuron", "kv_head")
    )
    whole = replace(report("x"), groups=groups, curves=())
    text = check_harmless(render_page(whole)).text
    for part in ("layer 6 → 4", "groups of layer 1: 0 of 2 kept", "groups of layer 2: 2 of 2 kept"):
        assert part in text, part
    assert "groups of layer" not in render_page(replace(whole, removed=()))


def test_what_is_not_known_is_said() -> None:
    bare = replace(report("x"), curves=(), front=(), latency=(), sources=(), checks=(), removed=())
    text = check_harmless(render_page(bare)).text
    for part in ("Not measured: --verify", "Nothing is known of other sizes", "Not verified"):
        assert part in text, part
    for part in ("Size and quality", "What both give", "Removed as a whole"):
        assert part not in text, part


@pytest.mark.parametrize("method", ["fasp", "ziplm"])
def test_a_run_tells_of_other_sizes_times_and_outputs(method: str, tmp_path: Path) -> None:
    source, _ = maker(tmp_path)("decoder")
    (tmp_path / "text.txt").write_text(" ".join(f"w{i % 17 * 3}" for i in range(900)))
    line = [
        "prune", str(source.path), "-o", str(tmp_path / "out"), "--target", "params=80%",
        "--method", method, "--calibration", str(tmp_path / "text.txt"), "--groups", "neuron",
        "--calibration-samples", "8", "--calibration-length", "16", "--format", "hf,onnx",
        "--verify",
    ]  # fmt: skip
    assert main(line) == 0
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    kept = {group["name"]: group["kept"] for group in told["groups"]}
    for curve in told["curves"]:
        assert curve["kept"][0] == 0
        assert curve["lost"][0] == 1
        assert curve["lost"][-1] == 0
        assert curve["lost"] == sorted(curve["lost"], reverse=True)
        assert kept[curve["group"]] < curve["kept"][-1]
    assert {curve["kind"] for curve in told["curves"]} <= {"error", "score"}
    *even, chosen = told["front"]
    assert chosen["chosen"]
    assert chosen["params"] == pytest.approx(
        told["pruned"]["params"] / told["dense"]["params"], abs=1e-5
    )
    assert even[0] == {"params": 1, "flops": 1, "lost": 0, "seconds": None, "chosen": False}
    assert [row["lost"] for row in even] == sorted(row["lost"] for row in even)
    assert {row["runtime"] for row in told["latency"]} >= {"torch", "onnxruntime"}
    assert all(row["dense"] > 0 and row["pruned"] > 0 for row in told["latency"])
    (only,) = told["sources"]
    assert len(only["samples"]) == 6
    check_harmless((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_samples_are_taken_at_places_that_are_spread() -> None:
    written = list(range(100, 113))
    found = next_tokens(written, range(13), range(50, 63), lambda ids: " ".join(map(str, ids)))
    assert [row.actual for row in found] == ["102", "104", "106", "108", "110", "112"]
    assert found[0].given == "100 101"
    assert [row.dense for row in found] == ["1", "3", "5", "7", "9", "11"]
    assert found[-1].pruned == "61"
    assert next_tokens([7], [1], [1], str) == ()


def test_first_numbers_are_those_of_both() -> None:
    dense = {"x": np.arange(8.0).reshape(2, 4), "ids": np.arange(3), "gone": np.ones(2)}
    (row,) = first_numbers(dense, {"x": np.ones((2, 4)), "ids": np.arange(3)})
    assert row == SampleRow("x", "", "0  1  2  3  4  5", "1  1  1  1  1  1")


def test_a_run_writes_it_beside_the_report(tmp_path: Path) -> None:
    model, out = tmp_path / "<b>model & co", tmp_path / "out"
    zoo.build("llama").save_pretrained(model)
    line = ["prune", str(model), "-o", str(out), "--target", "params=80%", "--method", "magnitude"]
    assert main(line) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    found = check_harmless(page)
    told = json.loads((out / "report.json").read_text())
    assert f"of {told['dense']['params'] / 1000:.2f}k" in found.text
    assert "<b>model & co, pruned" in found.text
    assert (out / "recipe.yaml").read_text().split()[-1] in found.text
    assert told["seed"] == 0
    assert told["remote_code"] is False
    assert set(told["versions"]) >= {"python", "torch"}
