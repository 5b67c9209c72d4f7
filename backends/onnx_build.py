"""Build an ONNX graph from the IR, one operation at a time.

Each IR operation is written by one rule of a table (`onnx_*.py`), with the sizes and dtypes the
IR knows: shapes become constants wherever they can, so that nothing is left to fold later, and
names, dimensions and modules keep their names. A size computed at run time is an int64 tensor of
shape [1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from prunec.ir.graph import Arg, Attr, Dim, Graph, Op, Ref, TensorType
from prunec.ir.sizes import folded

__all__ = [
    "NUMPY_DTYPES",
    "ONNX_DTYPES",
    "Builder",
    "Rule",
    "Rules",
    "Unsupported",
    "argument",
    "dtype_of",
]

Array = npt.NDArray[Any]

ONNX_DTYPES = {
    "f64": ir.DataType.DOUBLE,
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
    "i64": ir.DataType.INT64,
    "i32": ir.DataType.INT32,
    "i16": ir.DataType.INT16,
    "i8": ir.DataType.INT8,
    "u8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
    "index": ir.DataType.INT64,
}

NUMPY_DTYPES: Mapping[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "i64": np.int64,
    "i32": np.int32,
    "i16": np.int16,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
    "index": np.int64,
}

_FROM_TORCH = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}

# Torch's promotion among dtypes of tensors: the later one wins.
_ORDER = ("bool", "u8", "i8", "i16", "i32", "index", "i64", "bf16", "f16", "f32", "f64")


class Unsupported(Exception):
    """No rule writes this operation, or not with these arguments."""


def dtype_of(attr: Arg) -> str:
    """The dtype an attribute names."""
    assert isinstance(attr, Attr)
    if attr.value not in _FROM_TORCH:
        raise Unsupported(f"dtype {attr.value}")
    return _FROM_TORCH[attr.value]


def argument(op: Op, position: int, default: Arg) -> Arg:
    """A positional argument, which may be left out."""
    return op.args[position] if len(op.args) > position else default


@dataclass
class Builder:
    """Nodes written so far, and the value that stands for each IR value.

    `memo` lets a rule share what it derives from one value, such as the additive form of a mask.
    """

    graph: Graph
    values: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)
    memo: dict[tuple[str, str], Any] = field(default_factory=dict)
    current: Op | None = None

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node with one result."""
        return self.many(kind, *inputs, outputs=1, **attributes)[0]

    def many(
        self, kind: str, *inputs: ir.Value | None, outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Append a node with several results."""
        given = {k: v for k, v in attributes.items() if v is not None}
        known = ir.convenience.convert_attributes(given)
        return self.adopt(ir.Node("", kind, inputs, known, num_outputs=outputs))

    def adopt(self, node: ir.Node) -> Sequence[ir.Value]:
        """Append a node under a name of its own, which begins with the module it comes from."""
        name = f"{node.op_type}_{len(self.nodes)}"
        module = self.current.loc.module if self.current else ""
        node.name = f"{module}/{name}" if module else name
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_{i}" if i else name
        self.nodes.append(node)
        return node.outputs

    def const(self, value: Any, dtype: str = "i64") -> ir.Value:
        """A constant; equal ones are one initializer."""
        array = np.asarray(value, dtype=NUMPY_DTYPES[dtype])
        return self.constant(ir.Tensor(array, dtype=ONNX_DTYPES[dtype]))

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The initializer that holds a small tensor."""
        key = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name),
            )
        return self.constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A vector of integers, as shapes and axes are given."""
        return self.const(list(values))

    def type(self, arg: Arg) -> TensorType:
        """The type of an operand that is a value."""
        if not isinstance(arg, Ref):
            raise Unsupported(f"operand {arg!r} is not a tensor")
        return self.graph.types[arg.name]

    def rank(self, arg: Arg) -> int:
        return len(self.type(arg).shape)

    def dtype(self, arg: Arg) -> str:
        return self.type(arg).dtype

    def value(self, arg: Arg, dtype: str | None = None) -> ir.Value:
        """An operand as a value: cast to `dtype` where it has another, a number as a constant."""
        if isinstance(arg, Ref):
            found = self.values[arg.name]
            own = self.graph.types[arg.name].dtype
            if dtype is None or own == dtype:
                return found
            if own == "index":  # a vector of one; here it is a number among others
                found = self.op("Squeeze", found, self.ints(0))
                own = "i64"
            return found if own == dtype else self.cast(found, dtype)
        if not isinstance(arg, bool | int | float):
            raise Unsupported(f"operand {arg!r}")
        assert dtype is not None, "a number takes the dtype of what it meets"
        return self.const(_clipped(arg, dtype), dtype)

    def cast(self, value: ir.Value, dtype: str) -> ir.Value:
        return self.op("Cast", value, to=ONNX_DTYPES[dtype].value)

    def promoted(self, *args: Arg) -> str:
        """The dtype in which torch compares or combines these operands."""
        tensors = [self.type(a) for a in args if isinstance(a, Ref)]
        # a tensor without dimensions counts less than one with, unless it is of a higher kind
        found = max((t.dtype for t in tensors if t.shape), key=_ORDER.index, default="")
        small = max((t.dtype for t in tensors if not t.shape), key=_ORDER.index, default="")
        if not found or _kind(small) > _kind(found):
            found = small
        numbers = [a for a in args if isinstance(a, float) and not isinstance(a, bool)]
        if numbers and _kind(found) < _FLOATS:
            return "f32"
        if found == "bool" and any(isinstance(a, int) and not isinstance(a, bool) for a in args):
            return "i64"
        return "i64" if found == "index" else found

    def shape(
        self, wanted: Sequence[Arg], result: TensorType, source: TensorType | None = None
    ) -> ir.Value:
        """The vector of sizes `wanted`, which the type of the result completes.

        With a `source` it is a target for Reshape: 0 copies a dimension of the source, and one
        dimension that is not known otherwise is -1.
        """
        sizes: list[int | str] = []
        for i, (arg, dim) in enumerate(zip(wanted, result.shape, strict=True)):
            if isinstance(dim, int):
                sizes.append(dim)
            elif source is not None and i < len(source.shape) and source.shape[i] == dim:
                sizes.append(0)
            else:
                sizes.append(arg.name if isinstance(arg, Ref) else dim)
        unknown = [i for i, size in enumerate(sizes) if isinstance(size, str)]
        if source is not None and unknown:
            # rather one that nothing has computed
            spare = next((i for i in unknown if not str(sizes[i]).startswith("%")), unknown[-1])
            unknown.remove(spare)
            sizes[spare] = -1
        if not unknown:
            return self.ints(*[size for size in sizes if isinstance(size, int)])
        parts = [self.size(s) if isinstance(s, str) else self.ints(s) for s in sizes]
        return self.op("Concat", *parts, axis=0)

    def size(self, size: Dim) -> ir.Value:
        """A size as a tensor of shape [1]: a number, a computed value, a symbol of an input, or
        an expression of these."""
        if isinstance(size, int):
            return self.ints(size)
        if size.startswith("%"):
            return self.values[size]
        for value in self.graph.inputs:
            if size in value.type.shape:
                return self.dim(self.values[value.name], value.type.shape.index(size))
        if size.isidentifier():
            raise Unsupported(f"size {size} is not computed anywhere")
        key = ("size", size)
        if key not in self.memo:
            self.memo[key] = folded(size, self.size, self.ints, self.arithmetic)
        found: ir.Value = self.memo[key]
        return found

    def arithmetic(self, name: str, left: ir.Value, right: ir.Value) -> ir.Value:
        """Sum, quotient and so on of two sizes, named as in `ir/sizes.py`."""
        if name == "floordiv":  # Div rounds towards zero
            return self.op("Div", self.op("Sub", left, self.op("Mod", left, right)), right)
        return self.op(name.capitalize(), left, right)

    def dim(self, value: ir.Value, dim: int) -> ir.Value:
        """The size of one dimension at run time, of shape [1]."""
        key = ("dim", f"{value.name}:{dim}")
        if key not in self.memo:
            self.memo[key] = self.op("Shape", value, start=dim, end=dim + 1)
        found: ir.Value = self.memo[key]
        return found

    def scalar(self, arg: Arg, dtype: str = "i64") -> ir.Value:
        """A number or a size as a tensor without dimensions."""
        if not isinstance(arg, Ref):
            return self.value(arg, dtype)
        found = self.value(arg)
        if self.dtype(arg) == "index":
            found = self.op("Squeeze", found, self.ints(0))
        return found if dtype == "i64" else self.cast(found, dtype)


def _clipped(number: bool | int | float, dtype: str) -> bool | int | float:
    """A number as the dtype can hold it: models mask with the least number of another dtype."""
    if dtype.startswith(("i", "u")) and not isinstance(number, bool):
        info = np.iinfo(NUMPY_DTYPES[dtype])
        return int(min(max(number, info.min), info.max))
    return number


_FLOATS = 2


def _kind(dtype: str) -> int:
    """0 for bool, 1 for integers, 2 for floats, -1 for none: torch promotes by kind first."""
    if not dtype:
        return -1
    if dtype == "bool":
        return 0
    return _FLOATS if dtype.startswith(("f", "bf")) else 1


Rule = Callable[[Builder, Op], ir.Value | Sequence[ir.Value]]
"""Writes one operation and gives the value of each result."""

Rules = Mapping[str, Rule]
