"""docs/methods.md names every part and preset, and says of presets what the code says."""

from __future__ import annotations

import re

import methods_page
import pytest

from prunec.options.prune import PruneOptions
from prunec.passes.allocators import ALLOCATORS
from prunec.passes.criteria import CRITERIA
from prunec.passes.methods import ALLOCATORS as ALLOCATOR_NAMES
from prunec.passes.methods import PRESETS, Method
from prunec.passes.methods import RESTORERS as RESTORER_NAMES
from prunec.passes.restore import RESTORERS

PAGE = methods_page.PAGE.read_text(encoding="utf-8")
README = (methods_page.PAGE.parent.parent / "README.md").read_text(encoding="utf-8")


def named(heading: str) -> list[str]:
    """The names in the first column of the table below a heading."""
    _, _, rest = PAGE.partition(f"\n## {heading}\n")
    return re.findall(r"^\| `([^`]+)` \|", rest.partition("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("Criteria", CRITERIA),
        ("Allocators", ALLOCATORS),
        ("Restorers", RESTORERS),
        ("Presets", PRESETS),
    ],
)
def test_every_name_has_a_row(heading: str, names: dict[str, object]) -> None:
    assert named(heading) == list(names)


def test_the_names_on_the_command_line_are_those_that_there_are() -> None:
    assert tuple(ALLOCATORS) == ALLOCATOR_NAMES
    assert tuple(RESTORERS) == RESTORER_NAMES


def test_what_it_says_of_presets_is_what_the_code_says() -> None:
    assert methods_page.rendered(PAGE) == PAGE, "run python tools/methods_page.py"


def test_a_preset_is_rendered_with_its_parts_and_departures() -> None:
    about = "Title.\n\n        A source, 2024.\n        Departures: none."
    assert methods_page.section({"own": Method("obs", "dp", "ls", about)}).splitlines() == [
        "| preset | criterion | allocate | restore |",
        "|---|---|---|---|",
        "| `own` | `obs` | `dp` | `ls` |",
        "",
        "- `own`: Title. A source, 2024. Departures: none.",
    ]


def test_the_page_is_found() -> None:
    """From the README, and what it links to is there."""
    assert "(docs/methods.md)" in README
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (methods_page.PAGE.parent / link).is_file(), link
    assert all(f"`{name}`" in README for name in PRESETS)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, "auto"),
        ({"method": "flap,restore=ls"}, "fluctuation global ls"),
        ({"method": "flap", "allocate": "uniform", "restore": "ls"}, "fluctuation uniform ls"),
        ({"method": "criterion=obs"}, "obs uniform none"),
        ({"method": "wanda"}, "wanda uniform ls"),
        ({"method": "magnitude"}, "magnitude uniform none"),
        ({"method": "magnitude", "restore": "ls"}, "magnitude uniform ls"),
        ({"method": "flap", "calibration": "none"}, "fluctuation global none"),
        ({"method": "flap", "layout": "uniform"}, "fluctuation uniform bias"),
        ({"method": "flap,allocate=dp", "layout": "uniform"}, "fluctuation uniform bias"),
        ({"method": "flap", "layout": "uniform", "allocate": "dp"}, "fluctuation dp bias"),
        ({"method": "flap", "layout": "uniform", "formats": ("onnx",)}, "fluctuation global bias"),
    ],
)
def test_what_it_says_of_combinations(options: dict[str, str], parts: str) -> None:
    """The rules under "Saying it", one by one; the layout is per-layer where none is given."""
    found = PruneOptions("model", **{"layout": "per-layer", **options}).parts
    wanted = PRESETS["auto"] if parts == "auto" else Method(*parts.split())
    for part in ("criterion", "allocate", "restore"):
        assert getattr(found, part) == getattr(wanted, part), part
