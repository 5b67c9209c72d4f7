"""ONNX for complex numbers, which its operators do not take: pairs of real ones, side by side.

Rotary embeddings are written with them: a pair of features is turned by a number of length one.
"""

from __future__ import annotations

import onnx_ir as ir

from prunec.backends.onnx_build import Builder, Rules, Unsupported
from prunec.ir.graph import Arg, Op, TensorType

__all__ = ["COMPLEX", "as_pairs", "is_complex"]

_PARTS = {"c64": "f32", "c128": "f64"}


def is_complex(b: Builder, op: Op) -> bool:
    """Whether an operation takes or gives complex numbers."""
    types = [b.graph.types[name] for name in op.operands]
    return any(type_.dtype in _PARTS for type_ in (*types, *op.types))


def as_pairs(type_: TensorType) -> TensorType:
    """How a value of this type is written."""
    if type_.dtype not in _PARTS:
        return type_
    return TensorType(_PARTS[type_.dtype], (*type_.shape, 2))


def _same(b: Builder, op: Op) -> ir.Value:
    return b.op("Identity", b.value(op.args[0]))


def _polar(b: Builder, op: Op) -> ir.Value:
    """Length and angle."""
    length, angle = b.value(op.args[0]), b.value(op.args[1])
    parts = (b.op("Mul", length, b.op(kind, angle)) for kind in ("Cos", "Sin"))
    return b.op("Concat", *(b.op("Unsqueeze", part, b.ints(-1)) for part in parts), axis=-1)


def _mul(b: Builder, op: Op) -> ir.Value:
    left, right = op.args[:2]
    if not all(b.dtype(arg) in _PARTS for arg in (left, right)):
        return b.op("Mul", _spread(b, left), _spread(b, right))
    (a, b_), (c, d) = (_parts(b, arg) for arg in (left, right))
    real = b.op("Sub", b.op("Mul", a, c), b.op("Mul", b_, d))
    imaginary = b.op("Add", b.op("Mul", a, d), b.op("Mul", b_, c))
    return b.op("Concat", real, imaginary, axis=-1)


def _spread(b: Builder, arg: Arg) -> ir.Value:
    """A real number meets both parts."""
    found = b.value(arg, "f32")
    return found if b.dtype(arg) in _PARTS else b.op("Unsqueeze", found, b.ints(-1))


def _parts(b: Builder, arg: Arg) -> tuple[ir.Value, ir.Value]:
    real, imaginary = b.many("Split", b.value(arg), outputs=2, axis=-1, num_outputs=2)
    return real, imaginary


def _unsqueeze(b: Builder, op: Op) -> ir.Value:
    dim = op.args[1]
    if not isinstance(dim, int) or dim < 0:
        raise Unsupported(f"{op.name} of complex numbers at {dim!r}")
    return b.op("Unsqueeze", b.value(op.args[0]), b.ints(dim))


COMPLEX: Rules = {
    "aten.mul.Tensor": _mul,
    "aten.polar.default": _polar,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.view_as_complex.default": _same,
    "aten.view_as_real.default": _same,
}
