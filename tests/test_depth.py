"""Whole layers and sublayers through the command line: chosen, removed, written and read back."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo

from prunec.cli.app import main

DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 4},
    "gemma3": {"num_hidden_layers": 4},
    "bert": {"num_hidden_layers": 4},
    "t5": {"num_layers": 3},
    "resnet": {"embedding_size": 16, "depths": [4, 3]},
    "gpt_neox": {"num_hidden_layers": 3},
}
SAMPLES, LENGTH = 4, 12

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a tiny model with random weights, and what to calibrate it on beside it."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            zoo.build(name, **DEEP[name]).save_pretrained(root / name)
            given = zoo.inputs(name, batch=SAMPLES, length=LENGTH)
            arrays = {key: value.numpy() for key, value in given.items()}
            if "attention_mask" in arrays:
                arrays["attention_mask"] = np.ones_like(arrays["attention_mask"])
            np.savez(root / f"{name}.npz", **arrays)
        return root / name

    return folder


def prune(model: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    printed, told = io.StringIO(), io.StringIO()
    data = ("--calibration", str(model.with_suffix(".npz")))
    arguments = ["prune", str(model), "-o", str(out), *data, *options, "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(arguments)
    assert printed.getvalue(), told.getvalue()
    return code, json.loads(printed.getvalue())


@pytest.mark.parametrize("name", DEEP)
def test_layers_go_and_every_format_agrees(saved: Saved, tmp_path: Path, name: str) -> None:
    # a TorchScript file does not say how large its pictures are
    formats = ["hf", "onnx"] if name == "resnet" else ["hf", "onnx", "torchscript"]
    code, report = prune(
        saved(name), tmp_path / "out", "--target", "blocks=80%", "--groups", "layer",
        "--format", ",".join(formats), "--verify",
    )  # fmt: skip
    assert code == 0, report
    checks = {c["name"]: c["passed"] for c in report["checks"]}
    assert checks == dict.fromkeys(["law 1", *formats], True)
    assert report["removed"]
    made = getattr(transformers, zoo.ZOO[name].model)
    small = made.from_pretrained(tmp_path / "out" / "hf", attn_implementation="eager")
    assert sum(p.numel() for p in small.parameters()) == report["pruned"]["params"]
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["removed"] == report["removed"]


@pytest.mark.parametrize("order", ["sleb", "shortgpt", "angular"])
def test_what_is_written_is_the_network_without_the_layers(
    saved: Saved, tmp_path: Path, order: str
) -> None:
    _, report = prune(
        saved("llama"), tmp_path / "out", "--target", "blocks=60%", "--groups", "layer",
        "--depth", order,
    )  # fmt: skip
    gone = sorted(int(name.split(".")[2].partition("/")[0]) for name in report["removed"])
    assert len(gone) == 2
    by_hand = zoo.build("llama", **DEEP["llama"])
    for number in reversed(gone):
        del by_hand.model.layers[number]
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    given = zoo.inputs("llama")
    with torch.no_grad():
        found, wanted = (m(**given, use_cache=False).logits for m in (small, by_hand))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("restore", "groups"), [("ls", "layer"), ("cross", "layer,neuron")])
def test_what_follows_makes_up_for_what_went(
    saved: Saved, tmp_path: Path, restore: str, groups: str
) -> None:
    """Layers after the one that went are refitted to what the dense model's stream was."""
    given = {k: torch.from_numpy(v) for k, v in np.load(saved("llama").with_suffix(".npz")).items()}
    dense = transformers.AutoModelForCausalLM.from_pretrained(saved("llama"))
    plain = ("--target", "blocks=80%", "--groups", groups, "--depth", "angular")
    errors, states = {}, {}
    for how in (restore, "none"):
        code, report = prune(saved("llama"), tmp_path / how, *plain, "--restore", how, "--verify")
        assert code == 0, report
        small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / how / "hf")
        with torch.no_grad():
            found, wanted = (m(**given, use_cache=False).logits for m in (small, dense))
        errors[how] = float((found - wanted).square().sum() / wanted.square().sum())
        states[how] = small.state_dict()
    assert errors[restore] < 0.9 * errors["none"]
    if groups != "layer":
        return
    gone = int(report["removed"][0].split(".")[2].partition("/")[0])
    changed = {
        int(name.split(".")[2])
        for name, value in states["none"].items()
        if not torch.equal(value, states[restore][name])
    }
    assert changed == set(range(gone, 3))


def test_layer_types_go_with_their_layers(saved: Saved, tmp_path: Path) -> None:
    """Local and global attention stay with the layers that have them."""
    _, report = prune(
        saved("gemma3"), tmp_path / "out", "--target", "blocks=80%", "--groups", "layer"
    )
    gone = {int(name.split(".")[2].partition("/")[0]) for name in report["removed"]}
    dense = json.loads((saved("gemma3") / "config.json").read_text())["layer_types"]
    left = json.loads((tmp_path / "out" / "hf" / "config.json").read_text())["layer_types"]
    assert left == [kind for i, kind in enumerate(dense) if i not in gone]


def test_sublayers_in_formats_that_hold_any_program(saved: Saved, tmp_path: Path) -> None:
    code, report = prune(
        saved("llama"), tmp_path / "out", "--target", "blocks=70%", "--groups", "sublayer",
        "--format", "onnx,torchscript", "--verify",
    )  # fmt: skip
    assert code == 0
    assert all(name.endswith("/sublayer") for name in report["removed"])
    code, again = prune(
        saved("llama"), tmp_path / "again", "--plan", str(tmp_path / "out" / "plan.json"),
        "--format", "onnx",
    )  # fmt: skip
    assert code == 0
    assert again["removed"] == report["removed"]
    assert again["pruned"]["params"] == report["pruned"]["params"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--groups", "sublayer", "--format", "hf"), "P616", "cannot go alone"),
        (("--groups", "layer,neuron", "--method", "magnitude"), "P816", "no error curves"),
        (("--groups", "layer", "--calibration", "none"), "P814", "no calibration data"),
        (("--groups", "layer", "--depth", "banana"), "P810", "banana"),
        (("--groups", "layer", "--target", "params=1%"), "P403", "without every layer"),
    ],
)
def test_refusals(
    saved: Saved,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: str,
    says: str,
) -> None:
    target = () if "--target" in options else ("--target", "blocks=70%")
    data = ("--calibration", str(saved("llama").with_suffix(".npz")))
    arguments = ["prune", str(saved("llama")), "-o", str(tmp_path / "out"), *data, *target]
    assert main([*arguments, *options]) in (2, 3)
    told = capsys.readouterr().err
    assert code in told
    assert says in told
    assert "help:" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_width_and_depth_share_a_budget(saved: Saved, tmp_path: Path, layout: str) -> None:
    """The target holds whatever number of layers went, and the plan says which."""
    code, report = prune(
        saved("llama"), tmp_path / "out", "--target", "blocks=60%", "--groups", "layer,neuron",
        "--depth", "shortgpt", "--layout", layout, "--format", "hf,onnx", "--verify",
    )  # fmt: skip
    assert code == 0, report
    (target,) = report["targets"]
    assert target["left"] <= target["limit"]
    assert len(report["removed"]) < DEEP["llama"]["num_hidden_layers"]
    gone = [g for g in report["groups"] if g["kept"] == 0]
    assert bool(gone) == bool(report["removed"])


def test_a_model_without_residual_additions(tmp_path: Path) -> None:
    """No region, one diagnostic."""
    # each stage's only layer changes the number of channels
    zoo.build("resnet", depths=[1, 1]).save_pretrained(tmp_path / "resnet")
    with contextlib.redirect_stderr(io.StringIO()) as told:
        code = main(
            ["prune", str(tmp_path / "resnet"), "-o", str(tmp_path / "out"), "--target",
             "params=90%", "--groups", "sublayer", "--format", "onnx", "--calibration", "self"]
        )  # fmt: skip
    assert code == 2
    assert "P407" in told.getvalue()


def test_a_plan_with_an_unknown_region(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"version": 1, "removed": ["model.layers.9/layer"], "parameters": {}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = ["prune", str(saved("llama")), "-o", str(tmp_path / "out"), "--method", "magnitude"]
    assert main([*arguments, "--plan", str(tmp_path / "plan.json")]) == 2
    told = capsys.readouterr().err
    assert "P836" in told
    assert "model.layers.9/layer" in told
