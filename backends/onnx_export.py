"""The way round: ONNX through the exporter of torch, for graphs with rarer operations."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunec.backends.onnx_weights import stored
from prunec.backends.torch_module import TORCH_DTYPES, to_fx
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph, Value

__all__ = ["export"]

# Constants up to this many bytes are folded; weights never are.
SMALL = 4096


def export(graph: Graph, weights: Mapping[str, Any], opset: int) -> ir.Model:
    """Export the graph as a torch module. Raises P221 with the exporter's own message."""
    from prunec.backends.tensors import as_tensor

    tensors = {
        p.name: t
        if isinstance(t := _given(p.name, p.aliases, weights), torch.Tensor)
        else as_tensor(t)
        for p in graph.parameters.values()
    }
    module = to_fx(graph, tensors)
    example = tuple(_example(graph, value) for value in graph.inputs)
    dynamic = tuple(
        {i: torch.export.Dim.AUTO for i, d in enumerate(v.type.shape) if isinstance(d, str)}
        for v in graph.inputs
    )
    try:
        with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            program = torch.export.export(module, example, dynamic_shapes=dynamic, strict=False)
            written = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=[value.name[1:] for value in graph.inputs],
                output_names=[name for name, _ in graph.outputs],
            )
    except Exception as error:  # the exporters raise many unrelated types
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise fail(
            "P221",
            f"torch cannot export {graph.name} to ONNX: {lines[0] if lines else error!r}",
            where=graph.name,
            help="leave onnx out of --format",
        ) from error
    assert written is not None
    model = written.model
    _tidy(model)
    _rename_sizes(graph, model)
    _own_weights(graph, weights, model)
    return model


def _given(name: str, aliases: tuple[str, ...], weights: Mapping[str, Any]) -> Any:
    found = next((n for n in (name, *aliases) if n in weights), None)
    if found is None:
        raise fail("P202", f"no value is given for {name}", where=name)
    return weights[found]


def _example(graph: Graph, value: Value) -> torch.Tensor:
    shape = [graph.symbols[d] if isinstance(d, str) else d for d in value.type.shape]
    return torch.ones(shape, dtype=TORCH_DTYPES[value.type.dtype])


def _tidy(model: ir.Model) -> None:
    """Fold what is small and drop what does nothing; leave the weights as they are."""
    fold_constants(model, input_size_limit=SMALL, output_size_limit=SMALL)
    IdentityEliminationPass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)


def _rename_sizes(graph: Graph, model: ir.Model) -> None:
    """Our names for the exporter's symbols, at the inputs and wherever they are used."""
    names = {}
    for value, written in zip(graph.inputs, model.graph.inputs, strict=True):
        for ours, theirs in zip(value.type.shape, written.shape or (), strict=True):
            if isinstance(ours, str) and isinstance(theirs, ir.SymbolicDim):
                names[theirs.value] = ours
    for node in model.graph:
        for value in node.outputs:
            _rename(value, names)
    for value in (*model.graph.inputs, *model.graph.outputs):
        _rename(value, names)


def _rename(value: ir.Value, names: Mapping[str | None, str]) -> None:
    if value.shape is None:
        return
    value.shape = ir.Shape(
        [names.get(d.value, d.value) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
    )


def _own_weights(graph: Graph, weights: Mapping[str, Any], model: ir.Model) -> None:
    """Canonical names instead of tied ones, and values that are read when they are written."""
    for parameter in graph.parameters.values():
        for name in (parameter.name, *parameter.aliases):
            value = model.graph.initializers.pop(name, None)
            if value is None:
                continue
            value.const_value = stored(parameter, weights).const_value
            value.name = parameter.name
            model.graph.initializers[parameter.name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
