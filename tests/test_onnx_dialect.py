"""One law test for each rule of the onnx dialect: the groups found, and prune = mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_files import halved
from onnx_rule_cases import CASES, Case

from prunec.frontends.onnx import read_model
from prunec.ir.dialects.onnx import POINTWISE, RULES

TOLERANCE = 1e-5
"""Relative, float32: masked and sliced sums add the same terms in another order."""


KINDS = {"u8": np.int8, "i8": np.int8, "wz8": np.int8, "b8": np.uint8, "b32": np.int32}
"""Weights that are no floats."""

LIKE = {
    "onnx.ConvInteger": "Conv",
    "onnx.Upsample": "Resize",
    "onnx.RandomNormalLike": "random, and typed like Identity",
    "onnx.RandomUniformLike": "random, and typed like Identity",
    "onnx.Bernoulli": "random, and typed like Identity",
    "onnx.RandomNormal": "random, and typed like Range",
    "onnx.RandomUniform": "random, and typed like Range",
    "onnx.CumProd": "CumSum",
    "onnx.ReduceL1": "ReduceL2",
    "onnx.ReduceSumSquare": "ReduceL2",
    "onnx.ReduceMin": "ReduceMax",
    "onnx.ReduceProd": "ReduceMax",
    "onnx.ReduceLogSum": "ReduceMax",
    "onnx.ReduceLogSumExp": "ReduceMax",
    "onnx.ArgMin": "ArgMax",
    "onnx.GlobalLpPool": "GlobalAveragePool",
    "onnx.Size": "Shape",
    "com.microsoft.TransposeMatMul": "FusedMatMul, its newer name",
    "com.microsoft.DynamicQuantizeMatMul": "MatMulInteger",
    "com.microsoft.MatMulIntegerToFloat": "MatMulInteger",
    "com.microsoft.QLinearAdd": "Add",
    "com.microsoft.QLinearMul": "Mul",
    "com.microsoft.QLinearSigmoid": "Sigmoid",
    "com.microsoft.QLinearLeakyRelu": "LeakyRelu",
    "com.microsoft.QLinearGlobalAveragePool": "GlobalAveragePool",
}
"""Rules without a case of their own, and the operator that has one and shares the function."""


def model(case: Case) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    domains = f'"" : {case.opset}, "com.microsoft" : 1'
    head = f"<ir_version: 10, opset_import: [{domains}]>\ng ({case.inputs}) => (y)"
    body = case.body.replace("com.microsoft.", "microsoft_")
    made = onnx.parser.parse_model(f"{head} {{\n{body}\n}}")
    for node in made.graph.node:
        if node.op_type.startswith("microsoft_"):
            node.domain, node.op_type = "com.microsoft", node.op_type.removeprefix("microsoft_")
    for name, shape in case.weights.items():
        array = rng.uniform(0.2, 1.0, shape) * rng.choice([-1, 1], shape)
        if (name == "v" and len(shape) == 1) or name == "ws":  # a variance, a scale
            array = np.abs(array) / 20 if name == "ws" else np.abs(array)
        kind = KINDS.get(name, np.float32)
        array = (array * (1 if kind == np.float32 else 40)).astype(kind)
        if name == "wz8":
            array = np.zeros(shape, kind)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    rank = len(read_model(ir.from_proto(made)).graph.types["%y"].shape)
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None] * rank))
    return made


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / "model.onnx"
    onnx.save(model(case), path)
    pruned = halved(path, tmp_path / "small.onnx")
    found = tuple(sorted(g.size for g in pruned.coupling.groups))
    pins = [f"{p.size} {p.places[0]}: {p.reason}" for p in pruned.coupling.pinned]
    assert found == tuple(sorted(case.groups)), pins
    for batch in (2, 3):
        sizes = {"batch": batch, "time": 5 + batch}
        assert pruned.law(sizes) <= TOLERANCE


def test_every_rule_has_a_case() -> None:
    mentioned = " ".join(case.body for case in CASES.values())
    missing = {
        rule for rule in RULES if rule not in POINTWISE and rule.rsplit(".", 1)[1] not in mentioned
    }
    assert missing == LIKE.keys()
