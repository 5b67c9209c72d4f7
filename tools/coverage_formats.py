"""Whether the formats that a smaller program is written in compute what the executor computes.

ONNX is run by ONNX Runtime, TorchScript by torch.jit, each read back from its file. Weights and
sums are float32 everywhere, so that what is compared is rounding in another order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from prunec.backends import onnx, torchscript
from prunec.backends.interpreter import SEED, execute
from prunec.backends.tensors import as_tensor
from prunec.ir.graph import Graph
from prunec.output.checking import relative_difference

__all__ = ["FORMATS", "formats_of"]

Row = dict[str, Any]
Feeds = Mapping[str, Any]
Run = Callable[[Feeds], dict[str, Any]]


def formats_of(graph: Graph, weights: Mapping[str, Any], feeds: Sequence[Feeds]) -> Row:
    """For each format the largest difference from the executor over all feeds, relative to the
    largest value of an output; or why there is none."""
    names = {value.name[1:] for value in graph.inputs}
    given = [{k: v for k, v in feed.items() if k in names} for feed in feeds]
    wanted = list(execute(graph, weights, given))
    found: Row = {}
    for name, opened in FORMATS.items():
        with tempfile.TemporaryDirectory(prefix="prunec-zoo-") as folder:
            try:
                run = opened(graph, weights, Path(folder))
                pairs = zip(map(run, given), wanted, strict=True)
                found[name] = {"difference": max(relative_difference(a, b) for a, b in pairs)}
            except Exception as error:  # writers and runtimes raise types of their own
                found[name] = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return found


def _onnx(graph: Graph, weights: Mapping[str, Any], folder: Path) -> Run:
    path = folder / "model.onnx"
    onnx.emit(graph, weights, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feeds) -> dict[str, Any]:
        arrays = {name: value.numpy() for name, value in feed.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))

    return run


def _torchscript(graph: Graph, weights: Mapping[str, Any], folder: Path) -> Run:
    path = folder / "model.pt"
    stored = {name: as_tensor(weights[name]) for name in graph.parameters}
    torchscript.emit(graph, stored, path)
    module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    inputs = [value.name[1:] for value in graph.inputs]
    names = [name for name, _ in graph.outputs]

    def run(feed: Feeds) -> dict[str, Any]:
        with torch.inference_mode(), torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            outputs = module(*(feed[name] for name in inputs))
        return dict(zip(names, outputs if len(names) > 1 else [outputs], strict=True))

    return run


FORMATS: Mapping[str, Callable[[Graph, Mapping[str, Any], Path], Run]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
}
