"""report.html in headless Chromium, where there is one: it asks for nothing, complains of nothing,
shows what it must, and fits a telephone."""

from __future__ import annotations

import re
from pathlib import Path

import browser
import pytest
from test_page import HOSTILE, report

from prunec.reports.page import render_page

pytestmark = pytest.mark.skipif(browser.chromium() is None, reason="no Chromium here")

SHOWN = (
    "Asked and checked", "Latency", "What it does to each source of data", "What both give for",
    "What was kept, layer by layer", "Sensitivity", "Size and quality", "Coupled groups",
    "What cannot be pruned, and why", "Not refitted", "Warnings", "How to repeat it",
    "70.0 %", "seed: 17", "prune = mask", "2.00×", "--trust-remote-code",
)  # fmt: skip


def test_the_page_fits_and_fetches_nothing(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_page(report("thing"), recipe="seed: 17"), encoding="utf-8")
    for view in browser.look(page, unfold=True):
        assert view.sound, view
        assert view.picture.startswith(b"\x89PNG")
        text = " ".join(view.text.split())
        for part in SHOWN:
            assert part in text, part


def test_names_of_a_model_run_nothing(tmp_path: Path) -> None:
    pages = [tmp_path / f"{number}.html" for number in range(len(HOSTILE))]
    for page, name in zip(pages, HOSTILE, strict=True):
        page.write_text(render_page(report(name), recipe=name), encoding="utf-8")
    views = browser.look(*pages, widths=[400], unfold=True)
    assert [view for view in views if not view.sound] == []
    assert "<script>alert(1)</script>" in views[0].text
    assert not any(re.search(r"\b49\b", view.text) for view in views)


def test_what_a_page_must_not_do_is_seen(tmp_path: Path) -> None:
    """Without this the tests above could pass by seeing nothing."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<body><img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>"
        "<div style='width: 3000px'>wide</div>"
    )
    (view,) = browser.look(page, widths=[400])
    assert view.requests == ("http://127.0.0.1:9/x.png",)
    assert any("oh" in message for message in view.messages)
    assert view.wide >= 3000
    assert len(view.over) == 1
    assert not view.sound
