"""Turn a graph back into a torch module whose state dict has the names of the original."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from prunec.backends.torch_ops import (
    DENSE,
    compile_op,
    literal,
    resolve,
    returns_many,
    to_torch_arg,
)
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Arg, Attr, Dim, Graph, Op, Parameter, Ref

__all__ = ["TORCH_DTYPES", "compile_op", "resolve", "to_fx", "to_torch_arg"]

TORCH_DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
    "c64": torch.complex64,
    "c128": torch.complex128,
}


def to_fx(graph: Graph, weights: Mapping[str, torch.Tensor] | None = None) -> fx.GraphModule:
    """A module that computes `graph`; a single output is a tensor, several are a tuple.

    Parameters and buffers stand under their own dotted names, tied names hold the same object.
    Values come from `weights`, by name; without it everything is on the meta device. Raises
    PrunecError when a value is missing or has another shape than the graph says.
    """
    root = nn.Module()
    for parameter in graph.parameters.values():
        _register(root, parameter, _stored(parameter, weights))
    body = _Body(graph)
    module = fx.GraphModule(root, body.build(), class_name=_identifier(graph.name))
    # GraphModule copies what its nodes use; the rest belongs to the state dict as well.
    for parameter in graph.parameters.values():
        _register(module, parameter, _lookup(root, parameter.name))
    return module.eval()


class _Body:
    """The fx graph of an IR graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fx = fx.Graph()
        self.env: dict[str, fx.Node] = {}

    def build(self) -> fx.Graph:
        for value in self.graph.inputs:
            self.env[value.name] = self.fx.placeholder(value.name[1:])
        for op in self.graph.ops:
            self._op(op)
        outputs = [self._node(name) for _, name in self.graph.outputs]
        self.fx.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self.fx.lint()
        return self.fx

    def _op(self, op: Op) -> None:
        kwargs = {k: self._arg(a) for k, a in op.kwargs}
        args = tuple(self._arg(a) for a in op.args)
        if op.name in DENSE:
            args = (self.fx.call_function(resolve("aten.contiguous.default"), args),)
        function = resolve(op.name)
        if not returns_many(op):
            node = self.fx.create_node("call_function", function, args, kwargs, op.result[1:])
            node.meta["read"] = [self.graph.types[name].dtype for name in op.operands]
            self.env[op.result] = node
            return
        stem = op.result[1:].split("__")[0]
        node = self.fx.create_node("call_function", function, args, kwargs, stem)
        for i, name in enumerate(op.results):
            item = self.fx.create_node("call_function", operator.getitem, (node, i), {}, name[1:])
            self.env[name] = item

    def _node(self, ref: str) -> fx.Node:
        if ref not in self.env:
            assert ref.startswith("@"), f"{ref} is used before it is computed"
            self.env[ref] = self.fx.get_attr(ref[1:])
        return self.env[ref]

    def _arg(self, arg: Arg) -> Any:
        match arg:
            case Ref():
                return self._node(arg.name)
            case Attr():
                return literal(arg)
            case tuple():
                return [self._arg(a) for a in arg]
        return arg


def _stored(parameter: Parameter, weights: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    dtype = TORCH_DTYPES[parameter.type.dtype]
    shape = parameter.type.shape
    if weights is None:
        return _as_kind(parameter, torch.empty(_static(shape), dtype=dtype, device="meta"))
    names = (parameter.name, *parameter.aliases)
    tensor = next((weights[n] for n in names if n in weights), None)
    if tensor is None:
        raise fail("P202", f"no value is given for {parameter.name}", where=parameter.name)
    if tuple(tensor.shape) != shape:
        raise fail(
            "P202",
            f"{parameter.name} has shape {list(tensor.shape)}, but the graph says {list(shape)}",
            where=parameter.name,
        )
    return _as_kind(parameter, tensor.to(dtype))


def _static(shape: tuple[Dim, ...]) -> list[int]:
    return [int(dim) for dim in shape]


def _as_kind(parameter: Parameter, tensor: torch.Tensor) -> torch.Tensor:
    if parameter.kind != "parameter":
        return tensor.detach()
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _register(root: nn.Module, parameter: Parameter, tensor: torch.Tensor) -> None:
    for name in (parameter.name, *parameter.aliases):
        path, _, leaf = name.rpartition(".")
        owner = _submodule(root, path)
        if isinstance(tensor, nn.Parameter):
            owner._buffers.pop(leaf, None)
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor)


def _submodule(root: nn.Module, path: str) -> nn.Module:
    owner = root
    for part in path.split(".") if path else ():
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        found = owner._modules[part]
        assert found is not None
        owner = found
    return owner


def _lookup(root: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    owner = _submodule(root, path)
    found = {**owner._parameters, **owner._buffers}[leaf]
    assert found is not None
    return found


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "GraphModule"
