"""A part of an ONNX file as a file of its own: a run of its nodes, from given values to others."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.convenience import extract

from prunec.backends.onnx_build import ONNX_DTYPES
from prunec.frontends.onnx import OnnxProgram
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph, TensorType

__all__ = ["part_of"]


def part_of(file: OnnxProgram, graph: Graph) -> OnnxProgram:
    """The nodes of `graph`, which is cut out of the file's program. Weights are shared.

    Raises PrunecError (P313) when an end of it stands in a function of the model.
    """
    inputs = [value.name[1:] for value in graph.inputs]
    outputs = [value[1:] for _, value in graph.outputs]
    model = file.model
    try:
        found = extract(model.graph, inputs, outputs)
    except ValueError as error:
        raise fail(
            "P313",
            f"the time of {outputs[0]} cannot be taken on its own: {error}",
            where=outputs[0],
            help="inline the functions of the model before (onnx.inliner)",
        ) from error
    for held, value in zip(found.inputs, graph.inputs, strict=True):
        _declare(held, value.type)
    for held, (_, name) in zip(found.outputs, graph.outputs, strict=True):
        _declare(held, graph.types[name])
    own = {id(node) for op in graph.ops if (node := file.nodes.get(op.result)) is not None}
    cut = {str(v.name) for node in model.graph if id(node) in own for v in node.outputs if v.name}
    made = (node for node in found if node.op_type != "Constant")
    assert all(str(v.name) in cut for n in made for v in n.outputs if v.name), "it has these ends"
    small = ir.Model(found, ir_version=model.ir_version, functions=list(model.functions.values()))
    makers = {str(v.name): node for node in found for v in node.outputs if v.name}
    named = {
        op.result: next(str(v.name) for v in node.outputs if v.name)
        for op in graph.ops
        if (node := file.nodes.get(op.result)) is not None
    }
    nodes = {result: makers[name] for result, name in named.items() if name in makers}
    tensors = {name: held for name, held in file.tensors.items() if name in graph.parameters}
    return OnnxProgram(small, graph, file.weights, nodes, tensors)


def _declare(held: ir.Value, type_: TensorType) -> None:
    """What the file may not say of a value within it."""
    if held.type is None:
        held.type = ir.TensorType(ONNX_DTYPES[type_.dtype])
    if held.shape is None:
        held.shape = ir.Shape([d if isinstance(d, int) else None for d in type_.shape])
