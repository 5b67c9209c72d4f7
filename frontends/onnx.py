"""Read an ONNX file as a typed program, its weights memory-mapped or left where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from prunec.frontends.onnx_flat import flatten
from prunec.frontends.onnx_fused import take_apart
from prunec.frontends.onnx_import import Imported, import_graph
from prunec.frontends.onnx_read import open_model
from prunec.ir.diagnostics import PrunecError, fail
from prunec.ir.graph import Graph

__all__ = ["OnnxProgram", "OnnxWeights", "read_model", "read_onnx"]

Array = npt.NDArray[Any]


class OnnxWeights(Mapping[str, Array]):
    """Parameters by name, read-only; opening one maps its bytes of the file."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol], graph: Graph) -> None:
        self._tensors = tensors
        self._names = graph.parameters

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        try:
            return np.asarray(tensor.numpy())
        except Exception as error:  # of onnx-ir and numpy, for data that are no such array
            said = " ".join(str(error).split())[:200]
            raise fail("P241", f"{name} cannot be read: {said}", where=name) from error

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class OnnxProgram:
    """`model` is the file as onnx-ir holds it, `graph` the program that the passes see; `nodes`
    leads from an operation's first result to its node, `tensors` from a parameter to the name of
    the value that holds it."""

    model: ir.Model
    graph: Graph
    weights: OnnxWeights
    nodes: Mapping[str, ir.Node]
    tensors: Mapping[str, str]


def read_onnx(path: Path) -> OnnxProgram:
    """Raises PrunecError for anything wrong with the file (see `onnx_read`, `onnx_import`)."""
    try:
        return read_model(open_model(path))
    except PrunecError:
        raise
    except Exception as error:  # bytes can be wrong in more ways than are checked one by one
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise fail(
            "P240",
            f"the file makes no sense as an ONNX model: {said}",
            where=str(path),
            help="export the model again, or fetch the file again",
        ) from error


def read_model(model: ir.Model) -> OnnxProgram:
    """A model that is open already; its fused norms are taken apart."""
    take_apart(model)
    flat = flatten(model)
    found: Imported = import_graph(flat)
    held = {name: flat.stored[source] for name, source in found.tensors.items()}
    nodes = {result: step.call for result, step in found.nodes.items() if not step.shared}
    return OnnxProgram(model, found.graph, OnnxWeights(held, found.graph), nodes, found.tensors)
