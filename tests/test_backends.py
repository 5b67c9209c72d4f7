"""Every backend computes what the model computes, at several batch sizes and lengths."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx as onnx_format
import onnxruntime
import pytest
import torch
import zoo
from torch import nn

from prunec.backends import onnx, torchscript
from prunec.backends.interpreter import execute
from prunec.backends.torch_module import to_fx
from prunec.frontends.torch import trace
from prunec.ir.diagnostics import PrunecError
from prunec.ir.text import parse, print_graph
from prunec.ir.verify import verify

SIZES = ((2, 6), (3, 9), (1, 1))


def many(found: object) -> list[torch.Tensor]:
    return list(found) if isinstance(found, tuple) else [found]  # type: ignore[list-item]


@pytest.fixture(scope="module", params=zoo.ZOO)
def name(request: pytest.FixtureRequest) -> str:
    """Each family in turn: all tests of one follow one another, so that it is traced once."""
    return str(request.param)


class TestModels:
    def test_traced_program_is_valid_and_dynamic(self, name: str) -> None:
        traced = zoo.model(name).traced
        assert traced.warnings == ()
        assert verify(traced.graph) == []
        assert parse(print_graph(traced.graph)) == traced.graph

    def test_module_computes_the_same_numbers(self, name: str) -> None:
        model = zoo.model(name)
        module = to_fx(model.traced.graph, model.weights)
        for batch, length in SIZES:
            inputs = zoo.inputs(name, batch=batch, length=length)
            for ours, theirs in zip(many(module(**inputs)), model.expected(inputs), strict=True):
                assert torch.equal(ours, theirs)

    def test_module_has_the_names_of_the_state_dict(self, name: str) -> None:
        model = zoo.model(name)
        module = to_fx(model.traced.graph, model.weights)
        ours, theirs = module.state_dict(), model.module.state_dict()
        assert set(theirs) <= set(ours)
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        assert len(list(module.parameters())) == len(list(model.module.parameters())), "ties"

    def test_torchscript(self, name: str, tmp_path: Path) -> None:
        model = zoo.model(name)
        torchscript.emit(model.traced.graph, model.weights, tmp_path / "model.pt")
        module = torch.jit.load(tmp_path / "model.pt")
        assert set(model.module.state_dict()) <= set(module.state_dict())
        for batch, length in (*SIZES, SIZES[1]):
            inputs = zoo.inputs(name, batch=batch, length=length)
            for ours, theirs in zip(many(module(**inputs)), model.expected(inputs), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_onnx(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("prunec.backends.onnx_export.write_with_torch", None)
        model = zoo.model(name)
        path = tmp_path / "model.onnx"
        onnx.emit(model.traced.graph, model.weights, path)
        session = onnxruntime.InferenceSession(path)
        names = [output for output, _ in model.traced.graph.outputs]
        assert [output.name for output in session.get_outputs()] == names
        for batch, length in SIZES:
            inputs = zoo.inputs(name, batch=batch, length=length)
            found = session.run(None, {key: value.numpy() for key, value in inputs.items()})
            for ours, theirs in zip(found, model.expected(inputs), strict=True):
                assert ours.shape == tuple(theirs.shape)
                # float32 in another order: 1e-6 was seen, the contract is 1e-4
                assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * theirs.abs().max().item()


class Rare(nn.Module):
    """An operation that no ONNX rule writes, of a computed size, between two that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x).transpose(1, 2)
        z = nn.functional.interpolate(y, scale_factor=2.0, mode="linear")
        return z.relu()


class TestOnnx:
    def emit_tied(self, path: Path) -> onnx_format.ModelProto:
        model = zoo.model("llama_tied")
        onnx.emit(model.traced.graph, model.weights, path)
        return onnx_format.load(path)

    def test_weights_keep_names_shapes_and_ties(self, tmp_path: Path) -> None:
        found = self.emit_tied(tmp_path / "model.onnx")
        shapes = {i.name: tuple(i.dims) for i in found.graph.initializer}
        module = zoo.model("llama_tied").module
        stored = {name: tuple(p.shape) for name, p in module.named_parameters()}
        assert {name: shapes.get(name) for name in stored} == stored
        assert "lm_head.weight" not in shapes, "one initializer for the tied embedding"
        rest = [i for i in found.graph.initializer if i.name not in stored]
        assert max(np.prod(i.dims) for i in rest) < 100, "no folded copies of weights"

    def test_inputs_and_sizes_are_readable(self, tmp_path: Path) -> None:
        found = self.emit_tied(tmp_path / "model.onnx")
        sizes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*found.graph.input, *found.graph.output)
        }
        assert sizes == {
            "input_ids": ["batch", "sequence"],
            "attention_mask": ["batch", "sequence"],
            "logits": ["batch", "sequence", 131],
        }
        assert any(n.name.startswith("model.layers.0.self_attn.q_proj/") for n in found.graph.node)

    def test_runtime_fuses_the_norms(self, tmp_path: Path) -> None:
        self.emit_tied(tmp_path / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
        kinds = [n.op_type for n in onnx_format.load(tmp_path / "optimized.onnx").graph.node]
        assert kinds.count("SimplifiedLayerNormalization") == 2 * 2 + 1

    def test_external_data_stands_beside_the_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx, "INLINE_LIMIT", 1000)
        (tmp_path / "made").mkdir()
        self.emit_tied(tmp_path / "made" / "model.onnx")
        (tmp_path / "made").rename(tmp_path / "moved")
        data = tmp_path / "moved" / "model.onnx.data"
        assert data.stat().st_size > 100_000
        assert (tmp_path / "moved" / "model.onnx").stat().st_size < 100_000
        session = onnxruntime.InferenceSession(tmp_path / "moved" / "model.onnx")
        assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]

    def test_operation_without_rule(self, tmp_path: Path) -> None:
        module, x = Rare().eval(), torch.randn(2, 3, 4)
        graph = trace(module, {"x": x}, dynamic={"x": {0: "batch"}}).graph
        onnx.emit(graph, module.state_dict(), tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        for given in (x, x[:1]):
            (found,) = session.run(None, {"x": given.numpy()})
            np.testing.assert_allclose(found, module(given).detach(), rtol=1e-5, atol=1e-6)

    def test_missing_weight(self, tmp_path: Path) -> None:
        model = zoo.model("llama_tied")
        weights = {k: v for k, v in model.weights.items() if k != "model.norm.weight"}
        with pytest.raises(PrunecError, match=r"P202.*model\.norm\.weight"):
            onnx.emit(model.traced.graph, weights, tmp_path / "model.onnx")


def test_torchscript_runs_without_this_project(tmp_path: Path) -> None:
    model = zoo.model("llama_tied")
    torchscript.emit(model.traced.graph, model.weights, tmp_path / "model.pt")
    inputs = zoo.inputs("llama_tied", batch=2, length=5)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = f"""
import json, sys, torch
module = torch.jit.load({str(tmp_path / "model.pt")!r})
found = module(**torch.load({str(tmp_path / "inputs.pt")!r}))
strange = [m for m in sys.modules if m.startswith(("prunec", "transformers"))]
print(json.dumps([found.shape, float(found.double().sum()), strange]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    shape, total, strange = json.loads(done.stdout)
    (expected,) = model.expected(inputs)
    assert strange == []
    assert shape == list(expected.shape)
    assert total == pytest.approx(float(expected.double().sum()), rel=1e-5)


class Drawing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(x.shape)


def test_what_is_drawn_at_random_is_the_same_each_time(tmp_path: Path) -> None:
    graph = trace(Drawing(), {"x": torch.zeros(2, 3)}).graph
    before = torch.random.get_rng_state()
    first, second = (
        found["output"] for found in execute(graph, {}, [{"x": torch.zeros(2, 3)}] * 2)
    )
    assert torch.equal(first, second)
    assert first.unique().numel() == 6
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(PrunecError, match=r"P221.*random numbers"):
        onnx.emit(graph, {}, tmp_path / "model.onnx")


class Parted(nn.Module):
    """A list of one part, and parts as long as the data say."""

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        (whole,) = x.chunk(1)
        first, rest = whole.split(sizes.tolist())
        return torch.cat((rest, first)).neg()


def test_lists_of_parts(tmp_path: Path) -> None:
    example = {"x": torch.randn(5, 2), "sizes": torch.tensor([2, 3])}
    graph = trace(Parted(), example).graph
    wanted = Parted()(**example)
    (found,) = execute(graph, {}, [example])
    assert torch.equal(found["output"], wanted)
    torchscript.emit(graph, {}, tmp_path / "model.pt")
    module = torch.jit.load(str(tmp_path / "model.pt"))  # type: ignore[no-untyped-call]
    assert torch.equal(module(*example.values()), wanted)


def test_unknown_operation_is_told() -> None:
    graph = parse(
        "graph main() {\n  input %x: f32[2]\n  %y = aten.nonesuch.default(%x) : f32[2]\n"
        "  output output = %y\n}\n"
    )
    with pytest.raises(PrunecError, match=r"P201.*aten\.nonesuch\.default"):
        to_fx(graph)
