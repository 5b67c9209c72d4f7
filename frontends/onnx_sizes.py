"""Shapes of all values of an ONNX model, and small values, at example sizes of its inputs.

Every node is asked for the shapes of its results with the concrete shapes (and, where they are
small and known, the values) of its inputs: so a shape that the graph computes at run time is known
like any other. Done at two sets of sizes it tells what is static.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from prunec.frontends.onnx_contrib import CONTRIB, STANDARD
from prunec.frontends.onnx_flat import Flat, Step
from prunec.ir.sizes import dim_size

__all__ = ["SMALL", "Known", "Unfit", "evaluate", "symbol"]

SMALL = 1024
"""Entries of values that are followed; shapes, scales and positions have less."""

RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial "
    "Dropout".split()
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Known:
    """What is known of a value: `shape` is None when not even its rank is, `value` where it is
    small and follows from sizes and constants."""

    dtype: ir.DataType
    shape: tuple[int, ...] | None
    value: Array | None = None


class Unfit(Exception):
    """A node cannot take inputs of these sizes."""

    def __init__(self, step: Step, said: str) -> None:
        self.step, self.said = step, said
        super().__init__(said)


@dataclass
class _Evaluation:
    flat: Flat
    sizes: dict[str, int]
    fresh: Iterator[int]
    known: dict[str, Known] = field(default_factory=dict)

    def run(self) -> dict[str, Known]:
        for name, tensor in self.flat.stored.items():
            self.known[name] = _stored(tensor)
        for value in self.flat.inputs:
            self.known[str(value.name)] = self.declared(value)
        for step in self.flat.steps:
            self._step(step)
        return self.known

    # -- one node -----------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        shapes = self._shapes(step)
        found = [
            self._completed(name, type_) for name, type_ in zip(step.outputs, shapes, strict=True)
        ]
        values = self._values(step, found)
        for name, known, value in zip(step.outputs, found, values, strict=True):
            if name:
                self.known[name] = Known(known.dtype, known.shape, value)

    def _shapes(self, step: Step) -> list[Known | None]:
        """By the operator's own shape inference, or by our table for those of ONNX Runtime."""
        nothing: list[Known | None] = [None] * len(step.outputs)
        inputs = [self.known.get(name) for name in step.inputs]
        if step.closed or any(k is not None and k.shape is None for k in inputs):
            return nothing
        if step.kind in CONTRIB:
            found = CONTRIB[step.kind](inputs, step.attributes)
            return [
                Known(dtype, shape) if shape is not None else None
                for dtype, shape in _padded(found, len(step.outputs))
            ]
        schema = _schema(step)
        return nothing if schema is None else self._inferred(step, schema)

    def _inferred(self, step: Step, schema: onnx.defs.OpSchema) -> list[Known | None]:
        types, data = {}, {}
        for name in filter(None, step.inputs):
            known = self.known[name]
            assert known.shape is not None
            types[name] = helper.make_tensor_type_proto(int(known.dtype), known.shape)
            if known.value is not None:
                data[name] = _proto(known.value, known.dtype, name)
        proto = step.proto()
        proto.op_type, proto.domain = schema.name, schema.domain
        if step.domain:  # what a fusion adds to the operator that it is one of
            known_attributes = [a for a in proto.attribute if a.name in schema.attributes]
            del proto.attribute[:]
            proto.attribute.extend(known_attributes)
            del proto.input[schema.max_input :]
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, {}, [helper.make_opsetid("", step.version)], 10
            )
        except Exception as error:  # of the compiled library
            raise Unfit(step, " ".join(str(error).split())[:200]) from error
        return [_of_type(found.get(name), self) for name in step.outputs]

    def _completed(self, name: str, found: Known | None) -> Known:
        """What inference leaves open is taken from what the file declares."""
        value = self.flat.declared.get(name)
        if found is None:
            return self.declared(value) if value is not None else Known(ir.DataType.FLOAT, None)
        if found.shape is None or all(size >= 0 for size in found.shape):
            return found
        told = self.declared(value).shape if value is not None else None
        if told is None or len(told) != len(found.shape):
            told = tuple(next(self.fresh) if size < 0 else size for size in found.shape)
        pairs = zip(found.shape, told, strict=True)
        return Known(found.dtype, tuple(b if a < 0 else a for a, b in pairs))

    def declared(self, value: ir.Value) -> Known:
        """What the file says of a value, its symbols at their sizes."""
        dtype = value.dtype or ir.DataType.FLOAT
        if value.shape is None or not isinstance(value.type, ir.TensorType):
            return Known(dtype, None)
        return Known(dtype, tuple(self._size(value, i) for i in range(len(value.shape))))

    def _size(self, value: ir.Value, dim: int) -> int:
        assert value.shape is not None
        size = value.shape[dim]
        if isinstance(size, int) and size >= 0:
            return size
        name = symbol(value, dim)
        if name not in self.sizes:
            self.sizes[name] = _expression(name, self.sizes) or next(self.fresh)
        return self.sizes[name]

    # -- small values -------------------------------------------------------------------

    def _values(self, step: Step, found: Sequence[Known]) -> list[Array | None]:
        nothing: list[Array | None] = [None] * len(step.outputs)
        if not self._foreseeable(step, found):
            return nothing
        if step.kind in ("Shape", "Size"):
            whole = self.known[step.inputs[0]].shape
            if whole is None:
                return nothing
            return [_shape_of(step, whole)]
        feeds = {name: self.known[name].value for name in step.inputs if name}
        if any(value is None for value in feeds.values()):
            return nothing
        from onnx.reference import ReferenceEvaluator  # slow to import, and not always needed

        try:
            with np.errstate(all="ignore"):
                evaluator = ReferenceEvaluator(step.proto(), opsets={"": step.version})
                results = evaluator.run(None, feeds)
        except Exception:  # whatever the evaluator lacks is not followed
            return nothing
        return [
            np.asarray(r) if known.shape == np.shape(r) else None
            for r, known in zip(results, found, strict=True)
        ]

    def _foreseeable(self, step: Step, found: Sequence[Known]) -> bool:
        small = all(k.shape is not None and math.prod(k.shape) <= SMALL for k in found)
        standard = not step.domain and not step.closed and step.kind not in RANDOM
        return small and standard and step.kind not in CONTRIB


def evaluate(flat: Flat, sizes: Mapping[str, int], fresh: Iterator[int]) -> dict[str, Known]:
    """What is known of every value when the symbols of the inputs have these sizes.

    `fresh` gives sizes to dimensions that data decide. Raises Unfit when a node cannot take them.
    """
    return _Evaluation(flat, dict(sizes), fresh).run()


def symbol(value: ir.Value, dim: int) -> str:
    """The name of a dimension whose size is not said; some writers put -1 there."""
    assert value.shape is not None
    size = value.shape[dim]
    named = None if isinstance(size, int) else size.value
    return f"{value.name}.{dim}" if named is None else named


def _padded(
    found: Sequence[tuple[ir.DataType, tuple[int, ...] | None]], count: int
) -> list[tuple[ir.DataType, tuple[int, ...] | None]]:
    return [*found[:count], *[(ir.DataType.FLOAT, None)] * (count - len(found))]


def _schema(step: Step) -> onnx.defs.OpSchema | None:
    kind = STANDARD.get(step.kind, step.node.op_type if not step.domain else "")
    version = step.version if not step.domain else int(onnx.defs.onnx_opset_version())
    try:
        return onnx.defs.get_schema(kind, version, "") if kind else None
    except Exception:  # its own SchemaError: no such operator
        return None


def _stored(tensor: ir.TensorProtocol) -> Known:
    shape = tuple(int(size) for size in tensor.shape.numpy())
    small = math.prod(shape) <= SMALL and tensor.dtype != ir.DataType.STRING
    return Known(tensor.dtype, shape, np.asarray(tensor.numpy()) if small else None)


def _proto(value: Array, dtype: ir.DataType, name: str) -> onnx.TensorProto:
    if value.dtype == dtype.numpy():
        return ir.to_proto(ir.Tensor(value, dtype=dtype, name=name))
    return numpy_helper.from_array(value, name)


def _of_type(proto: onnx.TypeProto | None, evaluation: _Evaluation) -> Known | None:
    """-1 stands for a size that the operator's inference does not know."""
    if proto is None or not proto.HasField("tensor_type"):
        return None
    tensor = proto.tensor_type
    dtype = ir.DataType(tensor.elem_type)
    if not tensor.HasField("shape"):
        return None
    dims = (d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return Known(dtype, tuple(dims))


def _shape_of(step: Step, whole: tuple[int, ...]) -> Array:
    if step.kind == "Size":
        return np.array(math.prod(whole), np.int64)
    start = step.attributes["start"].as_int() if "start" in step.attributes else 0
    end = step.attributes["end"].as_int() if "end" in step.attributes else None
    return np.array(whole[start:end], np.int64)


def _expression(text: str, sizes: Mapping[str, int]) -> int | None:
    """The size of `past + sequence` where those are known; None for a name of its own."""
    try:
        found = dim_size(text, sizes)
    except (ArithmeticError, KeyError, SyntaxError, TypeError, ValueError, RecursionError):
        return None
    return found if found > 0 else None
