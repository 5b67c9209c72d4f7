"""ONNX files for tests: exported, pruned, compared with the masked dense model on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from prunec.backends.onnx_edit import Original, edit, save
from prunec.backends.onnx_masked import masked_model
from prunec.frontends.onnx import OnnxProgram, read_onnx
from prunec.ir.axes import Selection
from prunec.ir.dialects.onnx import ONNX
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.rewrite import Rewritten, rewrite

__all__ = ["Halved", "difference", "feeds_of", "halved", "run", "session"]

Array = np.ndarray[Any, Any]
INSIDE = ("neuron", "channel", "query_head", "kv_head", "head_dim", "expert", "feature", "hidden")


def session(model: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: Path | bytes, feeds: Mapping[str, Array]) -> list[Array]:
    return session(model).run(None, dict(feeds))


def feeds_of(graph: Any, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Seeded inputs: floats, ones for masks, token ids below 64."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in graph.inputs:
        name = value.name[1:]
        shape = [d if isinstance(d, int) else sizes[d] for d in value.type.shape]
        if value.type.dtype.startswith("i"):
            kind = np.int64 if value.type.dtype == "i64" else np.int32
            ids = rng.integers(0, 64, shape)
            found[name] = (np.ones(shape) if "mask" in name else ids).astype(kind)
        elif value.type.dtype == "bool":
            found[name] = np.ones(shape, bool)
        elif value.type.dtype in ("u8", "i8"):
            found[name] = rng.integers(0, 100, shape).astype(np.uint8)
        else:
            found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def difference(found: list[Array], wanted: list[Array]) -> float:
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        a, b = one.astype(np.float64), other.astype(np.float64)
        scale = float(np.abs(b).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / scale)
    return worst


@dataclass(frozen=True)
class Halved:
    """A file pruned to about half of every group with one of some roles."""

    path: Path
    program: OnnxProgram
    coupling: Coupling
    selections: Mapping[str, Selection]
    rewritten: Rewritten
    out: Path

    def original(self) -> Original:
        p = self.program
        return Original(p.model, self.coupling.graph, p.nodes, p.tensors)

    def law(self, sizes: Mapping[str, int]) -> float:
        """How far the pruned file is from the masked dense one."""
        feeds = feeds_of(self.program.graph, sizes)
        model = masked_model(
            self.original(), self.coupling, self.selections, self.rewritten,
            self.program.weights, feeds,
        )  # fmt: skip
        masked = self.out.with_name("masked.onnx")
        ir.save(model, masked, external_data="masked.onnx.data")
        return difference(run(self.out, feeds), run(masked, feeds))


def halved(path: Path, out: Path, roles: Collection[str] = INSIDE, seed: int = 0) -> Halved:
    program = read_onnx(path)
    coupling = couple(program.graph, ONNX)
    rng = np.random.default_rng(seed)
    selections = {
        g.name: Selection(np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]))
        for g in coupling.groups
        if g.size > 1 and g.role in roles
    }
    rewritten = rewrite(coupling, selections)
    original = Original(program.model, coupling.graph, program.nodes, program.tensors)
    model = edit(original, rewritten, program.weights, set())
    save(model, program.model, out)  # with the checker, where it knows the operators
    return Halved(path, program, coupling, selections, rewritten, out)
