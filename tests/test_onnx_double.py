"""Contractions that sum in float64 give what float32 loses, and leave the rest as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_files import run

from prunec.backends.onnx_double import sum_in_double
from prunec.cli.app import main

CANCELS = np.array([[1e8, 1.0, -1e8, 0.5]], np.float32)
"""In float32 the first sum swallows what the whole comes to, in whatever order it is taken."""


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("y = MatMul(x, w)", 1.5),
        ("t = Transpose <perm=[1, 0]> (w)\n y = Gemm <transB=1> (x, t)", 1.5),
        ("n = Neg(w)\n h = MatMul(x, n)\n y = Neg(h)", 1.5),
    ],
)
def test_sums_are_exact_and_outputs_stay_float32(body: str, wanted: float) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[a,4] x) => (float[a,1] y) <float[4,1] w = {1,1,1,1}> { " + body + " }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    sum_in_double(model, {"h", "y"})
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (found,) = run(ir.to_proto(model).SerializeToString(), {"x": CANCELS})
    assert found.dtype == np.float32
    assert found.tolist() == [[wanted]]


def test_a_value_read_twice_is_widened_once() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[4,4] x) => (float[4,4] y) { h = MatMul(x, x)\n y = MatMul(h, x) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    sum_in_double(model, {"h", "y"})
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Cast", "MatMul", "Cast", "Cast", "MatMul", "Cast"]


def test_whole_numbers_are_left_alone() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (int32[4,4] x) => (int32[4,4] y) { y = MatMul(x, x) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    sum_in_double(model, set())
    assert [node.op_type for node in model.graph] == ["MatMul"]


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_law_judged_in_float64_still_sees_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    spoiled: bool,
) -> None:  # fmt: skip
    """Where float32 is over the bound; one entry of one weight, off by a thousandth, is enough."""
    from test_onnx_cache import decoder

    from prunec.output import onnx_file

    save = onnx_file.save

    def spoil(model: ir.Model, original: ir.Model, path: Path) -> None:
        save(model, original, path)
        if spoiled:
            written = onnx.load(path)
            held = next(t for t in written.graph.initializer if t.name == "head")
            array = onnx.numpy_helper.to_array(held).copy()
            array[0, 0] += 1e-3
            held.CopyFrom(onnx.numpy_helper.from_array(array, "head"))
            onnx.save(written, path)

    monkeypatch.setattr(onnx_file, "save", spoil)
    monkeypatch.setattr(onnx_file, "LAW_1", -1.0)  # float32 is always over it
    command = ["prune", str(decoder(tmp_path / "model.onnx")), "-o", str(tmp_path / "out")]
    options = ["--target", "params=90%", "--method", "magnitude", "--verify", "--json"]
    assert main([*command, *options]) == 3
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert (check["difference"] > 1e-5) == spoiled
