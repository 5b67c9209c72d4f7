"""Every rule of the ONNX backend writes what torch computes: one law test a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_cases import CASES, Case
from torch import Tensor, nn

from prunec.backends import onnx, onnx_export
from prunec.backends.onnx_build import Builder
from prunec.frontends.torch import Traced, trace
from prunec.ir.diagnostics import PrunecError
from prunec.ir.sizes import dim_size

SIZES = (2, 3)


class Function(nn.Module):
    """A case as a module with as many inputs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(
        self,
        a: Tensor,
        b: Tensor | None = None,
        c: Tensor | None = None,
        d: Tensor | None = None,
        e: Tensor | None = None,
    ) -> Any:
        given = [x for x in (a, b, c, d, e) if x is not None]
        return self.case.function(*given)


def traced(case: Case) -> Traced:
    inputs = dict(zip("abcde", case.inputs, strict=False))
    dynamic = {
        name: {d: "n" for d in case.dynamic if x.shape[d] == SIZES[0]}
        for name, x in inputs.items()
        if x.ndim
    }
    return trace(Function(case), inputs, dynamic=dynamic)


def resized(case: Case, size: int) -> list[Tensor]:
    """The inputs with dynamic dimensions of another size."""
    found = []
    for x in case.inputs:
        grows = case.dynamic and x.ndim and x.shape[0] == SIZES[0]
        found.append(torch.cat([x, x])[:size] if grows else x)
    return found


def flat(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in flat(value)]


def test_every_rule_has_a_case() -> None:
    assert sorted(set(onnx.RULES) - set(CASES)) == []


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "write_with_torch", None)  # the rule has to do it
    case = CASES[name]
    found = traced(case)
    assert name in {op.name for op in found.graph.ops}
    onnx.emit(found.graph, found.constants, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in SIZES:
        inputs = resized(case, size)
        feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
        expected = flat(case.function(*inputs))
        for ours, theirs in zip(session.run(None, feeds), expected, strict=True):
            assert ours.shape == tuple(theirs.shape)
            # float32 sums in another order
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


class Turned(nn.Module):
    def forward(self, x: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
        return turned(x, angle, scale)


def turned(x: Tensor, angle: Tensor, scale: Tensor) -> Tensor:
    """Pairs turned and stretched, as rotary embeddings do it."""
    turn = torch.polar(torch.ones_like(angle), angle).unsqueeze(0)
    pairs = torch.view_as_complex(x.reshape(x.shape[0], 3, 2, 2))
    return torch.view_as_real(pairs * turn * scale).flatten(-2)


def test_complex_numbers_are_written_as_pairs(tmp_path: Path) -> None:
    shapes = {"x": (2, 3, 4), "angle": (3, 2), "scale": (3, 1)}
    found = trace(Turned(), {k: torch.zeros(v) for k, v in shapes.items()}, dynamic={"x": {0: "n"}})
    assert set(onnx.COMPLEX) <= {op.name for op in found.graph.ops}
    onnx.emit(found.graph, found.constants, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = [torch.randn(shape) for shape in ((5, 3, 4), (3, 2), (3, 1))]
    (y,) = session.run(None, {k: v.numpy() for k, v in zip(shapes, given, strict=True)})
    np.testing.assert_allclose(y, turned(*given).numpy(), atol=1e-6)


def test_what_else_is_done_with_complex_numbers_is_refused(tmp_path: Path) -> None:
    class Fourier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).real

    found = trace(Fourier(), {"x": torch.zeros(2, 4)})
    with pytest.raises(PrunecError, match=r"P221.*of complex numbers"):
        onnx.emit(found.graph, found.constants, tmp_path / "model.onnx")


def test_a_view_by_strides_is_refused(tmp_path: Path) -> None:
    """ONNX has no strides, and what lies where is not known here."""

    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mT.as_strided((2, 2), (3, 2)) + 1

    found = trace(Strided(), {"x": torch.zeros(3, 4)})
    with pytest.raises(PrunecError, match=r"P221.*a view by strides"):
        onnx.emit(found.graph, found.constants, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "size",
    [
        "n*2 - 1",
        "(n + 3)//4 + n % 2",
        "(4 + (-1)*(n % 4)) % 4",
        "(-n)//3",
        "Max(n, 4) - Min(n, 2, 9)",
        "n**2",
    ],
)
def test_a_size_that_no_operation_computes(size: str) -> None:
    """The runtime and `dim_size` come to the same, and a size is computed once."""
    graph = traced(Case(torch.neg, (torch.zeros(2, 3),))).graph
    b = Builder(graph)
    (x,) = graph.inputs
    rows = ir.Value(name="a", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 3]))
    b.values[x.name] = rows
    found = b.size(size)
    assert b.size(size) is found
    program = ir.Graph(
        [rows],
        [found],
        nodes=b.nodes,
        initializers=list(b.constants.values()),
        opset_imports={"": onnx.OPSET},
    )
    found.type = ir.TensorType(ir.DataType.INT64)
    model = ir.to_proto(ir.Model(program, ir_version=onnx.IR_VERSION))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for n in range(1, 9):
        (computed,) = session.run(None, {"a": np.zeros((n, 3), np.float32)})
        assert computed.tolist() == [dim_size(size, {"n": n})]
