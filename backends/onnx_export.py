"""The way round: an operation that no rule writes goes through the exporter of torch, alone.

The operation becomes a module of its own, torch exports it, and its nodes are moved into the
graph. That takes a second or so an operation; exporting whole graphs that way took 80 seconds
where the rules take 0.2.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace

import onnx_ir as ir
import torch
from onnx_ir.passes.common import IdentityEliminationPass, InlinePass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunec.backends.onnx_build import Builder
from prunec.backends.torch_module import TORCH_DTYPES, to_fx
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Arg, Graph, Op, Ref, Value
from prunec.ir.sizes import dim_size

__all__ = ["write_with_torch"]


def write_with_torch(b: Builder, op: Op, opset: int) -> Sequence[ir.Value]:
    """Write `op` with torch's own exporter. Raises P221 with the exporter's message."""
    alone, operands = _alone(b.graph, op)
    try:
        model = _export(alone, opset)
    except Exception as error:  # the exporters raise many unrelated types
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise fail(
            "P221",
            f"ONNX has no form of {op.name}: {lines[0] if lines else repr(error)}",
            where=str(op.loc),
            snippet=op.name,
            help="leave onnx out of --format",
        ) from error
    return _moved(b, model, [b.values[name] for name in operands])


def _alone(graph: Graph, op: Op) -> tuple[Graph, list[str]]:
    """A graph of this operation and of the sizes it needs. Its other operands are the inputs,
    and are returned by name."""
    needed = [op]
    tensors: dict[str, None] = {}
    for at in needed:
        for name in at.operands:
            if graph.types[name].dtype == "index":
                needed.append(graph.ops[graph.producers[name]])
            else:
                tensors[name] = None
    position = {id(at): i for i, at in enumerate(graph.ops)}
    ops = sorted({id(at): at for at in needed}.values(), key=lambda at: position[id(at)])
    names = {name: f"%operand_{i}" for i, name in enumerate(tensors)}
    alone = Graph(
        name="operation",
        inputs=tuple(Value(names[name], graph.types[name]) for name in tensors),
        parameters={},
        ops=tuple(_renamed(at, names) for at in ops),
        outputs=tuple((f"result_{i}", name) for i, name in enumerate(op.results)),
        symbols=graph.symbols,
    )
    return alone, list(tensors)


def _renamed(op: Op, names: dict[str, str]) -> Op:
    def new(arg: Arg) -> Arg:
        if isinstance(arg, Ref):
            return Ref(names.get(arg.name, arg.name))
        return tuple(new(a) for a in arg) if isinstance(arg, tuple) else arg

    args = tuple(new(a) for a in op.args)
    return replace(op, args=args, kwargs=tuple((k, new(a)) for k, a in op.kwargs))


def _export(graph: Graph, opset: int) -> ir.Model:
    example = tuple(_example(graph, value) for value in graph.inputs)
    dynamic = tuple(
        {i: torch.export.Dim.AUTO for i, d in enumerate(v.type.shape) if isinstance(d, str)}
        for v in graph.inputs
    )
    with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        program = torch.export.export(to_fx(graph), example, dynamic_shapes=dynamic, strict=False)
        written = torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False, opset_version=opset
        )
    assert written is not None
    InlinePass()(written.model)
    fold_constants(written.model)
    IdentityEliminationPass()(written.model)
    RemoveUnusedNodesPass()(written.model)
    return written.model


def _example(graph: Graph, value: Value) -> torch.Tensor:
    shape = [dim_size(d, graph.symbols) for d in value.type.shape]
    return torch.ones(shape, dtype=TORCH_DTYPES[value.type.dtype])


def _moved(b: Builder, model: ir.Model, operands: list[ir.Value]) -> list[ir.Value]:
    """Move the nodes of the small model behind those of the builder."""
    graph = model.graph
    for theirs, ours in zip(graph.inputs, operands, strict=True):
        ir.convenience.replace_all_uses_with(theirs, ours, replace_graph_outputs=True)
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        ours = b.constant(value.const_value)
        ir.convenience.replace_all_uses_with(value, ours, replace_graph_outputs=True)
    results = list(graph.outputs)
    graph.outputs.clear()
    nodes = list(graph)
    graph.remove(nodes)
    for node in nodes:
        for value in node.outputs:  # sizes that only the data decide have the same names in each
            value.shape = None
        b.adopt(node)
    return results


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(silent), redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
