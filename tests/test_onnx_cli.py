"""`prunec ... x.onnx`: every verb on a file, with ONNX Runtime alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunec.backends import ort_stream
from prunec.backends.array_file import write_arrays
from prunec.cli.app import main
from prunec.runs.run import Run

WIDTH, HIDDEN, BLOCKS = 12, 40, 3


def residual_mlp(path: Path, seed: int = 0) -> Path:
    """x + MLP(x), a few times, with logits behind."""
    rng = np.random.default_rng(seed)
    nodes, stored = [], []

    def weight(name: str, *shape: int) -> str:
        array = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        stored.append(numpy_helper.from_array(array, name))
        return name

    x = "x"
    for i in range(BLOCKS):
        up, down = weight(f"b{i}.up", WIDTH, HIDDEN), weight(f"b{i}.down", HIDDEN, WIDTH)
        bias = weight(f"b{i}.bias", HIDDEN)
        nodes += [
            helper.make_node("MatMul", [x, up], [f"u{i}"]),
            helper.make_node("Add", [f"u{i}", bias], [f"v{i}"]),
            helper.make_node("Relu", [f"v{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", down], [f"d{i}"]),
            helper.make_node("Add", [x, f"d{i}"], [f"x{i}"]),
        ]
        x = f"x{i}"
    nodes.append(helper.make_node("Gemm", [x, weight("head", WIDTH, 7)], ["logits"]))
    graph = helper.make_graph(
        nodes, "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 7])],
        stored,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return residual_mlp(tmp_path / "model.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((64, WIDTH)).astype(np.float32))
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_inspect_finds_the_neurons(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = told(capsys, "inspect", str(model))
    assert code == 0
    assert [g["size"] for g in report["groups"] if g["role"] == "neuron"] == [HIDDEN] * BLOCKS
    assert {g["role"] for g in report["groups"]} == {"neuron", "hidden"} - {"hidden"}


METHODS = ("magnitude", "wanda-sp", "flap", "fasp", "ziplm", "osscar", "slimgpt", "auto")


@pytest.mark.parametrize("method", METHODS)
def test_methods_without_gradients(
    method: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = ("--calibration", "none" if method == "magnitude" else str(data))
    code, report = told(
        capsys, "prune", str(model), "-o", str(tmp_path / "out"), "--target", "params=60%",
        "--method", method, *calibration, "--verify",
    )  # fmt: skip
    assert code == 0
    assert report["pruned"]["params"] <= 0.6 * report["dense"]["params"]
    assert all(check["passed"] for check in report["checks"])
    written = onnx.load(tmp_path / "out/onnx/model.onnx")
    assert {p.key: p.value for p in written.metadata_props} == {"author": "somebody"}


def test_least_squares_beats_no_restoration(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = []
    for restore in ("none", "ls"):
        _, report = told(
            capsys, "prune", str(model), "-o", str(tmp_path / restore), "--target", "params=60%",
            "--method", "wanda-sp", "--restore", restore, "--calibration", str(data),
        )  # fmt: skip
        errors.append(report["sources"][0]["pruned"])
    assert errors[1] < 0.8 * errors[0]


def test_values_that_lie_on_disk_meanwhile_give_the_same_file(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []

    def counted(arrays: Mapping[str, Any], path: Path) -> None:
        written.append(path)
        write_arrays(arrays, path)

    monkeypatch.setattr(ort_stream, "ARRAYS", replace(ort_stream.ARRAYS, write=counted))
    files = []
    for budget in (256, 0):
        out = tmp_path / str(budget)
        monkeypatch.setattr(Run, "budget", budget << 20)
        code, _ = told(
            capsys, "prune", str(model), "-o", str(out), "--target", "params=60%",
            "--method", "fasp", "--calibration", str(data),
        )  # fmt: skip
        assert code == 0
        assert bool(written) == (budget == 0)
        files.append((out / "onnx/model.onnx").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--format", "torchscript", "--method", "magnitude"], "P816"),
        (["--format", "hf", "--method", "magnitude"], "P816"),
        (["--calibration", "self"], "P134"),
        (["--method", "taylor"], "P815"),
    ],
)
def test_what_a_file_cannot(
    arguments: list[str], code: str, model: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "--calibration" not in arguments and "magnitude" not in arguments:
        arguments = [*arguments, "--calibration", str(data)]
    command = ["prune", str(model), "-o", str(tmp_path / "out"), "--target", "params=60%"]
    assert main([*command, *arguments]) == 2
    assert f"error[{code}]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bench_and_plan(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    common = ("--method", "magnitude", "--target", "params=60%")
    assert told(capsys, "prune", str(model), "-o", str(out), *common)[0] == 0
    again = (
        "--plan",
        str(out / "plan.json"),
        "-o",
        str(tmp_path / "again"),
        "--method",
        "magnitude",
    )
    assert told(capsys, "prune", str(model), *again)[0] == 0
    written = [(p / "onnx/model.onnx").read_bytes() for p in (out, tmp_path / "again")]
    assert written[0] == written[1]
    code, report = told(capsys, "bench", str(model), str(out), "--repeat", "2", "--length", "4")
    assert code == 0
    assert len(report["rows"]) == 2


def test_no_torch_is_needed(model: Path, data: Path, tmp_path: Path) -> None:
    """Nor transformers: both are hidden from the process."""
    script = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "sys.modules['safetensors'] = sys.modules['onnxscript'] = None\n"
        "from prunec.cli.app import main\n"
        f"sys.exit(main(['prune', {str(model)!r}, '-o', {str(tmp_path / 'out')!r},"
        f" '--target', 'params=60%', '--calibration', {str(data)!r}, '--verify']))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
