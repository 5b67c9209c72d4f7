"""Write a pruned program by editing the ONNX model that it was read from.

Only what pruning changes is touched: initializers are cut, literals that follow from sizes get
their new values, shapes that the file declares follow. Names, operator sets, metadata, functions
and operators of any domain stay. What several nodes share is split where they now need different
values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from prunec.backends.onnx_check import check_written
from prunec.backends.onnx_fused import put_together
from prunec.backends.onnx_sliced import CutTensor
from prunec.ir.axes import Indices
from prunec.ir.graph import Arg, Graph, Op, Ref
from prunec.passes.profile import Weights
from prunec.passes.rewrite import Rewritten

__all__ = ["Original", "edit", "save"]

INLINE_LIMIT = 2_000_000_000
"""Protobuf cannot hold more than 2 GiB; the graph itself takes its share."""

Kept = Mapping[int, Indices]


@dataclass(frozen=True)
class Original:
    """A model with the program that was read from it: `nodes` leads from an operation's first
    result to its node, `tensors` from a parameter to the name of the value that holds it."""

    model: ir.Model
    graph: Graph
    nodes: Mapping[str, ir.Node]
    tensors: Mapping[str, str]


def edit(original: Original, rewritten: Rewritten, weights: Weights, changed: set[str]) -> ir.Model:
    """The smaller model; the original stays as it is.

    `weights` are those of the dense program, refitted where `changed` names them; they are cut
    when the model is written.
    """
    return _Edit(original, rewritten, weights, changed).run()


def save(model: ir.Model, original: ir.Model, path: Path) -> None:
    """Write to `path`, weights to `path`.data beside it when the original keeps them outside or
    they exceed 2 GB. Raises P220 when the result is not valid."""
    held = [v.const_value for g in model.graphs() for v in g.initializers.values()]
    tensors = [tensor for tensor in held if tensor is not None]
    outside = any(isinstance(t, ir.ExternalTensor) for t in _tensors(original))
    inline = sum(t.nbytes for t in tensors) <= INLINE_LIMIT and not outside
    check_written(path, original, lambda: _saved(model, path, inline))


def _saved(model: ir.Model, path: Path, inline: bool) -> None:
    if inline:
        ir.save(model, path)
        return
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    held = [v.const_value for g in model.graphs() for v in g.initializers.values()]
    return [tensor for tensor in held if tensor is not None]


@dataclass
class _Edit:
    original: Original
    rewritten: Rewritten
    weights: Weights
    changed: set[str]
    values: dict[str, ir.Value] = field(default_factory=dict)
    firsts: dict[int, tuple[Op, list[object]]] = field(default_factory=dict)
    literals: dict[tuple[str, Arg], ir.Value] = field(default_factory=dict)
    orphans: list[ir.Value] = field(default_factory=list)

    def run(self) -> ir.Model:
        self.model = self.original.model.clone()
        self.graph = self.model.graph
        pairs = zip(self.original.model.graph, self.graph, strict=True)
        self.twins = {id(old): new for old, new in pairs}
        self.named = {str(v.name): v for v in self.graph.inputs}
        self.named |= {str(v.name): v for v in self.graph.initializers.values()}
        self.named |= {str(v.name): v for node in self.graph for v in node.outputs if v.name}
        inputs = self.original.graph.inputs
        self.values |= {value.name: self.named[value.name[1:]] for value in inputs}
        self._parameters()
        before = {op.result: op for op in self.original.graph.ops}
        for op in self.rewritten.graph.ops:
            node = self.original.nodes.get(op.result)
            if node is None:
                assert _same(before[op.result], op), f"{op.result} is shared and cannot change"
                continue
            self._operation(before[op.result], op, self.twins[id(node)])
        self._shapes()
        self._clean()
        if self.original.nodes.keys() - {op.result for op in self.rewritten.graph.ops}:
            self._shorten()
        put_together(self.model)
        return self.model

    # -- parameters ---------------------------------------------------------------------

    def _parameters(self) -> None:
        """Those held by one tensor stay one where they are cut alike."""
        by_tensor: dict[str, list[str]] = defaultdict(list)
        for name, held in self.original.tensors.items():
            by_tensor[held].append(name)
        for held, names in by_tensor.items():
            if held not in self.named:  # within a body, where all is pinned
                continue
            kinds: dict[object, ir.Value] = {}
            for name in names:
                kind = self._kind(name)
                if kind not in kinds:
                    first = not kinds
                    kinds[kind] = self._stored(held, name) if first else self._copied(held, name)
                self.values["@" + name] = kinds[kind]

    def _kind(self, name: str) -> object:
        kept = self.rewritten.kept.get(name, {})
        cut = tuple((d, k.tobytes()) for d, k in sorted(kept.items()))
        return cut, self.weights[name].tobytes() if name in self.changed else b""

    def _touched(self, name: str) -> bool:
        return name in self.changed or bool(self.rewritten.kept.get(name))

    def _stored(self, held: str, name: str) -> ir.Value:
        value = self.named[held]
        if not self._touched(name):
            return value
        tensor = self._cut(held, name)
        if value.producer() is None:
            value.const_value = cast(ir.TensorProtocol, tensor)
        else:
            node = value.producer()
            assert node is not None
            node.attributes.clear()
            node.attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, tensor)
        if value.type is not None:
            value.shape = ir.Shape(tensor.shape)
        return value

    def _copied(self, held: str, name: str) -> ir.Value:
        """A tensor of its own for readers that need another part."""
        tensor = self._cut(held, name)
        return self._initializer(self._unused(held), tensor)

    def _cut(self, held: str, name: str) -> CutTensor:
        parameter = self.original.graph.parameters[name]
        shape = tuple(int(n) for n in parameter.type.shape)
        dtype = self.named[held].dtype or _dtype_of(self.weights[name])

        def read() -> npt.NDArray[Any]:
            return self.weights[name]

        return CutTensor(held, dtype, shape, read, self.rewritten.kept.get(name, {}))

    def _initializer(self, name: str, tensor: Any) -> ir.Value:
        tensor.name = name
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.graph.register_initializer(value)
        self.named[name] = value
        return value

    def _unused(self, name: str) -> str:
        for i in range(2, len(self.named) + 3):
            if f"{name}_{i}" not in self.named:
                return f"{name}_{i}"
        raise AssertionError("as many names as values cannot all be taken")

    # -- operations ---------------------------------------------------------------------

    def _operation(self, before: Op, op: Op, node: ir.Node) -> None:
        """The first operation of a node changes it; copies that differ get nodes of their own."""
        inputs = [self._input(a, b, node, i) for i, (a, b) in enumerate(_operands(before, op))]
        inputs = inputs[: len(node.inputs)]
        alike = [id(value) for value in inputs]
        if id(node) not in self.firsts:
            self.firsts[id(node)] = op, cast(list[object], alike)
            self._attributes(before, op, node)
            for i, value in enumerate(inputs):
                if value is not node.inputs[i]:
                    self.orphans += [v for v in (node.inputs[i],) if v is not None]
                    node.replace_input_with(i, value)
            outputs: Sequence[ir.Value] = node.outputs
        else:
            first, known = self.firsts[id(node)]
            same = known == alike and first.kwargs == op.kwargs
            outputs = node.outputs if same else self._another(before, op, node, inputs)
        self.values |= dict(zip(op.results, outputs, strict=True))

    def _another(
        self, before: Op, op: Op, node: ir.Node, inputs: Sequence[ir.Value | None]
    ) -> Sequence[ir.Value]:
        outputs = [
            ir.Value(name=self._unused(str(v.name)), type=v.type, shape=None) for v in node.outputs
        ]
        self.named |= {str(v.name): v for v in outputs}
        attributes = list(self.original.nodes[op.result].attributes.values())
        other = ir.Node(
            node.domain, node.op_type, inputs, attributes, outputs=outputs, version=node.version,
            name=f"{node.name}_{outputs[0].name}" if node.name else None,
        )  # fmt: skip
        self._attributes(before, op, other)
        node.append(other)
        return outputs

    def _input(self, before: Arg, after: Arg, node: ir.Node, i: int) -> ir.Value | None:
        own = node.inputs[i] if i < len(node.inputs) else None
        if isinstance(after, Ref):
            return self.values.get(after.name, own)
        if before == after or own is None:
            return own
        key = str(own.name), after
        if key not in self.literals:
            dtype = own.dtype or ir.DataType.INT64
            array = np.asarray(after, dtype=dtype.numpy())
            tensor = ir.Tensor(array, dtype=dtype)
            self.literals[key] = self._initializer(self._unused(str(own.name)), tensor)
        return self.literals[key]

    def _attributes(self, before: Op, op: Op, node: ir.Node) -> None:
        old = dict(before.kwargs)
        for name, value in op.kwargs:
            if old[name] == value:
                continue
            if isinstance(value, tuple):
                node.attributes[name] = ir.AttrInt64s(name, cast(tuple[int, ...], value))
            else:
                node.attributes[name] = ir.AttrInt64(name, cast(int, value))

    # -- the rest -----------------------------------------------------------------------

    def _shapes(self) -> None:
        """What the file declares of values whose sizes have changed."""
        old, new = self.original.graph.types, self.rewritten.graph.types
        for name, value in self.values.items():
            if (
                value.shape is None
                or value.type is None
                or name not in new
                or old[name].shape == new[name].shape
            ):
                continue
            if len(value.shape) != len(new[name].shape):
                continue
            pairs = zip(value.shape, old[name].shape, new[name].shape, strict=True)
            value.shape = ir.Shape(
                [own if a == b else b if isinstance(b, int) else None for own, a, b in pairs]
            )

    def _shorten(self) -> None:
        """Leave out what became of regions that are gone: nodes and weights that nothing needs,
        inputs and outputs that the smaller program lacks. Outputs keep their names."""
        graph = self.rewritten.graph
        outputs = [self._output(name, self.values[value]) for name, value in graph.outputs]
        self.graph.outputs.clear()
        self.graph.outputs.extend(outputs)
        RemoveUnusedNodesPass()(self.model)
        left = {value.name[1:] for value in graph.inputs}
        for value in [v for v in self.graph.inputs if v.name not in left]:
            self.graph.inputs.remove(value)

    def _output(self, name: str, value: ir.Value) -> ir.Value:
        """What stands in the place of an output goes on under its name."""
        own = self.named[name]
        if own is value:
            return own
        own.name = self._unused(name)
        out = ir.Value(name=name, type=own.type, shape=own.shape)
        self.graph.append(ir.Node("", "Identity", [value], outputs=[out]))
        return out

    def _clean(self) -> None:
        """Constants that nothing reads any more because their readers got others."""
        for value in {id(v): v for v in self.orphans}.values():
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            node = value.producer()
            if node is not None and node.op_type == "Constant":
                self.graph.remove(node, safe=True)
            elif node is None and value.name in self.graph.initializers:
                del self.graph.initializers[str(value.name)]


def _operands(before: Op, after: Op) -> list[tuple[Arg, Arg]]:
    return list(zip(before.args, after.args, strict=True))


def _same(before: Op, after: Op) -> bool:
    return before.args == after.args and before.kwargs == after.kwargs


def _dtype_of(array: npt.NDArray[Any]) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)
