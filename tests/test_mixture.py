"""What `--calibration` says: sources and weights, as text and back, and how windows are dealt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worded import told

from prunec.frontends.mixture import Part, deal, interleave, parse_mixture, spell_mixture
from prunec.ir.diagnostics import PrunecError


def read(spec: str) -> list[tuple[str, float]]:
    return [(part.place, part.weight) for part in parse_mixture(spec)]


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("self", [("self", 1.0)]),
        ("self:2", [("self", 2.0)]),
        ("a.txt", [("a.txt", 1.0)]),
        ("a.txt:0.7,b.jsonl:0.3", [("a.txt", 0.7), ("b.jsonl", 0.3)]),
        ("self:0.5, a.txt:1e1", [("self", 0.5), ("a.txt", 10.0)]),
        ("a.txt,b.txt:3", [("a.txt", 1.0), ("b.txt", 3.0)]),
        ("C:\\texts\\a.txt", [("C:\\texts\\a.txt", 1.0)]),
    ],
)
def test_sources_and_weights(spec: str, parts: list[tuple[str, float]]) -> None:
    assert read(spec) == parts


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "a source has no name"),
        ("a.txt,", "a source has no name"),
        ("a.txt,,b.txt", "a source has no name"),
        (":0.5", "a source has no name"),
        ("a.txt:0", "must be a positive number, not 0"),
        ("a.txt:-0.5", "must be a positive number, not -0.5"),
        ("a.txt:inf", "must be a positive number, not inf"),
        ("a.txt:1e999", "must be a positive number, not 1e999"),
        ("a.txt:nan", "is not a number: 'nan'"),
        ("self:much", "is not a number: 'much'"),
        ("a.txt:", "is missing after the colon"),
        ("a.txt:1,a.txt:2", "a.txt is named twice"),
        ("self,self", "self is named twice"),
        ("none,a.txt", "'none' cannot be mixed"),
        ("a.txt:0.5,auto", "'auto' cannot be mixed"),
    ],
)
def test_bad_mixtures(spec: str, says: str) -> None:
    wrong = told(lambda: parse_mixture(spec))
    assert wrong.code == "P137"
    assert says in wrong.message


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(PrunecError) as raised:
        parse_mixture("a.txt:0,b.txt:x:y,,c.txt:-1")
    assert len(raised.value.diagnostics) == 3


def test_a_weight_of_a_file_that_exists_is_no_part_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c:2", "d"):
        Path(name).touch()
    assert read("a,b.txt") == [("a,b.txt", 1.0)]
    assert read("d:2,a,b.txt:3") == [("d", 2.0), ("a,b.txt", 3.0)]
    assert read("c:2,d") == [("c:2", 1.0), ("d", 1.0)]
    assert read("c:2:5") == [("c:2", 5.0)]
    wrong = told(lambda: parse_mixture("d:much"))
    assert "'much'" in wrong.message


def test_names_tell_sources_apart() -> None:
    parts = parse_mixture("/x/en/train.txt,/x/sw/train.txt,self,/y/b.jsonl")
    assert [part.name for part in parts] == ["en/train.txt", "sw/train.txt", "self", "b.jsonl"]


def test_spelling_means_the_same_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one, two").mkdir()
    for name in ("a.txt", "one, two/b.txt"):
        Path(name).touch()
    spelled = spell_mixture(parse_mixture("a.txt:0.1,self:3,one, two/b.txt"))
    monkeypatch.chdir("/")
    assert read(spelled) == [
        (str(tmp_path / "a.txt"), 0.1), ("self", 3.0), (str(tmp_path / "one, two/b.txt"), 1.0),
    ]  # fmt: skip
    assert spell_mixture([Part("self", 0.5)]) == "self"


@pytest.mark.parametrize(
    ("n", "weights", "counts"),
    [
        (10, [0.7, 0.3], [7, 3]),
        (10, [7, 3], [7, 3]),
        (5, [1, 1], [3, 2]),
        (64, [1, 1000], [1, 63]),
        (3, [1, 1000, 1e308], [1, 1, 1]),
        (2, [1, 2, 3], [0, 1, 1]),
    ],
)
def test_windows_are_dealt_by_weight(n: int, weights: list[float], counts: list[int]) -> None:
    assert deal(n, weights) == counts


Weights = st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=6)


@given(st.integers(1, 200), Weights)
def test_all_windows_are_dealt(n: int, weights: list[float]) -> None:
    counts = deal(n, weights)
    assert sum(counts) == n
    assert min(counts) >= (1 if n >= len(weights) else 0)
    order = interleave(counts)
    assert [order.count(i) for i in range(len(weights))] == counts


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.data())
def test_a_stretch_has_the_shares_of_the_whole(counts: list[int], data: st.DataObject) -> None:
    """The first windows of each source are at most one off their share for each other source."""
    order = interleave(counts)
    length = data.draw(st.integers(0, len(order)))
    for source, count in enumerate(counts):
        share = count * length / len(order)
        assert abs(order[:length].count(source) - share) <= len(counts) / 2 + 0.5
