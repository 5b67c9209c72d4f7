"""A model's nodes as one flat list: calls of local functions opened, everything under a name.

Bodies of `If`, `Loop` and `Scan` are left closed; the node that holds them reads what they capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from prunec.ir.diagnostics import fail

__all__ = ["Flat", "Step", "flatten"]

DEEPEST = 16
"""Functions that call functions: deeper than anybody nests them, and no endless recursion."""


LARGE = 64
"""Entries from which on floats in a body are taken for weights."""

FLOATS = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One node. `inputs` and `outputs` are names (empty: left out), `captured` those that its
    bodies read; `call` is the node of the main graph that it stands in, itself unless it lies in
    a function; `version` that of its operator set."""

    node: ir.Node
    call: ir.Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    attributes: Mapping[str, ir.Attr]
    version: int

    @property
    def domain(self) -> str:
        return "" if self.node.domain == "ai.onnx" else self.node.domain

    @property
    def kind(self) -> str:
        """`MatMul`, or `com.microsoft.Attention` where the domain is not that of ONNX."""
        return ".".join(filter(None, (self.domain, self.node.op_type)))

    @property
    def shared(self) -> bool:
        """Whether the node stands in a function, which others may call too."""
        return self.node is not self.call

    @property
    def closed(self) -> bool:
        """Whether it has bodies."""
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        return any(a.type in graphs for a in self.attributes.values())

    def proto(self) -> onnx.NodeProto:
        """The node with the names and attributes that it has here."""
        proto = onnx.NodeProto(op_type=self.node.op_type, domain=self.domain)
        proto.input.extend(self.inputs)
        proto.output.extend(self.outputs)
        for attribute in self.attributes.values():
            proto.attribute.append(ir.to_proto(attribute))
        return proto


@dataclass(frozen=True)
class Flat:
    """`inputs` are those that are no initializers, `stored` the tensors of initializers and
    `Constant` nodes by name, `declared` what the file says of a value's type."""

    model: ir.Model
    inputs: tuple[ir.Value, ...]
    steps: tuple[Step, ...]
    stored: Mapping[str, ir.TensorProtocol]
    declared: Mapping[str, ir.Value]


@dataclass
class _Scope:
    """Names of a graph's or function's values in the flat list."""

    names: dict[int, str] = field(default_factory=dict)
    prefix: str = ""

    def of(self, value: ir.Value | None) -> str:
        if value is None or not value.name:
            return ""
        return self.names.get(id(value), self.prefix + value.name)


def flatten(model: ir.Model) -> Flat:
    """Raises P242 for functions that call themselves."""
    graph = model.graph
    held = {v.name: v.const_value for v in graph.initializers.values() if v.const_value is not None}
    stored = {str(name): tensor for name, tensor in held.items()}
    declared = {str(v.name): v for v in graph.inputs}
    steps: list[Step] = []
    versions = {_domain(d): v for d, v in graph.opset_imports.items()}
    for node in graph:
        label = str(node.outputs[0].name) if node.outputs else ""
        stored |= {f"{label}/{name}": tensor for name, tensor in _inner(node).items()}
        for step in _opened(model, node, node, _Scope(), versions, {}, 0):
            constant = _constant(step)
            if constant is not None and not (step.shared and constant.size > 1):
                stored[step.outputs[0]] = constant
                continue
            steps.append(step)
        declared |= {str(v.name): v for v in node.outputs}
    inputs = tuple(v for v in graph.inputs if v.name not in stored)
    return Flat(model, inputs, tuple(steps), stored, declared)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _opened(
    model: ir.Model,
    node: ir.Node,
    call: ir.Node,
    scope: _Scope,
    versions: Mapping[str, int],
    given: Mapping[str, ir.Attr],
    depth: int,
) -> Iterator[Step]:
    inputs = tuple(map(scope.of, node.inputs))
    outputs = tuple(map(scope.of, node.outputs))
    attributes = dict(_attributes(node, given))
    function = model.functions.get((node.domain, node.op_type, node.overload))
    if function is None:
        captured = tuple(dict.fromkeys(scope.of(v) for v in _captured(node)))
        captured += tuple(f"{outputs[0]}/{name}" for name in _inner(node))
        version = versions.get(_domain(node.domain), 0)
        yield Step(node, call, inputs, outputs, captured, attributes, version)
        return
    if depth >= DEEPEST:
        raise fail(
            "P242", f"function {node.op_type} calls itself", where=node.name or "", help="export"
            " the model again",
        )  # fmt: skip
    for name, default in function.attributes.items():
        if default.value is not None:
            attributes.setdefault(name, default)
    inner = _Scope(prefix=f"{outputs[0]}/")
    padded = inputs + ("",) * (len(function.inputs) - len(inputs))
    inner.names |= {id(v): n for v, n in zip(function.inputs, padded, strict=False)}
    inner.names |= {id(v): n for v, n in zip(function.outputs, outputs, strict=False) if n}
    own = {_domain(d): v for d, v in function.opset_imports.items()}
    for part in function:
        yield from _opened(model, part, call, inner, own, attributes, depth + 1)


def _attributes(node: ir.Node, given: Mapping[str, ir.Attr]) -> Iterator[tuple[str, ir.Attr]]:
    """A node's attributes, those that refer to the function's own filled in."""
    for name, attribute in node.attributes.items():
        if not attribute.is_ref():
            yield name, attribute
        elif str(attribute.ref_attr_name) in given:
            found = given[str(attribute.ref_attr_name)]
            yield name, ir.Attr(name, found.type, found.value)


def _captured(node: ir.Node) -> list[ir.Value]:
    """Values that bodies of a node read from outside of it."""
    return [value for body in _bodies(node) for value in _free(body)]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def _inner(node: ir.Node) -> dict[str, ir.TensorProtocol]:
    """Weights that stand in the bodies of a node, by names of their own."""
    found: dict[str, ir.TensorProtocol] = {}
    for body in _bodies(node):
        held = [(str(v.name), v.const_value) for v in body.initializers.values()]
        for part in body:
            value = part.attributes.get("value") if part.op_type == "Constant" else None
            if value is not None and value.type == ir.AttributeType.TENSOR:
                held.append((str(part.outputs[0].name), value.as_tensor()))
            held += _inner(part).items()
        for name, tensor in held:
            if tensor is not None and tensor.size > LARGE and tensor.dtype in FLOATS:
                found[name if name not in found else f"{name}#{len(found)}"] = tensor
    return found


def _free(graph: ir.Graph) -> list[ir.Value]:
    own = {id(v) for v in (*graph.inputs, *graph.initializers.values())}
    own |= {id(v) for node in graph for v in node.outputs}
    used = [v for node in graph for v in (*node.inputs, *_captured(node)) if v is not None]
    return [v for v in (*used, *graph.outputs) if id(v) not in own]


def _constant(step: Step) -> ir.TensorProtocol | None:
    """The value of a `Constant` node of the main graph or a function; None for other nodes."""
    if step.kind != "Constant" or len(step.attributes) != 1:
        return None
    (attribute,) = step.attributes.values()
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int" | "value_ints":
            return ir.tensor(attribute.value, dtype=ir.DataType.INT64)
        case "value_float" | "value_floats":
            return ir.tensor(attribute.value, dtype=ir.DataType.FLOAT)
        case _:
            return None
