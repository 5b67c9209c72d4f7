"""Write a graph as ONNX: dynamic sizes with names, weights under their own names.

Operations are written by the rules of `onnx_pointwise`, `onnx_shape`, `onnx_reduce` and
`onnx_nn`, straight from the IR; the weights are read one at a time while the file is written. An
operation that no rule writes goes through the exporter of torch instead (`onnx_export`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from prunec.backends.interpreter import draws
from prunec.backends.onnx_build import ONNX_DTYPES, Builder, Rules, Unsupported
from prunec.backends.onnx_complex import COMPLEX, as_pairs, is_complex
from prunec.backends.onnx_nn import NN
from prunec.backends.onnx_pointwise import POINTWISE
from prunec.backends.onnx_reduce import REDUCE
from prunec.backends.onnx_scatter import SCATTER
from prunec.backends.onnx_shape import SHAPE
from prunec.backends.onnx_weights import stored
from prunec.ir.diagnostics import PrunecError, fail
from prunec.ir.graph import Dim, Graph, Op, TensorType

__all__ = ["COMPLEX", "OPSET", "RULES", "emit", "to_onnx"]

OPSET = 20
"""The oldest version with all that the rules use (Gelu); nothing newer runs faster."""

IR_VERSION = 10

# Protobuf cannot hold more than 2 GiB; the graph itself takes its share.
INLINE_LIMIT = 2_000_000_000

RULES: Rules = {**POINTWISE, **SHAPE, **REDUCE, **SCATTER, **NN}


def emit(graph: Graph, weights: Mapping[str, Any], path: Path) -> None:
    """Write `graph` to `path`, with `path`.data beside it when the weights exceed 2 GB.

    `weights` holds arrays or tensors by name, buffers and constants included. Inputs and outputs
    have the graph's names. The file is checked by onnx and opened with ONNX Runtime; PrunecError
    P220 says what failed.
    """
    model = to_onnx(graph, weights)
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    beside = f"{path.name}.data" if size > INLINE_LIMIT else None
    try:
        onnx.checker.check_model(_without_weights(model, graph), full_check=True)
        ir.save(model, path, external_data=beside)
        _open(path)
    except PrunecError:
        raise
    except Exception as error:  # onnx and ONNX Runtime raise types of their own
        raise _invalid(path, error) from error


def to_onnx(graph: Graph, weights: Mapping[str, Any]) -> ir.Model:
    """The model in memory; its initializers read `weights` when they are written."""
    try:
        return _written(graph, weights)
    except Unsupported as error:  # the way round does not help: ONNX has no such thing
        raise fail(
            "P221",
            f"ONNX cannot hold {graph.name}: {error}",
            where=graph.name,
            help="leave onnx out of --format",
        ) from error


def _written(graph: Graph, weights: Mapping[str, Any]) -> ir.Model:
    if drawn := [op for op in graph.ops if draws(op)]:
        raise Unsupported(f"random numbers of a known seed (`{drawn[0].name}` at {drawn[0].loc})")
    b = Builder(graph)
    inputs = []
    for value in graph.inputs:
        b.values[value.name] = _value(value.name[1:], value.type)
        inputs.append(b.values[value.name])
    used = {ref for op in graph.ops for ref in op.operands} | {v for _, v in graph.outputs}
    initializers = []
    for parameter in graph.parameters.values():
        if parameter.ref in used:
            b.values[parameter.ref] = stored(parameter, weights)
            initializers.append(b.values[parameter.ref])
    for op in graph.ops:
        _write(b, op)
    outputs = [_output(b, name, ref) for name, ref in graph.outputs]
    found = ir.Graph(
        inputs,
        outputs,
        nodes=b.nodes,
        initializers=[*initializers, *b.constants.values()],
        opset_imports={"": OPSET},
        name=graph.name,
    )
    model = ir.Model(found, ir_version=IR_VERSION, producer_name="prunec")
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    for written, (name, ref) in zip(model.graph.outputs, graph.outputs, strict=True):
        _describe(written, name, _public(graph.types[ref]))  # that pass may put a bare copy there
    return model


def _write(b: Builder, op: Op) -> None:
    b.current = op
    results = _results(b, op)
    for name, type_, value in zip(op.results, op.types, results, strict=True):
        b.values[name] = value
        if value.producer() is not None and type_.dtype != "index":
            _describe(value, name[1:], type_)


def _results(b: Builder, op: Op) -> Sequence[ir.Value]:
    if is_complex(b, op):
        if op.name not in COMPLEX:
            raise Unsupported(f"{op.name} of complex numbers")
        written = COMPLEX[op.name](b, op)
        return [written] if isinstance(written, ir.Value) else written
    if op.name == "aten.as_strided.default":  # alone it would be exported as if it lay in order
        raise Unsupported(f"a view by strides (at {op.loc})")
    rule = RULES.get(op.name)
    try:
        if rule is None:
            raise Unsupported(op.name)
        found = rule(b, op)
    except Unsupported:
        from prunec.backends.onnx_export import write_with_torch

        return write_with_torch(b, op, OPSET)
    return [found] if isinstance(found, ir.Value) else found


def _describe(value: ir.Value, name: str, type_: TensorType) -> None:
    value.name = name
    type_ = as_pairs(type_)
    value.type = ir.TensorType(_dtype(type_.dtype))
    value.shape = _shape(type_.shape)


def _value(name: str, type_: TensorType) -> ir.Value:
    shape, type_of = _shape(type_.shape), ir.TensorType(_dtype(type_.dtype))
    return ir.Value(name=name, type=type_of, shape=shape)


def _dtype(name: str) -> ir.DataType:
    if name not in ONNX_DTYPES:
        raise Unsupported(f"dtype {name}")
    return ONNX_DTYPES[name]


def _shape(shape: tuple[Dim, ...]) -> ir.Shape:
    return ir.Shape(shape)


def _output(b: Builder, name: str, ref: str) -> ir.Value:
    """The value under its public name: renamed, or copied where it has a name to keep."""
    value, type_ = b.values[ref], b.graph.types[ref]
    taken = sum(found == ref for _, found in b.graph.outputs) > 1
    if taken or value.producer() is None or type_.dtype == "index":
        value = b.op("Identity", value)
    _describe(value, name, _public(type_))
    return value


def _public(type_: TensorType) -> TensorType:
    return TensorType("i64", (1,)) if type_.dtype == "index" else type_


def _without_weights(model: ir.Model, graph: Graph) -> onnx.ModelProto:
    """The model with its weights as inputs: all that the checker reads, in no memory."""
    initializers = model.graph.initializers
    weights = [initializers.pop(name) for name in graph.parameters if name in initializers]
    model.graph.inputs.extend(weights)
    proto = ir.to_proto(model)
    del model.graph.inputs[len(graph.inputs) :]
    for value in weights:
        model.graph.register_initializer(value)
    return proto


def _open(path: Path) -> None:
    """Let ONNX Runtime read the file, as written: what it makes faster it does for the user."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _invalid(path: Path, error: Exception) -> PrunecError:
    said = " ".join(str(error).split())[:500]
    return fail(
        "P220",
        f"the ONNX file that was written is not valid: {said}",
        where=str(path),
        help="leave onnx out of --format, and report the model",
    )
