"""Texts in files: JSON lines, files too large to hold, and data sets of `datasets`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from worded import Make, maker, told

from prunec.frontends import passages
from prunec.frontends.calibration import calibration
from prunec.frontends.places import check_place, kind_of, read_document
from prunec.ir.diagnostics import PrunecError

datasets: Any = pytest.importorskip("datasets")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


# JSON lines


def test_the_text_of_a_record(tmp_path: Path) -> None:
    """`text` wins; else the only text field. Lines end at a line feed, and at nothing else."""
    path = write(
        tmp_path / "r.jsonl",
        b'\xef\xbb\xbf{"text": "one", "title": "no"}\r',
        '{"id": 3, "body": "two\u2028lines", "score": 0.5, "tags": ["x"]}',
        "",
        '{"text": ""}',
        '{"text": "\\ud83d\\ude00"}',
    )
    assert read_document(path).text == "one\n\ntwo\u2028lines\n\n\U0001f600"


WRONG: dict[str, tuple[str | bytes, str]] = {
    "damaged": ('{"text": "a"', "not JSON: Expecting ',' delimiter at column 13"),
    "plain": ("some text", "not JSON: Expecting value at column 1"),
    "a list": ('["a"]', "not a JSON object"),
    "a string": ('"a"', "not a JSON object"),
    "no text": ('{"id": 3}', "the record has no text field"),
    "null": ('{"text": null, "body": "b"}', "the field `text` is not a text"),
    "two": ('{"b": "1", "a": "2"}', "several text fields (a, b), and none is called `text`"),
    "bytes": (b'{"text": "gr\xfcn"}', "not UTF-8: byte 13 of the line"),
    "half": ('{"text": "\\ud83d"}', "half a character"),
    "deep": ("[" * 100_000, "out of all proportion"),
    "digits": ('{"text": ' + "1" * 5000 + "}", "out of all proportion"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_line_is_named(what: str, tmp_path: Path) -> None:
    line, says = WRONG[what]
    path = write(tmp_path / "r.jsonl", '{"text": "fine"}', "", line, '{"text": "fine"}')
    wrong = told(lambda: check_place(path))
    assert wrong.code == "P138"
    assert says in wrong.message
    assert wrong.where == f"{path}: line 3"


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"text": " "}\n{"text": ""}\n'])
def test_records_without_text(content: bytes, tmp_path: Path) -> None:
    wrong = told(lambda: check_place(write(tmp_path / "r.jsonl", content)))
    assert wrong.code == "P130"


def test_records_calibrate(make: Make, tmp_path: Path) -> None:
    records = [json.dumps({"text": f"w{i} " * 20, "source": "x"}) for i in range(30)]
    source, model = make("decoder")
    path = write(tmp_path / "r.jsonl", *records)
    found = calibration(source, model, str(path), 10, 20, seed=0)
    assert found.origin == "text of r.jsonl"
    assert len(set(found.inputs["input_ids"].ravel())) > 10


# Large files


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "WHOLE", 4000)
    monkeypatch.setattr(passages, "PASSAGE", 100)


@pytest.mark.usefixtures("small_limits")
def test_a_large_text_is_read_at_places_spread_over_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", " ".join(f"grün{i:05}" for i in range(10_000)))
    found = read_document(path, most=1000)
    words = found.text.split()
    assert all(len(word) == 9 and word.startswith("grün") for word in words), "no word is cut"
    numbers = [int(word[4:]) for word in words]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1] > 9980) == (0, True)
    assert 60 < len(numbers) <= 100, "about 1,000 bytes"
    assert "read at 10 places" in found.notes[0]


@pytest.mark.usefixtures("small_limits")
def test_large_records_are_read_whole(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{i:04} " * (1 + i % 40)}) for i in range(1000)]
    path = write(tmp_path / "r.jsonl", *lines)
    found = read_document(path, most=1000).text.split("\n\n")
    whole = {json.loads(line)["text"] for line in lines}
    assert set(found) <= whole
    assert len(set(found)) == len(found), "none twice"
    numbers = [int(text[:4]) for text in found]
    assert (numbers[0], numbers[-1] > 850) == (0, True)


@pytest.mark.usefixtures("small_limits")
def test_records_longer_than_a_passage(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{i:02}" * 300}) for i in range(40)]
    found = read_document(write(tmp_path / "r.jsonl", *lines), most=1000).text.split("\n\n")
    assert all(len(text) == 600 for text in found)
    assert len(set(found)) == len(found) >= 9, "one at each of ten places"


@pytest.mark.usefixtures("small_limits")
def test_large_files_that_are_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", b"word " * 900 + b"gr\xfcn " * 900)
    wrong = told(lambda: read_document(path, most=2000))
    assert wrong.code == "P131"
    place = int(wrong.message.split("byte ")[1].split(" ")[0])
    assert path.read_bytes()[place] == 0xFC
    path = write(tmp_path / "r.jsonl", *['{"text": "a"}'] * 300, "{")
    wrong = told(lambda: read_document(path, most=2000))
    assert wrong.code == "P138"
    assert wrong.where.endswith("the line at byte 4200")
    path = write(tmp_path / "e.txt", b" " * 9000)
    assert told(lambda: read_document(path, most=1000)).code == "P130"


# Data sets


def rows(n: int = 30) -> dict[str, list[Any]]:
    return {"text": [f"w{i % 50} " * 20 for i in range(n)], "id": list(range(n))}


def test_a_saved_data_set(make: Make, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rows()).save_to_disk(tmp_path / "saved")
    assert kind_of(tmp_path / "saved") == "dataset"
    source, model = make("decoder")
    found = calibration(source, model, str(tmp_path / "saved"), 10, 20, seed=0)
    assert (len(found), found.origin, found.notes) == (10, "text of saved", ())
    assert len(set(found.inputs["input_ids"].ravel())) > 10


def test_of_several_splits_train_is_read(tmp_path: Path) -> None:
    split = {"train": {"text": ["a"]}, "test": {"text": ["b"]}}
    made = {name: datasets.Dataset.from_dict(data) for name, data in split.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "both")
    found = read_document(tmp_path / "both")
    assert (found.text, found.notes) == ("a", ("both: of its splits train is used",))
    datasets.DatasetDict({"test": made["test"]}).save_to_disk(tmp_path / "one")
    assert read_document(tmp_path / "one").text == "b"
    others = {"test": made["test"], "validation": made["test"]}
    datasets.DatasetDict(others).save_to_disk(tmp_path / "others")
    wrong = told(lambda: read_document(tmp_path / "others"))
    assert wrong.code == "P139"
    assert "several splits (test, validation), and none is called train" in wrong.message


def test_a_folder_of_tables(tmp_path: Path) -> None:
    """Parquet and JSON-lines; nothing is left beside them."""
    for name in ("parquet", "jsonl"):
        (tmp_path / name).mkdir()
    table = datasets.Dataset.from_dict({"body": ["a", None, " ", "b"], "id": [1, 2, 3, 4]})
    table.to_parquet(tmp_path / "parquet" / "0.parquet")
    table.filter(lambda row: row["id"] != 2).to_json(tmp_path / "jsonl" / "0.jsonl")
    for name in ("parquet", "jsonl", "parquet/0.parquet"):
        assert read_document(tmp_path / name).text == "a\n\nb"
    assert [p.name for p in (tmp_path / "parquet").iterdir()] == ["0.parquet"]


def test_a_large_data_set_is_read_in_part(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rows(5000)).save_to_disk(tmp_path / "saved")
    found = read_document(tmp_path / "saved", most=10_000, seed=1)
    assert "of 5,000 rows were read" in found.notes[0]
    assert 10_000 <= len(found.text) < 40_000
    assert found.text == read_document(tmp_path / "saved", most=10_000, seed=1).text
    assert found.text != read_document(tmp_path / "saved", most=10_000, seed=2).text


def test_data_sets_without_a_text(tmp_path: Path) -> None:
    def message(columns: dict[str, list[Any]]) -> str:
        folder = tmp_path / "-".join(columns)
        datasets.Dataset.from_dict(columns).save_to_disk(folder)
        return told(lambda: read_document(folder)).message

    assert "no column of text, and none is called `text`: it has id" in message({"id": [1]})
    assert "several columns of text" in message({"a": ["x"], "b": ["y"]})
    assert "holds no text" in message({"text": ["", " "]})


def test_a_damaged_data_set(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rows()).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "saved").glob("*.arrow"):
        path.write_bytes(b"nothing")
    wrong = told(lambda: read_document(tmp_path / "saved"))
    assert wrong.code == "P139"
    assert "cannot be read" in wrong.message


def test_folders_of_nothing_and_of_everything(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no data" in told(lambda: kind_of(tmp_path / "empty")).message
    write(tmp_path / "a.npz")
    write(tmp_path / "b.jsonl")
    assert "both arrays and texts" in told(lambda: kind_of(tmp_path)).message


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def lacks(name: str, *rest: Any) -> Any:
        return None if name == "datasets" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", lacks)
    write(tmp_path / "a.parquet")
    with pytest.raises(PrunecError) as raised:
        check_place(tmp_path / "a.parquet")
    assert raised.value.diagnostics[0].code == "P994"
    assert 'pip install "prunec[datasets]"' in raised.value.diagnostics[0].help
    assert read_document(write(tmp_path / "a.jsonl", '{"text": "a"}')).text == "a"
