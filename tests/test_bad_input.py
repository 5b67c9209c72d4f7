"""What a user can get wrong: one diagnostic, the right exit code, nothing written.

Everything goes through the command line and a real, tiny model.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from refusals import Place
from safetensors.numpy import load_file, save_file

from prunec.cli.app import main

WEIGHTS = "model.safetensors"
PLAIN = ("--method", "magnitude", "--calibration", "none")


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


# -- the model --------------------------------------------------------------------------------


def missing_weights(model: Path) -> None:
    (model / WEIGHTS).unlink()


def truncated_weights(model: Path) -> None:
    whole = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def truncated_header(model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:40])


def empty_weights(model: Path) -> None:
    (model / WEIGHTS).write_bytes(b"")


def missing_tensor(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / WEIGHTS)


def other_shape(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["model.norm.weight"] = np.ones(7, np.float32)
    save_file(tensors, model / WEIGHTS)


class Harmful:
    """What must never be called: unpickling would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was opened",)


def pickled(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))


def edited(**fields: Any) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def broken_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama",')


def missing_config(model: Path) -> None:
    (model / "config.json").unlink()


MODELS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no safetensors": (missing_weights, "P101", "safetensors"),
    "truncated": (truncated_weights, "P103", WEIGHTS),
    "truncated header": (truncated_header, "P103", WEIGHTS),
    "empty": (empty_weights, "P103", WEIGHTS),
    "a tensor is missing": (missing_tensor, "P120", "model.layers.1.mlp.up_proj.weight"),
    "a tensor of another shape": (other_shape, "P122", "model.norm.weight"),
    "pickle": (pickled, "P102", "pytorch_model.bin"),
    "unknown type": (edited(model_type="no_such_model"), "P111", "no_such_model"),
    "no type": (edited(model_type=None, architectures=None), "P111", "config.json"),
    "config is no JSON": (broken_config, "P110", "config.json"),
    "no config": (missing_config, "P110", "config.json"),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_damaged_model(what: str, place: Place) -> None:
    damage, code, names = MODELS[what]
    damage(place.model)
    told = place.refuse(1, "--target", "params=80%", *PLAIN)
    assert told.startswith(f"error[{code}]")
    assert names in told


def test_no_such_model(place: Place) -> None:
    shutil.rmtree(place.model)
    place.model.parent.mkdir(exist_ok=True)
    told = place.refuse(1, "--target", "params=80%", *PLAIN)
    assert str(place.model) in told


# -- the target -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("params=0%", "would leave nothing"),
        ("params=100%", "leaves nothing to do"),
        ("params=150%", "more than the whole model"),
        ("params=banana", "is not a quantity"),
        ("banana", "METRIC=VALUE"),
        ("params=48.2k", "leaves nothing to do"),
        ("latency=2GB", "no unit"),
    ],
)
def test_a_bad_target(target: str, says: str, place: Place) -> None:
    assert says in place.refuse(2, "--target", target, *PLAIN)


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_a_target_out_of_reach(layout: str, place: Place) -> None:
    """Says how far it goes, what holds the rest, and what would work."""
    told = place.refuse(3, "--target", "params=10%", "--layout", layout, *PLAIN)
    assert told.startswith("error[P403]")
    assert "lm_head.weight alone holds" in told or "embed_tokens.weight alone holds" in told
    assert "ask for at least params=" in told
    assert "--groups include hidden" in told


def test_the_least_that_is_named_can_be_had(place: Place) -> None:
    """What the refusal proposes is no refusal again."""
    told = place.refuse(3, "--target", "params=10%", *PLAIN)
    least = told.split("ask for at least ")[1].split("%")[0] + "%"
    arguments = ["prune", str(place.model), "--dry-run", "--target", least, *PLAIN]
    assert main(arguments) == 0


def test_a_role_that_the_model_lacks(place: Place) -> None:
    told = place.refuse(2, "--target", "params=80%", "--groups", "channel", *PLAIN)
    assert "no channel" in told


# -- other files ------------------------------------------------------------------------------


def test_the_output_exists(place: Place) -> None:
    place.out.mkdir()
    (place.out / "mine.txt").write_text("precious")
    told = place.refuse(2, "--target", "params=80%", *PLAIN)
    assert "--overwrite" in told


@pytest.mark.parametrize(
    ("damage", "code", "options"),
    [
        (truncated_weights, 1, ("--target", "params=80%")),
        (lambda model: None, 3, ("--target", "params=10%")),
    ],
)
def test_overwriting_fails_whole(
    damage: Callable[[Path], None], code: int, options: tuple[str, ...], place: Place
) -> None:
    """An output that was to be replaced is as it was when the run fails."""
    damage(place.model)
    place.out.mkdir()
    (place.out / "mine.txt").write_text("precious")
    place.refuse(code, "--overwrite", *options, *PLAIN)


@pytest.mark.parametrize("content", ["", " \n\n\t "])
def test_empty_calibration(content: str, place: Place) -> None:
    (place.root / "text.txt").write_text(content)
    told = place.refuse(2, "--target", "params=80%", "--calibration", str(place.root / "text.txt"))
    assert "text.txt" in told


def test_no_such_calibration(place: Place) -> None:
    told = place.refuse(2, "--target", "params=80%", "--calibration", str(place.root / "no.txt"))
    assert "no.txt" in told


# -- plans ------------------------------------------------------------------------------------


def plan(place: Place, parameters: dict[str, Any], **more: Any) -> tuple[str, ...]:
    path = place.root / "plan.json"
    path.write_text(json.dumps({"parameters": parameters, **more}))
    return ("--plan", str(path), *PLAIN[2:])


UP = "model.layers.0.mlp.up_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def test_a_plan_of_another_model(place: Place) -> None:
    told = place.refuse(2, *plan(place, {"transformer.h.0.mlp.c_fc.weight": {"1": [0, 1]}}))
    assert "of another model" in told
    assert "transformer.h.0.mlp.c_fc.weight" in told


def test_a_plan_of_a_model_of_another_size(place: Place) -> None:
    kept = {UP: {"0": [0, 1]}, GATE: {"0": [0, 1]}, DOWN: {"1": [0, 1]}}
    told = place.refuse(2, *plan(place, kept, shapes={UP: [64, 48]}))
    assert "of another model" in told


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({UP: {"0": [0, 1]}, GATE: {"0": [0, 1]}}, "than what is coupled"),
        ({UP: {"0": [0, 1]}, GATE: {"0": [0, 2]}, DOWN: {"1": [0, 1]}}, "than what is coupled"),
        ({"lm_head.weight": {"0": [0, 1]}}, "than what is coupled"),
        ({UP: {"0": [0, 99]}}, "out of range"),
    ],
)
def test_a_plan_that_contradicts_itself(kept: dict[str, Any], says: str, place: Place) -> None:
    assert says in place.refuse(2, *plan(place, kept))


def test_a_plan_that_is_none(place: Place) -> None:
    (place.root / "plan.json").write_text("[]")
    told = place.refuse(2, "--plan", str(place.root / "plan.json"), *PLAIN[2:])
    assert "not a plan" in told


def test_a_file_that_torch_wrote_is_not_opened(place: Place) -> None:
    """A checkpoint given as MODEL itself."""
    torch.save({"w": torch.ones(2)}, place.root / "weights.pt")
    shutil.rmtree(place.model)
    (place.root / "weights.pt").rename(place.model)
    place.refuse(1, "--target", "params=80%", *PLAIN)


LONG = "x" * 300
"""No disk holds such a name."""


@pytest.mark.parametrize("model", [f"{LONG}.onnx", f"./{LONG}/m.gguf", f"{LONG}.json"])
def test_a_model_whose_name_is_too_long(model: str, place: Place) -> None:
    assert main(["inspect", model]) != 0
    said = place.capture.readouterr().err
    assert "error[P100]" in said
    assert "internal error" not in said


@pytest.mark.parametrize(
    ("option", "code"), [("--calibration", "P130"), ("--plan", "P830"), ("--recipe", "P840")]
)
def test_a_file_whose_name_is_too_long(option: str, code: str, place: Place) -> None:
    target = [] if option == "--plan" else ["--target", "params=80%"]
    assert main(["prune", str(place.model), "-o", str(place.out), *target, option, LONG]) == 2
    assert f"error[{code}]" in place.capture.readouterr().err
