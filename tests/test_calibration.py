"""Calibration data: windows of texts, from one source and from several."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from worded import WORDS, Letters, Make, maker, refused, text, tokenizer, told

from prunec.frontends import text as reading
from prunec.frontends.calibration import Calibration, calibration, detokenise_wikitext, windows
from prunec.frontends.source import resolve
from prunec.frontends.text import Frame, frame, spread_windows
from prunec.ir.diagnostics import Exit


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def test_wikitext_is_detokenised() -> None:
    before = (
        ' = Valkyria = \n \n It cost 3 @,@ 000 @.@ 5 yen ( about $ 30 ) , a well @-@ known " low "'
        " price ; it isn 't <unk> 's . \n"
    )
    after = (
        ' = Valkyria = \n \n It cost 3,000.5 yen (about $ 30), a well-known " low "'
        " price; it isn't <unk>'s. \n"
    )
    assert detokenise_wikitext(before.replace("isn 't", "is n't")) == after
    assert detokenise_wikitext(after) == after


def test_windows_follow_each_other() -> None:
    found = windows(text(25), tokenizer(), 10)
    np.testing.assert_array_equal(found, np.arange(20).reshape(2, 10) + 3)


def test_windows_have_the_special_tokens_of_the_tokenizer() -> None:
    assert frame(tokenizer(around=True)) == Frame((1,), (2,))
    found = windows(text(25), tokenizer(around=True), 10)
    np.testing.assert_array_equal(found[:, 0], [1, 1, 1])
    np.testing.assert_array_equal(found[:, -1], [2, 2, 2])
    np.testing.assert_array_equal(found[:, 1:-1], np.arange(24).reshape(3, 8) + 3)


def test_spread_windows_cover_the_text_without_overlap() -> None:
    ids = spread_windows("".join(map(chr, range(1000))), Letters([], []), 5, 20, seed=1)
    assert ids.shape == (5, 20)
    assert (np.diff(ids) == 1).all(), "each is one piece of the text"
    assert (ids[:, 0] // 200 == np.arange(5)).all(), "one from each fifth"
    again = spread_windows("".join(map(chr, range(1000))), Letters([], []), 5, 20, seed=1)
    np.testing.assert_array_equal(ids, again)
    other = spread_windows("".join(map(chr, range(1000))), Letters([], []), 5, 20, seed=2)
    assert (ids != other).any()


def test_large_texts_are_tokenised_in_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunec.frontends.text.LARGE", 100)
    ids = spread_windows(text(3000), tokenizer(around=True), 4, 12, seed=0)
    assert ids.shape == (4, 12)
    body = ids[:, 1:-1]
    assert (body >= 3).all(), "no word is cut"
    assert (np.diff(body) % WORDS == 1).all()


def joined(part: str, **_: object) -> dict[str, list[int]]:
    """A tokenizer with tokens of the end of a word and what follows: a cut changes them."""
    return {"input_ids": [sum(map(ord, two)) for two in re.findall(r"\S\s|\S|\s", part)]}


@pytest.mark.parametrize("cuts", [True, False])
def test_long_texts_are_tokenised_in_parts(cuts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens are those of the whole text: where a cut would change them, there is none."""
    monkeypatch.setattr(reading, "PART", 600)
    content, given = text(2000), list[int]()
    whole = Letters([], []) if cuts else joined

    def tokenizer(part: str, **options: object) -> dict[str, list[int]]:
        given.append(len(part))
        found: dict[str, list[int]] = whole(part, **options)
        return found

    found = reading.tokenise(content, tokenizer)
    assert found.tolist() == whole(content, add_special_tokens=False)["input_ids"]
    assert (max(given) <= 600) == cuts


def test_text_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text(500))
    source, model = make("decoder")
    found = calibration(source, model, str(path), 6, 20, seed=0)
    assert {k: (v.shape, str(v.dtype)) for k, v in found.inputs.items()} == {
        "input_ids": ((6, 20), "int64"),
        "attention_mask": ((6, 20), "int64"),
    }
    assert (found.inputs["attention_mask"] == 1).all()
    assert (len(found), found.tokens, found.notes) == (6, 120, ())
    assert [len(batch["input_ids"]) for batch in found.batches(4)] == [4, 2]
    model.to_empty(device="cpu")
    model(**{k: torch.from_numpy(v) for k, v in next(found.batches(2)).items()})


def test_several_texts_share_the_windows(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 " * 100)
    (tmp_path / "b.txt").write_text("w2 " * 100)
    source, model = make("decoder")
    found = calibration(source, model, f"{tmp_path}/a.txt,{tmp_path}/b.txt", 5, 10, seed=0)
    assert found.inputs["input_ids"].mean(axis=1).tolist() == [4, 5, 4, 5, 4]


def test_what_is_not_as_asked_is_noted(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text(200) + " w1 @-@ w2")
    source, model = make("decoder")
    found = calibration(source, model, str(path), 9, 1000, seed=0)
    assert found.inputs["input_ids"].shape == (3, 64)
    notes = " ".join(found.notes)
    assert "detokenised" in notes
    assert "64 tokens, the most" in notes
    assert "3 windows" in notes


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "P130"),
        (b"", "P130"),
        (b"  \n ", "P130"),
        (b"gr\xfcn", "P131"),
        (b"w1 w2", "P132"),
    ],
)
def test_bad_texts(make: Make, tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    source, model = make("decoder")
    found = refused(lambda: calibration(source, model, str(path), 2, 10, seed=0))
    assert found == (code, Exit.USAGE)


def test_text_needs_a_tokenizer(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text(100))
    source, model = make("decoder", with_tokenizer=False)
    assert refused(lambda: calibration(source, model, str(path), 2, 10, seed=0))[0] == "P133"
    (source.folder / "tokenizer.json").write_text("{")
    source = resolve(str(source.folder))
    assert refused(lambda: calibration(source, model, str(path), 2, 10, seed=0))[0] == "P133"


def test_windows_without_room() -> None:
    assert refused(lambda: windows(text(9), tokenizer(around=True), 2))[0] == "P132"


def test_held_out_windows() -> None:
    whole = Calibration({"input_ids": np.arange(12).reshape(4, 3)}, "numbers", labels=(0, 1, 0, 1))
    kept, held_out = whole.split(1)
    assert kept.inputs["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert held_out.inputs["input_ids"].tolist() == [[9, 10, 11]]
    assert (kept.labels, held_out.labels) == ((0, 1, 0), (1,))
    assert whole.of(1).inputs["input_ids"].tolist() == [[3, 4, 5], [9, 10, 11]]


# Several sources


@pytest.fixture
def mixed(make: Make, tmp_path: Path) -> Calibration:
    """12 windows: nine of `w1`, three of `w2`; of each two held out."""
    (tmp_path / "a.txt").write_text("w1 " * 400)
    (tmp_path / "b.txt").write_text("w2 " * 400)
    source, model = make("decoder")
    spec = f"{tmp_path}/a.txt:3,{tmp_path}/b.txt:1"
    return calibration(source, model, spec, 12, 10, seed=0, held_out=2)


def test_every_window_knows_its_source(mixed: Calibration) -> None:
    shares = [(s.name, s.origin, s.weight, s.windows, s.held_out) for s in mixed.sources]
    assert shares == [
        ("a.txt", "text of a.txt", 0.75, 9, 2),
        ("b.txt", "text of b.txt", 0.25, 3, 2),
    ]
    assert mixed.inputs["input_ids"][:, 0].tolist() == [label + 4 for label in mixed.labels]
    assert mixed.origin == "75% text of a.txt, 25% text of b.txt"
    assert mixed.held_out is not None
    assert mixed.held_out.inputs["input_ids"][:, 0].tolist() == [4, 5, 4, 5]
    assert mixed.held_out.labels == (0, 1, 0, 1)


def test_every_stretch_of_windows_has_the_mixture(mixed: Calibration) -> None:
    """Half of the windows, whichever half, hold one or two of the three of `w2`."""
    parts = [mixed.labels[i : i + 6].count(1) for i in range(7)]
    assert set(parts) == {1, 2}


def test_held_out_windows_are_no_others(make: Make, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" ".join(f"w{i // 60} w{i % 60}" for i in range(3600)))
    source, model = make("decoder")
    found = calibration(source, model, str(tmp_path / "t.txt"), 30, 20, seed=0, held_out=4)
    assert found.held_out is not None
    assert (len(found), len(found.held_out)) == (30, 4)

    whole = {bytes(row) for row in found.inputs["input_ids"]}
    assert not whole & {bytes(row) for row in found.held_out.inputs["input_ids"]}


def test_nothing_is_held_out_of_a_short_text(make: Make, tmp_path: Path) -> None:
    """What was asked for comes first."""
    (tmp_path / "t.txt").write_text(text(65))
    source, model = make("decoder")
    found = calibration(source, model, str(tmp_path / "t.txt"), 6, 10, seed=0, held_out=4)
    assert (len(found), found.held_out, found.notes) == (6, None, ())
    assert found.sources[0].held_out == 0


def test_more_sources_than_windows(make: Make, tmp_path: Path) -> None:
    names = [f"{tmp_path}/{i}.txt" for i in range(3)]
    for name in names:
        Path(name).write_text(text(200))
    source, model = make("decoder")
    found = calibration(source, model, ",".join(names), 2, 10, seed=0)
    assert [share.windows for share in found.sources] == [1, 1]
    assert "2.txt is not used" in found.notes[0]
    found = calibration(source, model, ",".join(names), 2, 10, seed=0, held_out=1)
    assert [(s.windows, s.held_out) for s in found.sources] == [(1, 1), (1, 1), (0, 1)]
    assert "measured and not calibrated on" in found.notes[0]


def test_a_text_and_what_the_model_writes(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 " * 100)
    source, model = make("decoder")
    found = calibration(source, model, f"self,{tmp_path}/a.txt:3", 8, 10, seed=0)
    assert [(s.name, s.windows) for s in found.sources] == [("self", 2), ("a.txt", 6)]
    assert (found.of(0).inputs["input_ids"] != 4).any(), "the model writes something else"
    assert (found.of(1).inputs["input_ids"] == 4).all()


def test_windows_of_unlike_length_are_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 " * 100)
    np.savez(tmp_path / "b.npz", input_ids=np.ones((4, 7), np.int64))
    source, model = make("decoder")
    spec = f"{tmp_path}/a.txt,{tmp_path}/b.npz"
    wrong = told(lambda: calibration(source, model, spec, 4, 10, seed=0))
    assert wrong.code == "P141"
    assert "[7], of a.txt of [10]" in wrong.message
    assert "--calibration-length 7" in wrong.help
    assert len(calibration(source, model, spec, 4, 7, seed=0)) == 4


def test_a_tokenizer_of_another_model(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text(100))
    source, model = make("decoder")
    model.resize_token_embeddings(20)
    wrong = told(lambda: calibration(source, model, str(tmp_path / "a.txt"), 2, 30, seed=0))
    assert wrong.code == "P140"
    assert "token id 20 of a.txt is outside the vocabulary of 20 tokens" in wrong.message
