"""`memory=` and `flops=`, counted from the ONNX file that a run wrote and from nothing else.

The file is run with the inputs of every product exposed: how many multiply-adds it takes follows
from the shapes that ONNX Runtime saw.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import zoo
from onnx import numpy_helper

from prunec.cli import main

BATCH, LENGTH = 2, 24
WITHIN = 0.01

MODELS: dict[str, dict[str, Any]] = {
    "llama_tied": {"intermediate_size": 160},
    "gpt2": {},
    "bert": {"intermediate_size": 160},
    "vit": {},
    "resnet": {"embedding_size": 24, "hidden_sizes": [48, 40]},
}
CACHED = {
    "llama_tied": ((".k_proj.weight", 0, 1.0), (".v_proj.weight", 0, 1.0)),
    "gpt2": ((".c_attn.weight", 1, 2 / 3),),
}
"""Where keys and values come from in models that write: which part of which dimension."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model with random weights."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            zoo.build(name, **MODELS[name]).save_pretrained(root / name)
        return root / name

    return folder


def prune(model: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    printed, told = io.StringIO(), io.StringIO()
    arguments = ["prune", str(model), "-o", str(out), "--method", "magnitude", *options, "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(arguments)
    assert printed.getvalue(), told.getvalue()
    return code, json.loads(printed.getvalue())


def initializer_bytes(path: Path) -> int:
    """Of everything that the file stores."""
    return sum(numpy_helper.to_array(t).nbytes for t in onnx.load(path).graph.initializer)


def cache_bytes(path: Path, model: str) -> float:
    """Keys and values of all layers for the whole batch, in float32."""
    widths = [
        share * tensor.dims[dim]
        for tensor in onnx.load(path).graph.initializer
        for suffix, dim, share in CACHED.get(model, ())
        if tensor.name.endswith(suffix)
    ]
    assert bool(widths) == (model in CACHED)
    return 4 * BATCH * LENGTH * sum(widths)


def multiply_adds(path: Path) -> int:
    """Of all products and convolutions, from the shapes that a run sees."""
    model = onnx.load(path)
    nodes = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "Einsum")]
    assert all(n.op_type != "Einsum" for n in nodes), "not counted here"
    known = {o.name for o in model.graph.output}
    asked = dict.fromkeys(name for n in nodes for name in (n.input[0], n.output[0]))
    stored = {t.name: t.dims for t in model.graph.initializer}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in asked if name not in known | stored.keys()
    )
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
    names = [o.name for o in session.get_outputs()]
    found = session.run(names, {i.name: _filled(i) for i in session.get_inputs()})
    shapes = dict(zip(names, (f.shape for f in found), strict=True)) | stored
    return sum(_product(n, shapes) for n in nodes)


def _filled(given: Any) -> np.ndarray[Any, Any]:
    sizes = {"batch": BATCH}
    shape = [d if isinstance(d, int) else sizes.get(d, LENGTH) for d in given.shape]
    return np.ones(shape, np.float32 if "float" in given.type else np.int64)


def _product(node: Any, shapes: dict[str, Any]) -> int:
    """Entries of the result times what each of them sums over."""
    first, result = shapes[node.input[0]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return int(np.prod(result) * np.prod(shapes[node.input[1]][1:]))
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return int(np.prod(result) * first[-2 if turned else -1])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_flops_are_those_of_the_file(
    saved: Callable[[str], Path], tmp_path: Path, model: str, layout: str
) -> None:
    code, report = prune(
        saved(model), tmp_path / "out", "--target", "flops=70%", "--format", "onnx",
        "--batch", str(BATCH), "--length", str(LENGTH), "--layout", layout,
    )  # fmt: skip
    found = 2 * multiply_adds(tmp_path / "out" / "onnx" / "model.onnx")
    (target,) = report["targets"]
    assert code == 0
    assert found == target["left"]
    assert found / target["dense"] == pytest.approx(0.7, rel=WITHIN)


@pytest.mark.parametrize("model", MODELS)
def test_memory_is_that_of_the_file(
    saved: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    code, report = prune(
        saved(model), tmp_path / "out", "--target", "memory=80%", "--format", "onnx",
        "--batch", str(BATCH), "--length", str(LENGTH), "--layout", "per-layer",
    )  # fmt: skip
    (target,) = report["targets"]
    file = tmp_path / "out" / "onnx" / "model.onnx"
    cache = cache_bytes(file, model)
    assert code == 0
    assert cache == pytest.approx(report["pruned"]["kv_cache_bytes"])
    assert (initializer_bytes(file) + cache) / target["limit"] == pytest.approx(1, rel=WITHIN)


def test_targets_combine(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """The tighter one decides; both hold."""
    code, report = prune(
        saved("llama_tied"), tmp_path / "out", "--target", "params=90%", "--target", "flops=60%",
        "--target", "memory=1MB", "--format", "onnx", "--layout", "per-layer", "--dtype", "f16",
    )  # fmt: skip
    assert code == 0
    shares = {t["text"]: t["left"] / t["limit"] for t in report["targets"]}
    assert max(shares.values()) == pytest.approx(1, rel=WITHIN)
    assert all(share <= 1 for share in shares.values())


def test_a_target_that_no_width_meets(
    saved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", str(saved("llama_tied")), "-o", str(tmp_path / "out")]
    code = main([*arguments, "--target", "memory=10KB", "--method", "magnitude"])
    told = capsys.readouterr().err
    assert code == 3
    assert "P403" in told
    assert "bytes of memory remain" in told
    assert "ask for at least memory=" in told
    assert not (tmp_path / "out").exists()
