"""The reference for law 1 on ONNX Runtime: the dense model with removed indices zeroed.

Nothing is cut. Every value that carries a pruned axis is set to zero at the removed indices as
soon as it is made, and so are the parameters. Operations that take a statistic over a pruned axis
take it over the indices that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from prunec.backends.onnx_edit import Original
from prunec.backends.onnx_fused import put_together
from prunec.ir.axes import Selection, atoms, kept_positions, size
from prunec.ir.graph import Arg, Op, Ref, TensorType
from prunec.passes.coupling import Coupling
from prunec.passes.masks import removed, resized
from prunec.passes.profile import Weights
from prunec.passes.rewrite import Rewritten

__all__ = ["masked_model"]

Array = npt.NDArray[Any]


def masked_model(
    original: Original,
    coupling: Coupling,
    selections: Mapping[str, Selection],
    rewritten: Rewritten,
    weights: Weights,
    feeds: Mapping[str, Array],
) -> ir.Model:
    """A model that gives what the pruned one must give, for inputs of the sizes of `feeds`.

    `weights` are the dense ones, refitted where pruning refits.
    """
    graph = coupling.graph
    sizes = {
        dim: n
        for value in graph.inputs
        for dim, n in zip(value.type.shape, feeds[value.name[1:]].shape, strict=True)
        if isinstance(dim, str)
    }
    return _Masking(original, coupling, selections, rewritten, weights, sizes).run()


@dataclass
class _Masking:
    original: Original
    coupling: Coupling
    selections: Mapping[str, Selection]
    rewritten: Rewritten
    weights: Weights
    sizes: Mapping[str, int]
    count: int = 0

    def run(self) -> ir.Model:
        self.model = self.original.model.clone()
        self.graph = self.model.graph
        pairs = zip(self.original.model.graph, self.graph, strict=True)
        self.twins = {id(old): new for old, new in pairs}
        self.values = {str(v.name): v for v in self.graph.inputs}
        self.values |= {str(v.name): v for v in self.graph.initializers.values()}
        self.values |= {str(v.name): v for n in self.graph for v in n.outputs if v.name}
        self._parameters()
        for given in self.coupling.graph.inputs:
            self._mask(self._now(given.type), self.values[given.name[1:]])
        smaller = {op.result: op for op in self.rewritten.graph.ops}
        for op in self.coupling.graph.ops:
            node = self.original.nodes.get(op.result)
            if node is None:
                continue
            twin = self.twins[id(node)]
            axes = self.coupling.normed.get(op.result, ())
            made = list(twin.outputs)
            if any(a.name in self.selections for axis in axes for a in atoms(axis)):
                made = self._over_kept(op, smaller[op.result], twin)
            for type_, value in zip(op.types, made, strict=True):
                self._mask(self._now(type_), value)
        put_together(self.model)  # the kernels of the file that is written
        return self.model

    def _now(self, type_: TensorType) -> TensorType:
        return replace(type_, axes=tuple(resized(axis, self.sizes) for axis in type_.axes))

    def _parameters(self) -> None:
        """A tensor that several parameters share is masked for each reader by its values."""
        readers: dict[str, int] = {}
        for held in self.original.tensors.values():
            readers[held] = readers.get(held, 0) + 1
        for name, held in self.original.tensors.items():
            parameter = self.coupling.graph.parameters[name]
            gone = removed(parameter.type, self.selections)
            if gone is None or readers[held] > 1 or held not in self.values:
                continue
            if not _float(parameter.type):
                continue
            array = np.where(gone, 0, self.weights[name]).astype(self.weights[name].dtype)
            value = self.values[held]
            tensor = ir.Tensor(array, dtype=value.dtype, name=held)
            if value.producer() is None:
                value.const_value = tensor
            else:
                node = value.producer()
                assert node is not None
                node.attributes.clear()
                node.attributes["value"] = ir.Attr("value", ir.AttributeType.TENSOR, tensor)

    def _mask(self, type_: TensorType, value: ir.Value) -> None:
        gone = removed(type_, self.selections)
        if gone is None or not _float(type_):
            return
        keep = self._constant(~gone)
        zero = self._constant(np.zeros((), ir.DataType(value.dtype or 1).numpy()))
        made = self._node("Where", [keep, value, zero], value)
        value.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
        made.replace_input_with(1, value)
        node = value.producer()
        if node is None:
            self.graph.insert_before(self.graph[0], made)
        else:
            node.append(made)

    def _over_kept(self, op: Op, smaller: Op, node: ir.Node) -> list[ir.Value]:
        """Run on the indices that stay, and put the result back to where they were."""
        types = self.coupling.graph.types
        for i, (arg, new) in enumerate(zip(op.args, smaller.args, strict=True)):
            if isinstance(arg, Ref):
                value = node.inputs[i]
                for dim, keep in self._kept(types[arg.name]):
                    value = self._gathered(value, dim, keep, before=node)
                node.replace_input_with(i, value)
            elif arg != new:
                node.replace_input_with(i, self._constant(_literal(new, node.inputs[i])))
        old = dict(op.kwargs)
        for name, value_ in smaller.kwargs:
            if old[name] != value_:
                node.attributes[name] = ir.AttrInt64(name, value_)  # type: ignore[arg-type]
        made = []
        for type_, value in zip(op.types, list(node.outputs), strict=True):
            last = value
            for dim, keep in self._kept(type_):
                places = np.zeros(size(self._now(type_).axes[dim]), int)
                places[keep] = np.arange(len(keep))
                last = self._put_back(value, last, dim, places)
            made.append(last)
        return made

    def _kept(self, type_: TensorType) -> list[tuple[int, Array]]:
        now = self._now(type_)
        return [
            (dim, kept_positions(axis, self.selections))
            for dim, axis in enumerate(now.axes)
            if any(a.name in self.selections for a in atoms(axis))
        ]

    def _gathered(self, value: ir.Value | None, dim: int, keep: Array, before: ir.Node) -> ir.Value:
        made = self._node("Gather", [value, self._constant(keep.astype(np.int64))], value, dim)
        before.prepend(made)
        return made.outputs[0]

    def _put_back(self, own: ir.Value, last: ir.Value, dim: int, places: Array) -> ir.Value:
        """Removed indices hold any of the others, until they are masked."""
        node = last.producer()
        assert node is not None
        made = self._node("Gather", [last, self._constant(places.astype(np.int64))], own, dim)
        last.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
        made.replace_input_with(0, last)
        node.append(made)
        return made.outputs[0]

    def _node(
        self,
        kind: str,
        inputs: list[ir.Value | None],
        like: ir.Value | None,
        dim: int | None = None,
    ) -> ir.Node:
        self.count += 1
        out = ir.Value(name=f"prunec.mask.{self.count}", type=like.type if like else None)
        attributes = [] if dim is None else [ir.AttrInt64("axis", dim)]
        return ir.Node("", kind, inputs, attributes, outputs=[out])

    def _constant(self, array: Array) -> ir.Value:
        self.count += 1
        name = f"prunec.mask.{self.count}"
        tensor = ir.tensor(array, name=name)
        shape = ir.Shape(array.shape)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor
        )
        self.graph.register_initializer(value)
        return value


def _float(type_: TensorType) -> bool:
    """Integers are not masked: 0 stands for another number where they are quantised."""
    return "f" in type_.dtype


def _literal(value: Arg, like: ir.Value | None) -> Array:
    dtype = like.dtype if like is not None and like.dtype is not None else ir.DataType.INT64
    return np.asarray(value, dtype.numpy())
