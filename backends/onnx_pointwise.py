"""ONNX for operations that work entry by entry."""

from __future__ import annotations

import math

import onnx_ir as ir

from prunec.backends.onnx_build import Builder, Rule, Rules, Unsupported
from prunec.ir.graph import Arg, Op

__all__ = ["POINTWISE"]

_INTEGERS = ("i", "u")


def _result(op: Op) -> str:
    return op.types[0].dtype


def _unary(kind: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        return b.op(kind, b.value(op.args[0], _result(op)))

    return write


def _test(kind: str) -> Rule:
    """A property of one number: the operand keeps its dtype."""

    def write(b: Builder, op: Op) -> ir.Value:
        return b.op(kind, b.value(op.args[0]))

    return write


def _binary(kind: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        dtype = _result(op)
        return b.op(kind, b.value(op.args[0], dtype), b.value(op.args[1], dtype))

    return write


def _scaled(kind: str) -> Rule:
    """Sum or difference, with torch's factor on the second operand."""

    def write(b: Builder, op: Op) -> ir.Value:
        dtype = _result(op)
        alpha = op.args[2] if len(op.args) > 2 else op.kwarg("alpha", 1)
        right = b.value(op.args[1], dtype)
        if alpha != 1:
            right = b.op("Mul", right, b.value(alpha, dtype))
        return b.op(kind, b.value(op.args[0], dtype), right)

    return write


def _compare(kind: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        dtype = b.promoted(*op.args[:2])
        if dtype == "bool" and kind != "Equal":
            dtype = "i32"
        return b.op(kind, b.value(op.args[0], dtype), b.value(op.args[1], dtype))

    return write


def _not_equal(b: Builder, op: Op) -> ir.Value:
    equal = _compare("Equal")(b, op)
    assert isinstance(equal, ir.Value)
    return b.op("Not", equal)


def _bits(on_bool: str, on_integers: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        dtype = _result(op)
        return b.op(
            on_bool if dtype == "bool" else on_integers,
            *(b.value(a, dtype) for a in op.args[:2]),
        )

    return write


def _logical(kind: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        return b.op(kind, *(b.value(a, "bool") for a in op.args[:2]))

    return write


def _logical_not(b: Builder, op: Op) -> ir.Value:
    return b.op("Not", b.value(op.args[0], "bool"))


def _bitwise_not(b: Builder, op: Op) -> ir.Value:
    return b.op("Not" if _result(op) == "bool" else "BitwiseNot", b.value(op.args[0]))


def _rsqrt(b: Builder, op: Op) -> ir.Value:
    root = b.op("Sqrt", b.value(op.args[0], _result(op)))
    b.memo["root", op.result] = root
    return b.op("Reciprocal", root)


def _mul(b: Builder, op: Op) -> ir.Value:
    """A product with a reciprocal root is a quotient, the form runtimes fuse into RMS norms."""
    dtype = _result(op)
    if dtype == "bool":
        return b.op("And", b.value(op.args[0]), b.value(op.args[1]))
    for mine, other in (op.args[:2], op.args[1::-1]):
        root = b.memo.get(("root", getattr(mine, "name", "")))
        if root is not None:
            return b.op("Div", b.value(other, dtype), root)
    return b.op("Mul", b.value(op.args[0], dtype), b.value(op.args[1], dtype))


def _div(b: Builder, op: Op) -> ir.Value:
    dtype, mode = _result(op), op.kwarg("rounding_mode")
    left, right = b.value(op.args[0], dtype), b.value(op.args[1], dtype)
    if not dtype.startswith(_INTEGERS):
        return _rounded(b, b.op("Div", left, right), mode)
    if mode == "trunc":
        return b.op("Div", left, right)
    # ONNX divides integers towards zero; its Mod has the sign of the divisor.
    return b.op("Div", b.op("Sub", left, b.op("Mod", left, right)), right)


def _floor_divide(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    left, right = b.value(op.args[0], dtype), b.value(op.args[1], dtype)
    if dtype.startswith(_INTEGERS):
        return b.op("Div", b.op("Sub", left, b.op("Mod", left, right)), right)
    return b.op("Floor", b.op("Div", left, right))


def _rounded(b: Builder, value: ir.Value, mode: Arg) -> ir.Value:
    if mode == "floor":
        return b.op("Floor", value)
    if mode == "trunc":
        return b.op("Mul", b.op("Sign", value), b.op("Floor", b.op("Abs", value)))
    return value


def _remainder(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    left, right = b.value(op.args[0], dtype), b.value(op.args[1], dtype)
    if dtype.startswith(_INTEGERS):
        return b.op("Mod", left, right)
    return b.op("Sub", left, b.op("Mul", right, b.op("Floor", b.op("Div", left, right))))


def _reversed_sub(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    return b.op("Sub", b.value(op.args[1], dtype), b.value(op.args[0], dtype))


def _silu(b: Builder, op: Op) -> ir.Value:
    x = b.value(op.args[0])
    return b.op("Mul", x, b.op("Sigmoid", x))


def _gelu(b: Builder, op: Op) -> ir.Value:
    return b.op("Gelu", b.value(op.args[0]), approximate=str(op.kwarg("approximate", "none")))


def _clamp(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    low, high = ((*op.args[1:3], None, None))[:2]
    low, high = op.kwarg("min", low), op.kwarg("max", high)
    x = b.value(op.args[0], dtype)
    if low is not None:
        x = b.op("Max", x, b.value(low, dtype))
    return b.op("Min", x, b.value(high, dtype)) if high is not None else x


def _relu6(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    return b.op("Clip", b.value(op.args[0]), b.const(0, dtype), b.const(6, dtype))


def _hardtanh(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    low = op.args[1] if len(op.args) > 1 else -1.0
    high = op.args[2] if len(op.args) > 2 else 1.0
    return b.op("Clip", b.value(op.args[0]), b.value(low, dtype), b.value(high, dtype))


def _with_alpha(kind: str, default: float) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        alpha = op.args[1] if len(op.args) > 1 else default
        if not isinstance(alpha, int | float):
            raise Unsupported(f"{op.name} with a computed slope")
        return b.op(kind, b.value(op.args[0]), alpha=float(alpha))

    return write


def _hardsigmoid(b: Builder, op: Op) -> ir.Value:
    return b.op("HardSigmoid", b.value(op.args[0]), alpha=1.0 / 6.0, beta=0.5)


def _exp2(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    return b.op("Exp", b.op("Mul", b.value(op.args[0], dtype), b.const(math.log(2.0), dtype)))


def _log1p(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    return b.op("Log", b.op("Add", b.value(op.args[0], dtype), b.const(1, dtype)))


def _logarithm(base: float) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        dtype = _result(op)
        return b.op("Div", b.op("Log", b.value(op.args[0], dtype)), b.const(math.log(base), dtype))

    return write


def _logit(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    x, one = b.value(op.args[0], dtype), b.const(1, dtype)
    nearest = op.args[1] if len(op.args) > 1 else None
    if isinstance(nearest, float):
        x = b.op("Clip", x, b.const(nearest, dtype), b.const(1 - nearest, dtype))
    return b.op("Log", b.op("Div", x, b.op("Sub", one, x)))


def _expm1(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    return b.op("Sub", b.op("Exp", b.value(op.args[0], dtype)), b.const(1, dtype))


def _square(b: Builder, op: Op) -> ir.Value:
    x = b.value(op.args[0])
    return b.op("Mul", x, x)


def _power(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    return b.op("Pow", b.value(op.args[0], dtype), b.value(op.args[1], dtype))


def _where(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    test, then, other = op.args
    return b.op("Where", b.value(test, "bool"), b.value(then, dtype), b.value(other, dtype))


def _masked_fill(b: Builder, op: Op) -> ir.Value:
    dtype = _result(op)
    source, mask, fill = op.args
    return b.op("Where", b.value(mask, "bool"), b.value(fill, dtype), b.value(source, dtype))


def _cast(b: Builder, op: Op) -> ir.Value:
    return b.cast(b.value(op.args[0]), _result(op))


def _named(names: tuple[str, ...], rule: Rule) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names}


def _table() -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for kind in (
        "Abs Ceil Cos Cosh Erf Exp Floor Log Neg Reciprocal Relu Round Sigmoid Sign Sin Sinh "
        "Sqrt Tan Tanh Atan Asin Acos Asinh Acosh Atanh Softplus Mish"
    ).split():
        found[f"aten.{kind.lower()}.default"] = _unary(kind)
    for kind in ("IsNaN", "IsInf"):
        found[f"aten.{kind.lower()}.default"] = _test(kind)
    comparisons = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater"}
    for name, kind in {**comparisons, "ge": "GreaterOrEqual"}.items():
        found |= _named((f"{name}.Tensor", f"{name}.Scalar"), _compare(kind))
    for kind in ("Min", "Max"):
        name = kind.lower()
        found |= _named((f"{name}imum.default", f"{name}.other"), _binary(kind))
    for name in ("and", "or", "xor"):
        title = name.title()
        bits = _bits(title, f"Bitwise{title}")
        found |= _named((f"bitwise_{name}.Tensor", f"bitwise_{name}.Scalar"), bits)
        found[f"aten.logical_{name}.default"] = _logical(title)
    return found


POINTWISE: Rules = {
    **_table(),
    **_named(("ne.Tensor", "ne.Scalar"), _not_equal),
    **_named(("add.Tensor", "add.Scalar"), _scaled("Add")),
    **_named(("sub.Tensor", "sub.Scalar"), _scaled("Sub")),
    **_named(("mul.Tensor", "mul.Scalar"), _mul),
    **_named(("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode"), _div),
    **_named(("floor_divide.default", "floor_divide.Scalar"), _floor_divide),
    **_named(("remainder.Tensor", "remainder.Scalar"), _remainder),
    **_named(("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"), _power),
    **_named(("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"), _where),
    **_named(("masked_fill.Scalar", "masked_fill.Tensor"), _masked_fill),
    **_named(("clamp.default", "clamp.Tensor", "clip.default"), _clamp),
    **_named(("clamp_min.default", "clamp_min.Tensor"), _binary("Max")),
    **_named(("clamp_max.default", "clamp_max.Tensor"), _binary("Min")),
    "aten.rsub.Scalar": _reversed_sub,
    "aten.rsqrt.default": _rsqrt,
    "aten.bitwise_not.default": _bitwise_not,
    "aten.logical_not.default": _logical_not,
    "aten.silu.default": _silu,
    "aten.gelu.default": _gelu,
    "aten.square.default": _square,
    "aten.exp2.default": _exp2,
    **_named(("log1p.default", "special_log1p.default"), _log1p),
    **_named(("logit.default", "special_logit.default"), _logit),
    "aten.special_erf.default": _unary("Erf"),
    "aten.log2.default": _logarithm(2.0),
    "aten.log10.default": _logarithm(10.0),
    **_named(("expm1.default", "special_expm1.default"), _expm1),
    "aten.relu6.default": _relu6,
    "aten.hardtanh.default": _hardtanh,
    "aten.hardsigmoid.default": _hardsigmoid,
    "aten.hardswish.default": _unary("HardSwish"),
    "aten.elu.default": _with_alpha("Elu", 1.0),
    "aten.leaky_relu.default": _with_alpha("LeakyRelu", 0.01),
    "aten.to.dtype": _cast,
}
