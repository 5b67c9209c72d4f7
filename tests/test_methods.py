"""`--method`: presets, parts, and what is said of mistakes."""

from __future__ import annotations

import pytest

from prunec.ir.diagnostics import Exit, PrunecError
from prunec.passes.criteria import CRITERIA
from prunec.passes.methods import ALLOCATORS, PRESETS, RESTORERS, Method, parse_method

VENUES = ("ICLR", "CVPR", "NeurIPS", "AAAI", "ICML", "arXiv")


def parts(method: Method) -> tuple[str, str, str]:
    return method.criterion, method.allocate, method.restore


def test_presets_name_parts_that_exist() -> None:
    for name, method in PRESETS.items():
        assert method.criterion in CRITERIA, name
        assert method.allocate in ALLOCATORS, name
        assert method.restore in RESTORERS, name


def test_presets_say_where_they_come_from() -> None:
    """A source with its venue and year or number, and what departs from it."""
    for name, method in PRESETS.items():
        if name == "auto":  # ours
            continue
        assert 10 < len(method.title) < 90, name
        assert any(venue in method.source for venue in VENUES), name
        assert "Departures:" in method.source or "othing" in method.source, name
        assert "  " not in method.source, name


def test_presets_are_those_that_were_published() -> None:
    assert [name for name in PRESETS if name != "auto"] == [
        "magnitude", "taylor", "llm-pruner", "wanda-sp", "flap", "fasp", "ziplm", "osscar",
        "slimgpt", "slimllm", "adapt-pruner", "minitron",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("flap", ("fluctuation", "global", "bias")),
        ("ziplm", ("obs", "dp", "obs")),
        ("criterion=obs,allocate=dp,restore=cross", ("obs", "dp", "cross")),
        (" restore = ls , criterion = wanda ", ("wanda", "uniform", "ls")),
        ("criterion=random", ("random", "uniform", "none")),
        ("wanda", ("wanda", "uniform", "none")),
        ("wanda,restore=ls", ("wanda", "uniform", "ls")),
        ("flap,restore=ls", ("fluctuation", "global", "ls")),
        ("flap,criterion=wanda", ("wanda", "global", "bias")),
    ],
)
def test_methods_are_read(text: str, wanted: tuple[str, str, str]) -> None:
    found = parse_method(text)
    assert parts(found) == wanted
    assert parts(parse_method(str(found))) == wanted


def test_a_preset_brings_its_description() -> None:
    assert parse_method("fasp") is PRESETS["fasp"]
    assert parse_method("fasp,restore=none").about == ""


def test_other_tables_may_be_given() -> None:
    own = {**PRESETS, "mine": Method("obs", "dp", "cross", "ours")}
    assert parse_method("mine", own) is own["mine"]
    with pytest.raises(PrunecError, match="'mine'"):
        parse_method("mine")
    assert parts(parse_method("criterion=new", criteria=("new",))) == ("new", "uniform", "none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flapp", ["--method does not know 'flapp'", "wanda-sp"]),
        ("", ["--method does not know ''"]),
        ("criterion=nope", ["criterion= does not know 'nope'", "fluctuation"]),
        ("criterion=obs,allocate=best", ["allocate= does not know 'best'", "block-influence"]),
        ("restore=some,criterion=obs", ["restore= does not know 'some'", "cross"]),
        ("allocate=dp", ["a method needs a criterion"]),
        ("criterion=obs,criterion=wanda", ["criterion is given twice"]),
        ("obs,criterion=wanda", ["criterion is given twice"]),
        ("criterion=obs,speed=fast", ["a method has no part 'speed'"]),
        ("criterion=obs,flap", ["flap stands where part=name should"]),
        ("flap,", ["an empty part stands where part=name should"]),
        ("restore=x,allocate=y", ["does not know 'x'", "does not know 'y'", "needs a criterion"]),
    ],
)
def test_mistakes_are_told_all_at_once(text: str, told: list[str]) -> None:
    with pytest.raises(PrunecError) as caught:
        parse_method(text)
    assert caught.value.exit_code == Exit.USAGE
    for words in told:
        assert words in str(caught.value)
