"""Calibration data as arrays: files, folders of batches, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worded import Make, maker, refused, told

from prunec.frontends.calibration import calibration
from prunec.ir.diagnostics import Exit


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def test_arrays_are_used_as_they_are(make: Make, tmp_path: Path) -> None:
    source, model = make("vision", with_tokenizer=False)
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).random((5, 3, 8, 8))
    np.savez(path, pixel_values=images)
    found = calibration(source, model, str(path), 3, 0, seed=0)
    np.testing.assert_array_equal(
        found.inputs["pixel_values"], images[[0, 1, 3]].astype(np.float32)
    )


@pytest.mark.parametrize(
    "arrays",
    [
        {"pixel_values": np.zeros((2, 3, 8, 8)), "colour": np.zeros(2)},
        {"labels": np.zeros(2, np.int64)},
        {"pixel_values": np.zeros((2, 3, 8, 8)), "labels": np.zeros(3)},
        {"pixel_values": np.zeros((0, 3, 8, 8))},
        {"pixel_values": np.float32(3)},
        {"pixel_values": np.array([{}], object)},
        None,
    ],
)
def test_bad_arrays(make: Make, tmp_path: Path, arrays: Any) -> None:
    source, model = make("vision", with_tokenizer=False)
    path = tmp_path / "images.npz"
    path.write_bytes(json.dumps(3).encode())
    if arrays is not None:
        np.savez(path, **arrays)
    found = refused(lambda: calibration(source, model, str(path), 2, 9, seed=0))
    assert found == ("P135", Exit.USAGE)


def test_of_many_samples_some_spread_evenly_are_used(make: Make, tmp_path: Path) -> None:
    """Of each batch in turn; batch 2 comes before batch 10, and only what is used is read."""
    folder = tmp_path / "batches"
    folder.mkdir()
    for i in range(12):
        np.savez(folder / f"{i}.npz", pixel_values=np.full((5, 3, 2, 2), i, np.float16))
    source, model = make("vision", with_tokenizer=False)
    found = calibration(source, model, str(folder), 12, 0, seed=0, held_out=3)
    assert found.held_out is not None
    used = found.inputs["pixel_values"][:, 0, 0, 0]
    assert found.inputs["pixel_values"].dtype == np.float32
    assert used.tolist() == sorted(used)
    assert len(set(used) | set(found.held_out.inputs["pixel_values"][:, 0, 0, 0])) == 12
    assert found.notes == ("15 of the 60 samples of batches are used",)


@pytest.mark.parametrize(
    "names",
    [
        ("input_ids.npy", "attention_mask.npy"),
        ("input_ids-0.npy", "input_ids-1.npy", "attention_mask-0.npy", "attention_mask-1.npy"),
        ("input_ids/0.npy", "input_ids/1.npy", "attention_mask/0.npy", "attention_mask/1.npy"),
    ],
)
def test_npy_files_are_named_after_their_input(
    names: tuple[str, ...], make: Make, tmp_path: Path
) -> None:
    ids = np.arange(48).reshape(8, 6)
    rows = 16 // len(names)
    for i, name in enumerate(names):
        part = (i % (len(names) // 2)) * rows
        array = ids if "ids" in name else np.where(ids % 6, 1, 0)
        path = tmp_path / "arrays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array[part : part + rows].astype(np.int32))
    source, model = make("decoder")
    found = calibration(source, model, str(tmp_path / "arrays"), 8, 0, seed=0)
    np.testing.assert_array_equal(found.inputs["input_ids"], ids)
    np.testing.assert_array_equal(found.inputs["attention_mask"], np.where(ids % 6, 1, 0))
    assert found.inputs["input_ids"].dtype == np.int64


def test_tokens_alone_are_completed(make: Make, tmp_path: Path) -> None:
    ids = np.arange(12).reshape(2, 6)
    np.save(tmp_path / "input_ids.npy", ids)
    source, model = make("seq2seq")
    found = calibration(source, model, str(tmp_path / "input_ids.npy"), 8, 0, seed=0)
    assert (found.inputs["attention_mask"] == 1).all()
    np.testing.assert_array_equal(found.inputs["decoder_input_ids"][:, 1:], ids[:, :-1])
    assert found.notes == ("input_ids.npy holds 2 windows of 6 tokens, not 8",)


WRONG_TOKENS: dict[str, tuple[dict[str, Any], str, str]] = {
    "outside": ({"input_ids": np.full((2, 4), 63)}, "P140", "token id 63 of t.npz"),
    "negative": ({"input_ids": np.full((2, 4), -100)}, "P140", "token id -100 of t.npz"),
    "floats": ({"input_ids": np.ones((2, 4))}, "P135", "input_ids is of float32"),
    "flat": ({"input_ids": np.ones(2, int)}, "P135", "shape [2]"),
    "long": ({"input_ids": np.ones((2, 65), int)}, "P135", "65 tokens; the model reads at most 64"),
    "unknown": ({"ids": np.ones((2, 4), int)}, "P135", "no input ids"),
    "strings": ({"input_ids": np.array([["a"]])}, "P135", "input_ids is of <U1"),
}


@pytest.mark.parametrize("what", WRONG_TOKENS)
def test_bad_tokens(what: str, make: Make, tmp_path: Path) -> None:
    arrays, code, says = WRONG_TOKENS[what]
    np.savez(tmp_path / "t.npz", **arrays)
    source, model = make("decoder")
    wrong = told(lambda: calibration(source, model, str(tmp_path / "t.npz"), 2, 9, seed=0))
    assert wrong.code == code
    assert says in wrong.message


def test_bad_folders(make: Make, tmp_path: Path) -> None:
    source, model = make("decoder")

    def message(**files: Any) -> str:
        folder = tmp_path / "-".join(files)
        folder.mkdir()
        for name, array in files.items():
            np.save(folder / f"{name}.npy", array)
        return told(lambda: calibration(source, model, str(folder), 2, 9, seed=0)).message

    one, two = np.ones((2, 4), int), np.ones((2, 5), int)
    assert "no input that colours.npy is named for" in message(colours=one)
    assert "samples of [5] here, elsewhere of [4]" in message(input_ids_0=one, input_ids_1=two)
    uneven = message(input_ids_0=one, input_ids_1=one, attention_mask_0=one)
    assert "attention_mask is in some batches and not in others" in uneven
    assert "there is no array input_ids" in message(attention_mask=one)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(value: float, make: Make, tmp_path: Path) -> None:
    images = np.zeros((2, 3, 8, 8))
    images[1, 2, 3, 4] = value
    np.savez(tmp_path / "i.npz", pixel_values=images)
    source, model = make("vision", with_tokenizer=False)
    wrong = told(lambda: calibration(source, model, str(tmp_path / "i.npz"), 2, 9, seed=0))
    assert "pixel_values has values that are not finite" in wrong.message
