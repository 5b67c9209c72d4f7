"""Layers and widths of an ONNX file in one budget."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_files
import pytest
import test_onnx_cache
from onnx import numpy_helper
from test_onnx_cli import BLOCKS, HIDDEN, WIDTH, residual_mlp, told

WEAK = "layers.1"
"""The layer that adds next to nothing."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Residual blocks whose weights tell their layer."""
    path = residual_mlp(tmp_path / "model.onnx")
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.name = re.sub(r"^b(\d)\.", r"layers.\1.", tensor.name)
        if tensor.name == f"{WEAK}.down":
            weak = 0.02 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(weak, tensor.name))
    for node in proto.graph.node:
        node.input[:] = [re.sub(r"^b(\d)\.", r"layers.\1.", name) for name in node.input]
    onnx.save(proto, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((64, WIDTH)).astype(np.float32))
    return path


def prune(
    capsys: pytest.CaptureFixture[str], model: Path, out: Path, data: Path, *options: str
) -> dict[str, Any]:
    code, report = told(
        capsys, "prune", str(model), "-o", str(out), "--calibration", str(data), "--verify",
        *options,
    )  # fmt: skip
    assert code == 0, report
    assert all(check["passed"] for check in report["checks"])
    return report


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_the_weak_layer_goes_and_widths_do_the_rest(
    layout: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--groups", "layer,neuron", "--layout", layout)
    out = tmp_path / "out"
    report = prune(capsys, model, out, data, "--target", "params=45%", *options)
    assert report["removed"] == [f"{WEAK}/layer"]
    assert [check["name"] for check in report["checks"]] == ["law 1", "onnx"]
    (target,) = report["targets"]
    assert 0.95 * target["limit"] <= target["left"] <= target["limit"]
    kept = [group["kept"] for group in report["groups"] if group["role"] == "neuron"]
    assert kept[1] == 0
    assert all(0 < count < HIDDEN for i, count in enumerate(kept) if i != 1)
    assert len(kept) == BLOCKS
    plan = ("--plan", str(out / "plan.json"))
    prune(capsys, model, tmp_path / "again", data, *plan)
    written = [(path / "onnx/model.onnx").read_bytes() for path in (out, tmp_path / "again")]
    assert written[0] == written[1]


def test_it_loses_less_than_widths_alone(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [
        prune(capsys, model, tmp_path / roles, data, "--target", "params=45%", "--groups", roles)[
            "sources"
        ][0]["pruned"]
        for roles in ("layer,neuron", "neuron")
    ]
    assert errors[0] < 0.9 * errors[1]


def test_a_cache_goes_with_its_layer_and_heads_of_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = test_onnx_cache.in_layers(tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **test_onnx_cache.fed())
    report = prune(
        capsys, decoder, tmp_path / "out", tmp_path / "data.npz", "--target", "blocks=40%",
        "--groups", "layer,query_head", "--allow-interface-change",
    )  # fmt: skip
    (name,) = report["removed"]
    gone = re.findall(r"\d", name)[0]
    assert {row["name"] for row in report["interface"]} == {
        f"{side}__{gone}__{kind}" for side in ("past", "present") for kind in ("key", "value")
    }
    found = onnx_files.session(tmp_path / "out/onnx/model.onnx")
    feeds = test_onnx_cache.fed(1, 0, 5)
    outputs = found.run(None, {value.name: feeds[value.name] for value in found.get_inputs()})
    assert np.isfinite(outputs[0]).all()


def test_no_torch_is_needed(model: Path, data: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from prunec.cli.app import main\n"
        f"sys.exit(main(['prune', {str(model)!r}, '-o', {str(tmp_path / 'out')!r}, '--target',"
        f" 'params=45%', '--groups', 'layer,neuron', '--calibration', {str(data)!r}]))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    removed = json.loads((tmp_path / "out/report.json").read_text())["removed"]
    assert removed == [f"{WEAK}/layer"]
