"""Norms fused with the addition before them: layers behind them are found, and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import difference, run

from prunec.backends.onnx_edit import Original, edit, save
from prunec.frontends.onnx import OnnxProgram, read_onnx
from prunec.ir.dialects.onnx import ONNX
from prunec.passes.couple import couple
from prunec.passes.regions import Region, find_regions
from prunec.passes.remove import remove
from prunec.passes.rewrite import Rewritten

WIDTH, HEADS, WORDS = 16, 2, 31
MS = "com.microsoft"


class Parts:
    """Nodes and weights of a network, seeded by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int) -> str:
        rng = np.random.default_rng(sum(map(ord, name)))
        array = rng.standard_normal(shape).astype(np.float32) * 0.3
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        domain = None if op in ("MatMul", "Relu", "SimplifiedLayerNormalization") else MS
        made = helper.make_node(op, inputs, outputs, f"n_{outputs[0]}", domain=domain, **attributes)
        self.nodes.append(made)
        return outputs[0]

    def model(self, out: str, *inputs: onnx.ValueInfoProto) -> onnx.ModelProto:
        result = helper.make_tensor_value_info(out, TensorProto.FLOAT, ["batch", "length", WIDTH])
        graph = helper.make_graph(self.nodes, "main", inputs, [result], self.stored)
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=versions, ir_version=9)


def norm(parts: Parts, name: str) -> list[str]:
    return [parts.weight(f"{name}.weight", WIDTH), parts.weight(f"{name}.bias", WIDTH)]


def bert(layers: Sequence[int]) -> onnx.ModelProto:
    """Post-norm, as the fusions for BERT leave it: embeddings, attention, norms with their bias."""
    parts = Parts()
    tables = [parts.weight(name, size, WIDTH) for name, size in (("words", WORDS), ("places", 32))]
    first = ["ids", "", *tables, "", *norm(parts, "embeddings"), "mask"]
    x = parts.node("EmbedLayerNormalization", first, "e", "seen", epsilon=1e-5)
    for i in layers:
        at = f"layer.{i}"
        packed = [parts.weight(f"{at}.qkv.weight", WIDTH, 3 * WIDTH)]
        packed.append(parts.weight(f"{at}.qkv.bias", 3 * WIDTH))
        a = parts.node("Attention", [x, *packed, "seen"], f"a{i}", num_heads=HEADS)
        a = parts.node("MatMul", [a, parts.weight(f"{at}.out.weight", WIDTH, WIDTH)], f"p{i}")
        bias = parts.weight(f"{at}.out.bias", WIDTH)
        x = parts.node(
            "SkipLayerNormalization", [a, x, *norm(parts, f"{at}.n"), bias], f"x{i}", epsilon=1e-5
        )
        h = parts.node("MatMul", [x, parts.weight(f"{at}.up.weight", WIDTH, 24)], f"u{i}")
        h = parts.node("BiasGelu", [h, parts.weight(f"{at}.up.bias", 24)], f"g{i}")
        h = parts.node("MatMul", [h, parts.weight(f"{at}.down.weight", 24, WIDTH)], f"d{i}")
        bias = parts.weight(f"{at}.down.bias", WIDTH)
        x = parts.node(
            "SkipLayerNormalization", [h, x, *norm(parts, f"{at}.m"), bias], f"y{i}", epsilon=1e-5
        )
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"])
        for name in ("ids", "mask")
    ]
    return parts.model(x, *inputs)


def prenorm(layers: Sequence[int]) -> onnx.ModelProto:
    """The sum goes on as the stream, its norm into the next branch."""
    parts = Parts()
    stream = parts.node("MatMul", ["x", parts.weight("first", WIDTH, WIDTH)], "s")
    scale = parts.weight("norms.0", WIDTH)
    n = parts.node("SimplifiedLayerNormalization", [stream, scale], "n", epsilon=1e-5)
    for i in layers:
        h = parts.node("MatMul", [n, parts.weight(f"layer.{i}.up", WIDTH, 24)], f"u{i}")
        h = parts.node("Relu", [h], f"r{i}")
        h = parts.node("MatMul", [h, parts.weight(f"layer.{i}.down", 24, WIDTH)], f"d{i}")
        operands = [stream, h, parts.weight(f"norms.{i + 1}", WIDTH)]
        outputs = (f"n{i}", "", "", f"s{i}")
        n = parts.node("SkipSimplifiedLayerNormalization", operands, *outputs, epsilon=1e-5)
        stream = f"s{i}"
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", WIDTH])
    return parts.model(n, given)


def opened(model: onnx.ModelProto, path: Path) -> tuple[OnnxProgram, dict[str, Region]]:
    onnx.save(model, path)
    program = read_onnx(path)
    return program, {r.name: r for r in find_regions(couple(program.graph, ONNX))}


def without(program: OnnxProgram, regions: Sequence[Region], path: Path) -> onnx.ModelProto:
    graph = remove(couple(program.graph, ONNX), regions).graph
    original = Original(program.model, program.graph, program.nodes, program.tensors)
    save(edit(original, Rewritten(graph, {}), program.weights, set()), program.model, path)
    return onnx.load(path)


def given(model: onnx.ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)
    known = {
        "ids": rng.integers(0, WORDS, (2, 7)).astype(np.int32),
        "mask": mask,
        "x": rng.standard_normal((2, 7, WIDTH)).astype(np.float32),
    }
    return {value.name: known[value.name] for value in model.graph.input}


def test_layers_of_a_fused_encoder_go(tmp_path: Path) -> None:
    program, regions = opened(bert([0, 1]), tmp_path / "model.onnx")
    assert Counter(r.role for r in regions.values()) == {"sublayer": 4, "layer": 2}
    small = without(program, [regions["layer.0/layer"]], tmp_path / "small.onnx")
    wanted = bert([1])
    feeds = given(wanted)
    found = run(small.SerializeToString(), feeds), run(wanted.SerializeToString(), feeds)
    assert difference(*found) <= 1e-6
    assert Counter(n.op_type for n in small.graph.node) == Counter(
        n.op_type for n in wanted.graph.node
    ) + Counter({"Identity": any(n.op_type == "Identity" for n in small.graph.node)})


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_norm_stays_when_its_branch_goes(gone: int, tmp_path: Path) -> None:
    """The norm behind it is fused with the addition before it, where there is one."""
    program, regions = opened(prenorm([0, 1, 2]), tmp_path / "model.onnx")
    assert len(regions) == 3
    small = without(program, [list(regions.values())[gone]], tmp_path / "small.onnx")
    feeds = given(small)
    masked = onnx.load(tmp_path / "model.onnx")
    for tensor in masked.graph.initializer:
        if tensor.name == f"layer.{gone}.down":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((24, WIDTH), np.float32), tensor.name))
    found = run(small.SerializeToString(), feeds), run(masked.SerializeToString(), feeds)
    assert difference(*found) <= 1e-6
    kinds = Counter(n.op_type for n in small.graph.node)
    assert kinds["SkipSimplifiedLayerNormalization"] == 2
    assert kinds["SimplifiedLayerNormalization"] == 1
    assert not kinds["Add"]


@pytest.mark.parametrize("network", [bert, prenorm])
def test_what_stays_is_fused_as_it_was(
    network: Callable[[Sequence[int]], onnx.ModelProto], tmp_path: Path
) -> None:
    program, _ = opened(network([0, 1]), tmp_path / "model.onnx")
    assert not any("Skip" in op.name for op in program.graph.ops)
    whole = without(program, [], tmp_path / "whole.onnx")
    assert list(whole.graph.node) == list(network([0, 1]).graph.node)


def test_statistics_that_are_read_leave_the_norm_whole(tmp_path: Path) -> None:
    model = prenorm([0])
    model.graph.node[-1].output[2] = "deviation"
    model.graph.output.append(helper.make_tensor_value_info("deviation", TensorProto.FLOAT, None))
    program, regions = opened(model, tmp_path / "model.onnx")
    assert not regions
    assert any("Skip" in op.name for op in program.graph.ops)


def test_a_name_that_the_file_has_is_not_taken_again(tmp_path: Path) -> None:
    model = bert([0])
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["x0/sum" if name == "u0" else name for name in names]
    program, regions = opened(model, tmp_path / "model.onnx")
    assert len(regions) == 3
    names = [name for op in program.graph.ops for name in op.results]
    assert len(names) == len(set(names))
    whole = without(program, [], tmp_path / "whole.onnx")
    assert list(whole.graph.node) == list(model.graph.node)
