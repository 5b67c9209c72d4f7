"""`--steps N`: the target in steps, each planned on what the one before has left."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file

from prunec.cli.app import main

DATA = ("--calibration-samples", "4", "--calibration-length", "12")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    zoo.build("llama", intermediate_size=160).save_pretrained(folder)
    given = zoo.inputs("llama", batch=4, length=12)
    np.savez(folder.with_suffix(".npz"), **{k: v.numpy() for k, v in given.items()})
    return folder


def prune(model: Path, out: Path, data: Path, *options: str) -> dict[str, Any]:
    printed, told = io.StringIO(), io.StringIO()
    arguments = ["prune", str(model), "-o", str(out), *options, "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main([*arguments, "--calibration", str(data), *DATA])
    assert code == 0, told.getvalue() + printed.getvalue()
    return dict(json.loads(printed.getvalue()))


def weights(out: Path) -> dict[str, Any]:
    return load_file(out / "hf" / "model.safetensors")


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_the_target_holds_and_so_does_law_1(model: Path, tmp_path: Path, layout: str) -> None:
    report = prune(
        model, tmp_path / "out", model.with_suffix(".npz"), "--target", "blocks=50%",
        "--steps", "3", "--layout", layout, "--format", "hf,onnx", "--verify",
    )  # fmt: skip
    (target,) = report["targets"]
    assert target["text"] == "blocks=50%"
    assert target["met"]
    assert target["left"] > 0.45 * target["dense"]
    assert all(check["passed"] for check in report["checks"])
    assert report["dense"]["blocks"] == target["dense"]


def test_two_steps_are_two_runs(model: Path, tmp_path: Path) -> None:
    """To the last bit: the second run reads what the first one wrote."""
    data = model.with_suffix(".npz")
    asked = ("--groups", "neuron", "--method", "criterion=wanda,restore=ls")
    both = prune(model, tmp_path / "both", data, "--target", "blocks=70%", "--steps", "2", *asked)
    first = prune(model, tmp_path / "a", data, "--target", "blocks=85%", *asked)
    left = first["pruned"]["blocks"]
    share = 100 * 0.7 * first["dense"]["blocks"] / left
    second = prune(
        tmp_path / "a" / "hf", tmp_path / "b", data, "--target", f"blocks={share!r}%", *asked
    )
    assert both["pruned"]["params"] == second["pruned"]["params"] < first["pruned"]["params"]
    found, wanted = weights(tmp_path / "both"), weights(tmp_path / "b")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert np.array_equal(found[name], wanted[name]), name


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "deep"
    zoo.build("llama", num_hidden_layers=6, intermediate_size=96).save_pretrained(folder)
    given = zoo.inputs("llama", batch=4, length=12)
    np.savez(folder.with_suffix(".npz"), **{k: v.numpy() for k, v in given.items()})
    return folder


@pytest.mark.parametrize("groups", ["layer", "layer,neuron"])
def test_two_steps_of_depth_are_two_runs(deep: Path, tmp_path: Path, groups: str) -> None:
    """To the last bit, and the layers that stay are numbered anew in both."""
    data = deep.with_suffix(".npz")
    asked = ("--groups", groups)
    both = prune(deep, tmp_path / "both", data, "--target", "blocks=60%", "--steps", "2", *asked)
    first = prune(deep, tmp_path / "a", data, "--target", "blocks=80%", *asked)
    left = first["pruned"]["blocks"]
    share = 100 * 0.6 * first["dense"]["blocks"] / left
    second = prune(
        tmp_path / "a" / "hf", tmp_path / "b", data, "--target", f"blocks={share!r}%", *asked
    )
    assert len(both["removed"]) == len(first["removed"]) + len(second["removed"]) > 1
    assert set(first["removed"]) <= set(both["removed"])
    found, wanted = weights(tmp_path / "both"), weights(tmp_path / "b")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert np.array_equal(found[name], wanted[name]), name


def test_sublayers_go_in_steps(deep: Path, tmp_path: Path) -> None:
    report = prune(
        deep, tmp_path / "out", deep.with_suffix(".npz"), "--target", "blocks=50%", "--steps", "3",
        "--groups", "sublayer", "--format", "onnx", "--verify", "--restore", "ls",
    )  # fmt: skip
    (target,) = report["targets"]
    assert target["met"]
    assert report["removed"]
    assert all(check["passed"] for check in report["checks"])


def test_criteria_that_look_at_one_unit_alone_need_no_steps(model: Path, tmp_path: Path) -> None:
    """The neurons that are least stay least."""
    data = model.with_suffix(".npz")
    asked = ("--target", "blocks=60%", "--groups", "neuron", "--method", "magnitude",
             "--restore", "none")  # fmt: skip
    prune(model, tmp_path / "one", data, *asked)
    prune(model, tmp_path / "four", data, *asked, "--steps", "4")
    one, four = (
        json.loads((tmp_path / name / "plan.json").read_text())["parameters"]
        for name in ("one", "four")
    )
    assert one == four


def test_an_interrupted_run_goes_on(model: Path, tmp_path: Path) -> None:
    data = model.with_suffix(".npz")
    asked = ("--target", "blocks=60%", "--steps", "2", "--resume")
    fresh = prune(model, tmp_path / "a", data, *asked)
    again = prune(model, tmp_path / "b", data, *asked)
    assert fresh["pruned"] == again["pruned"]
    assert not list(tmp_path.glob(".*state"))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--steps", "0"), "P811"),
        (("--steps", "2", "--recover-every", "15%"), "P816"),
    ],
)
def test_refusals(
    model: Path, tmp_path: Path, options: tuple[str, ...], code: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["prune", str(model), "-o", str(tmp_path / "o"), "--target", "params=90%"]
    assert main([*arguments, *options]) == 2
    told = capsys.readouterr().err
    assert f"error[{code}]" in told
    assert "help:" in told
