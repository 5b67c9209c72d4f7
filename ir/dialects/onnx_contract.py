"""Rules of ONNX operations that sum over an axis shared by two operands."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from prunec.ir.dialects.aten_contract import contracted, convolved, matmul
from prunec.ir.dialects.onnx_args import given, integer, ranked
from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Rule, Typing

__all__ = [
    "conv",
    "conv_integer",
    "dequantize",
    "einsum",
    "fused_conv",
    "fused_matmul",
    "gemm",
    "matmul_integer",
    "matmul_nbits",
    "product_of",
    "qlinear_conv",
    "qlinear_matmul",
]


def gemm(t: Typing, op: Op) -> list[Dims] | None:
    left = "i n" if integer(op, "transA") else "n i"
    right = "o i" if integer(op, "transB") else "i o"
    found = t.apply(f"{left}, {right} -> n o", op.args[:2])
    bias = given(op, 2)
    if found is None or not isinstance(bias, Ref):
        return found
    return [t.unify(found[0], t.of(bias))]


def fused_matmul(t: Typing, op: Op) -> list[Dims] | None:
    """Operands may be transposed in their last two dimensions."""
    if integer(op, "transBatchA") or integer(op, "transBatchB"):
        return None
    left = "... i n" if integer(op, "transA") else "... n i"
    right = "... o i" if integer(op, "transB") else "... i o"
    return t.apply(f"{left}, {right} -> ... n o", op.args[:2])


def product_of(a: int, b: int, *by_column: int) -> Rule:
    """A product of the operands at `a` and `b`; those at `by_column` have one entry a column."""

    def rule(t: Typing, op: Op) -> list[Dims] | None:
        found = matmul(t, _only(op, a, b))
        if found is None:
            return None
        for arg in ranked(t, *(given(op, i) for i in by_column)):
            if isinstance(arg, Ref):
                t.axes.unify(t.of(arg)[-1], found[0][-1])
        return found

    return rule


def _only(op: Op, *positions: int) -> Op:
    return replace(op, args=tuple(op.args[i] for i in positions))


matmul_integer = product_of(0, 1, 3)
qlinear_matmul = product_of(0, 3, 4, 5)


def conv(transposed: bool = False) -> Rule:
    def rule(t: Typing, op: Op) -> list[Dims] | None:
        return _convolved(t, op, op.args[:3], transposed)

    return rule


def _convolved(
    t: Typing, op: Op, operands: tuple[Arg, ...] | list[Arg], transposed: bool = False
) -> list[Dims] | None:
    rank = len(t.of(operands[1])) - 2
    groups = integer(op, "group", 1)
    return convolved(t, operands, rank, groups, ("group",), transposed=transposed)


def fused_conv(t: Typing, op: Op) -> list[Dims] | None:
    """A convolution to whose result another value is added."""
    found = _convolved(t, op, op.args[:3])
    if found is None or not isinstance(added := given(op, 3), Ref):
        return found
    return [t.unify(found[0], t.of(added))]


def qlinear_conv(t: Typing, op: Op) -> list[Dims] | None:
    """Scale and zero point of the weight may have one entry a channel."""
    x, weight, bias = op.args[0], op.args[3], given(op, 8)
    return _convolved(t, op, [x, weight, bias, *ranked(t, op.args[4], op.args[5])])


def conv_integer(t: Typing, op: Op) -> list[Dims] | None:
    return _convolved(t, op, [*op.args[:2], *ranked(t, given(op, 3))])


def einsum(t: Typing, op: Op) -> list[Dims] | None:
    return contracted(t, cast(str, op.kwarg("equation")), op.args)


def dequantize(t: Typing, op: Op) -> list[Dims]:
    """Entry by entry, with one scale for all, for each index of the axis, or for each block of
    indices: then whole blocks stay."""
    x = t.of(op.args[0])
    for arg in ranked(t, *op.args[1:3]):
        if not isinstance(arg, Ref):
            continue
        scale = t.of(arg)
        at = integer(op, "axis", 1) % len(x)
        if len(scale) == 1:
            t.axes.unify(x[at], scale[0])
            continue
        for d, (own, axis) in enumerate(zip(scale, x, strict=True)):
            if t.axes.size(own) == t.axes.size(axis):
                t.axes.unify(own, axis)
            elif d == at and not t.axes.size(axis) % t.axes.size(own):
                inner = t.fresh([t.axes.size(axis) // t.axes.size(own)], "a block of one scale")
                t.axes.unify(axis, t.axes.product([own, *inner]))
            else:
                t.pin([own, axis], f"`{op.name}` has a scale for blocks that do not fit")
    return [x]


def matmul_nbits(t: Typing, op: Op) -> list[Dims] | None:
    """A weight of few bits in blocks along its inputs: [n, blocks, bytes], a scale for each block,
    zero points packed, a bias. Inputs leave by whole blocks."""
    x, weight = t.of(op.args[0]), t.of(op.args[1])
    if given(op, 4) is not None or len(weight) != 3:  # reordered inputs
        return None
    rows, blocks, packed = weight
    inputs, size = integer(op, "K"), integer(op, "block_size")
    if t.axes.size(blocks) * size != inputs:
        return None
    t.axes.pin(packed, "a block of one scale")
    inner = t.fresh([size], "a block of one scale")
    t.axes.unify(x[-1], t.axes.product([blocks, *inner]))
    t.literal(("K",), t.axes.product([blocks, *inner]))
    t.literal(("N",), rows)
    by_block = t.axes.product([rows, blocks])
    for arg in (given(op, 2), given(op, 3)):
        if isinstance(arg, Ref):
            _per_block(t, t.of(arg), rows, by_block)
    if isinstance(bias := given(op, 5), Ref):
        t.axes.unify(t.of(bias)[0], rows)
    unpacked = t.define("weight", [rows, t.axes.product([blocks, *inner])], op.args[1])
    operands = [op.args[0], unpacked]
    return t.apply("... i, o i -> ... o", operands)


def _per_block(t: Typing, dims: Dims, rows: int, by_block: int) -> None:
    """One entry for each row and block, or, packed, fewer: then blocks cannot leave."""
    whole = t.axes.product(dims)
    if t.axes.size(whole) == t.axes.size(by_block):
        t.axes.unify(whole, by_block)
        return
    t.pin([f for f in t.axes.factors(by_block) if f != t.axes.find(rows)], "packed zero points")
    width, left = divmod(t.axes.size(whole), t.axes.size(rows))
    if left:
        t.pin([whole, rows], "packed zero points")
        return
    inner = t.fresh([width], "packed zero points")
    t.axes.unify(whole, t.axes.product([rows, *inner]))
