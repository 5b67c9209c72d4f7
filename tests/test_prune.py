"""`prunec prune` from a saved checkpoint to files that other tools load, on tiny models.

What the run says of itself is checked against the files alone: plan.json, the dense and the
written safetensors.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from safetensors.numpy import load_file

from prunec.cli.app import main

LAYOUTS = ("uniform", "per-layer")
TARGETS = {"llama": "50%", "gpt2": "50%", "bert": "60%", "gemma3": "50%"}
"""Of the parameters in blocks: low enough that heads go too, where the layout can hold it."""

Saved = Callable[[str], Path]


@dataclass(frozen=True)
class Run:
    """What a run printed with --json, and where it wrote."""

    code: int
    report: dict[str, Any]
    out: Path

    @property
    def plan(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "plan.json").read_text())
        return found

    @property
    def written(self) -> dict[str, np.ndarray]:
        return load_file(self.out / "hf" / "model.safetensors")


def prune(model: Path, out: Path, *options: str) -> Run:
    printed, told = io.StringIO(), io.StringIO()
    arguments = ["prune", str(model), "-o", str(out), *options, "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(arguments)
    assert printed.getvalue(), told.getvalue()
    return Run(code, json.loads(printed.getvalue()), out)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a tiny model with random weights."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            zoo.build(name).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="module", params=[(m, layout) for m in TARGETS for layout in LAYOUTS])
def run(
    request: pytest.FixtureRequest, saved: Saved, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Run]:
    """A model, and its pruning in all formats, verified."""
    name, layout = request.param
    out = tmp_path_factory.mktemp("out") / "small"
    found = prune(
        saved(name), out, "--target", f"blocks={TARGETS[name]}", "--method", "magnitude",
        "--calibration", "none", "--format", "hf,onnx,torchscript", "--layout", layout, "--verify",
    )  # fmt: skip
    return saved(name), found


def test_every_format_agrees(run: tuple[Path, Run]) -> None:
    _, found = run
    assert found.code == 0, found.report
    checks = {check["name"]: check["passed"] for check in found.report["checks"]}
    assert checks == dict.fromkeys(["law 1", "hf", "onnx", "torchscript"], True)
    for written in found.report["formats"]:
        assert (found.out / written["path"]).exists()


def test_the_count_is_what_was_asked_for(run: tuple[Path, Run]) -> None:
    """As near below the target as the coarsest neuron allows, one of every layer."""
    _, found = run
    (target,) = found.report["targets"]
    neurons = [g["params_per_index"] for g in found.report["groups"] if g["role"] == "neuron"]
    missed = target["limit"] - target["left"]
    assert 0 <= missed <= max(0.005 * target["dense"], sum(neurons))


def test_sizes_are_those_of_the_files(run: tuple[Path, Run]) -> None:
    model, found = run
    dense = load_file(model / "model.safetensors")
    for sizes, tensors in ((found.report["dense"], dense), (found.report["pruned"], found.written)):
        assert sizes["params"] == sum(tensor.size for tensor in tensors.values())


def test_what_is_written_is_what_the_plan_keeps(run: tuple[Path, Run]) -> None:
    model, found = run
    dense = load_file(model / "model.safetensors")
    plan, written = found.plan, found.written
    assert set(written) == set(dense)
    for name, tensor in dense.items():
        kept = tensor
        for dim, indices in entry(plan["parameters"], name).items():
            kept = kept.take(indices, int(dim))
        np.testing.assert_array_equal(written[name], kept)


def entry(parameters: dict[str, Any], name: str) -> dict[str, list[int]]:
    """A checkpoint of a base model may lack the prefix that the program has, or have it."""
    found = [dims for key, dims in parameters.items() if key.endswith(name) or name.endswith(key)]
    assert len(found) <= 1
    return found[0] if found else {}


def test_the_plan_says_how_many_are_kept(run: tuple[Path, Run]) -> None:
    _, found = run
    reported = {g["name"]: g["kept"] for g in found.report["groups"]}
    for group in found.plan["groups"]:
        assert reported[group["name"]] == group["kept"]
        if group["parent"] is None and group["role"] == "neuron":
            name, dim = group["where"][0].rstrip("]").rsplit("[", 1)
            assert len(found.plan["parameters"][name][dim]) == group["kept"]


def test_the_plan_fed_back_gives_the_same_weights(run: tuple[Path, Run], tmp_path: Path) -> None:
    model, found = run
    again = prune(
        model, tmp_path / "again", "--plan", str(found.out / "plan.json"), "--calibration", "none",
        "--layout", found.report["layout"],
    )  # fmt: skip
    assert again.code == 0
    assert again.plan["parameters"] == found.plan["parameters"]
    for name, tensor in found.written.items():
        np.testing.assert_array_equal(again.written[name], tensor)


def calibrated(model: Path, out: Path, *options: str) -> Run:
    return prune(
        model, out, "--target", "params=80%", "--method", "wanda", "--restore", "ls",
        "--calibration", "self", "--calibration-samples", "4", "--calibration-length", "16",
        *options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_calibrated_runs_repeat(name: str, saved: Saved, tmp_path: Path) -> None:
    """The same seed gives the same plan and weights; and restoring changes what remains."""
    first = calibrated(saved(name), tmp_path / "first", "--verify")
    second = calibrated(saved(name), tmp_path / "second")
    assert first.code == second.code == 0
    assert first.plan == second.plan
    dense = load_file(saved(name) / "model.safetensors")
    refitted = 0
    for tensor_name, tensor in first.written.items():
        np.testing.assert_array_equal(second.written[tensor_name], tensor)
        kept = dense[tensor_name]
        for dim, indices in entry(first.plan["parameters"], tensor_name).items():
            kept = kept.take(indices, int(dim))
        refitted += not np.array_equal(kept, tensor)
    assert refitted > 0
