"""Weights that are no numbers, and plans that keep nothing: told, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from refusals import Place
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"
PLAIN = ("--method", "magnitude", "--calibration", "none")
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    zoo.build("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def place(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    root = tmp_path / "work"
    shutil.copytree(saved, root / "model")
    capsys.readouterr()
    return Place(root, capsys)


def not_a_number(model: Path, name: str = "model.layers.0.mlp.up_proj.weight") -> None:
    tensors = load_file(model / WEIGHTS)
    tensors[name].reshape(-1)[4] = np.nan
    save_file(tensors, model / WEIGHTS)


@pytest.mark.parametrize("options", [PLAIN, ("--calibration-length", "16")])
def test_weights_that_are_no_numbers(options: tuple[str, ...], place: Place) -> None:
    """Found when the tensor is read, whether or not anything runs the model."""
    not_a_number(place.model)
    told = place.refuse(1, "--target", "params=80%", "--calibration-samples", "2", *options)
    assert "model.layers.0.mlp.up_proj.weight" in told or "not finite" in told


@pytest.mark.parametrize("form", ["hf", "onnx", "torchscript"])
def test_other_weights_that_are_no_numbers(form: str, place: Place) -> None:
    """What is not scored is checked when it is written, in every format."""
    not_a_number(place.model, "model.norm.weight")
    told = place.refuse(1, "--target", "params=80%", "--format", form, *PLAIN)
    assert form == "onnx" or "model.norm.weight" in told


def test_overwriting_fails_whole(place: Place) -> None:
    """An output that was to be replaced is as it was when the run fails late."""
    not_a_number(place.model)
    place.out.mkdir()
    (place.out / "mine.txt").write_text("precious")
    place.refuse(1, "--overwrite", "--target", "params=80%", *PLAIN)


@pytest.mark.parametrize(
    ("kept", "says"),
    [({UP: {"3": [0]}}, "no dimension 3"), ({UP: {"0": []}}, "keeps nothing")],
)
def test_a_plan_has_a_remedy(kept: dict[str, Any], says: str, place: Place) -> None:
    (place.root / "plan.json").write_text(json.dumps({"parameters": kept}))
    told = place.refuse(2, "--plan", str(place.root / "plan.json"), *PLAIN[2:])
    assert says in told
