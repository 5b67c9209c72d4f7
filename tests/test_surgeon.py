"""onnx-graphsurgeon's graphs: one in, a smaller one out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_files import run
from test_onnx_cli import BLOCKS, HIDDEN, WIDTH, residual_mlp

gs = pytest.importorskip("onnx_graphsurgeon")


def test_a_graph_in_and_a_smaller_one_out(tmp_path: Path) -> None:
    from prunec.surgeon import prune_graph

    path = residual_mlp(tmp_path / "model.onnx")
    graph = gs.import_onnx(onnx.load(path))
    small = prune_graph(graph, "params=60%", method="magnitude")
    shapes = {name: t.values.shape for name, t in small.tensors().items() if hasattr(t, "values")}
    kept = [shapes[f"b{i}.up"][1] for i in range(BLOCKS)]
    assert all(k < HIDDEN for k in kept)
    assert [shapes[f"b{i}.down"][0] for i in range(BLOCKS)] == kept
    feeds = {"x": np.zeros((2, WIDTH), np.float32)}
    assert run(gs.export_onnx(small).SerializeToString(), feeds)[0].shape == (2, 7)
    assert gs.export_onnx(graph).graph.initializer[0].dims == [WIDTH, HIDDEN]
