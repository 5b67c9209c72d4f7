"""Contractions that sum in float64 give what float32 loses, and leave the rest as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_files import run

from prunec.backends.onnx_double import sum_in_double

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
