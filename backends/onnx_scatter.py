"""ONNX for operations that write over a part of a tensor, or all of it."""

from __future__ import annotations

import onnx_ir as ir

from prunec.backends.onnx_build import Builder, Rule, Rules, Unsupported, argument
from prunec.backends.onnx_shape import cut
from prunec.ir.graph import Arg, Op, Ref

__all__ = ["SCATTER"]


def _scatter(reduction: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        target, dim, index, source = op.args[:4]
        assert isinstance(dim, int)
        places = b.value(index, "i64")
        values = b.value(source, op.types[0].dtype)
        if not isinstance(source, Ref) or not b.type(source).shape:
            values = b.op("Expand", values, b.op("Shape", places))
        else:
            _same_extent(b, index, source)
        return b.op(
            "ScatterElements", b.value(target), places, values, axis=dim, reduction=reduction
        )

    return write


def _same_extent(b: Builder, index: Arg, source: Arg) -> None:
    # torch reads only the corner of the source that the index covers; ONNX wants equal shapes
    if b.type(index).shape != b.type(source).shape:
        raise Unsupported("scatter from a larger source")


def _index_add(b: Builder, op: Op) -> ir.Value:
    """Rows added to those that an index names; ScatterND wants them in the first dimension."""
    target, dim, index, source = op.args[:4]
    assert isinstance(dim, int)
    dtype = op.types[0].dtype
    places = b.op("Unsqueeze", b.value(index, "i64"), b.ints(-1))
    into, added = b.value(target), b.value(source, dtype)
    alpha = op.kwarg("alpha", 1)
    if alpha != 1:
        added = b.op("Mul", added, b.value(alpha, dtype))
    if not dim:
        return b.op("ScatterND", into, places, added, reduction="add")
    order = list(range(b.rank(target)))
    order[0], order[dim] = dim, 0  # its own inverse
    into, added = (b.op("Transpose", value, perm=order) for value in (into, added))
    found = b.op("ScatterND", into, places, added, reduction="add")
    return b.op("Transpose", found, perm=order)


def _masked_scatter(b: Builder, op: Op) -> ir.Value:
    """The entries of a source, in order, over those that a mask marks: each marked entry takes
    the one whose number is how many are marked before it."""
    target, mask, source = op.args
    into = b.value(target)
    marked = b.op("Expand", b.value(mask), b.op("Shape", into))
    flat = b.op("Reshape", b.cast(marked, "i64"), b.ints(-1))
    order = b.op("Mul", flat, b.op("CumSum", flat, b.const(0), exclusive=1))
    entries = b.op("Reshape", b.value(source, op.types[0].dtype), b.ints(-1))
    spare = b.const([0], op.types[0].dtype)  # for entries not marked, where the source is empty
    found = b.op("Gather", b.op("Concat", entries, spare, axis=0), order, axis=0)
    return b.op("Where", marked, b.op("Reshape", found, b.op("Shape", into)), into)


def _copy(b: Builder, op: Op) -> ir.Value:
    target, source = op.args[:2]
    value = b.value(source, op.types[0].dtype)
    if isinstance(source, Ref) and b.type(source).shape == op.types[0].shape:
        return b.op("Identity", value)
    return b.op("Expand", value, b.op("Shape", b.value(target)))


def _select_scatter(b: Builder, op: Op) -> ir.Value:
    source, dim, index = op.args[1:4]
    if not isinstance(index, int) or not isinstance(dim, int):
        raise Unsupported(f"an index {index!r} known at run time")
    row = b.op("Unsqueeze", b.value(source, op.types[0].dtype), b.ints(dim))
    return _between(b, op, dim, index, row, index + 1 or None)


def _slice_scatter(b: Builder, op: Op) -> ir.Value:
    dim, start, end = argument(op, 2, 0), argument(op, 3, None), argument(op, 4, None)
    if not isinstance(dim, int) or argument(op, 5, 1) != 1:
        raise Unsupported("a slice with a step")
    return _between(b, op, dim, start or 0, b.value(op.args[1], op.types[0].dtype), end)


def _between(b: Builder, op: Op, dim: int, start: Arg, part: ir.Value, end: Arg) -> ir.Value:
    """What stands before `start`, the part, and what stands from `end` on. A bound may lie
    outside, as bounds of slices may."""
    size = op.types[0].shape[dim]
    whole = b.value(op.args[0])
    parts = [part]
    if start != 0:
        parts.insert(0, cut(b, whole, dim, 0, start))
    if end is not None and not (isinstance(end, int) and isinstance(size, int) and end >= size):
        parts.append(cut(b, whole, dim, end, None))
    return b.op("Concat", *parts, axis=dim) if len(parts) > 1 else b.op("Identity", part)


SCATTER: Rules = {
    **dict.fromkeys(("aten.scatter.src", "aten.scatter.value"), _scatter("none")),
    "aten.scatter_add.default": _scatter("add"),
    "aten.index_add.default": _index_add,
    "aten.masked_scatter.default": _masked_scatter,
    "aten.copy.default": _copy,
    "aten.select_scatter.default": _select_scatter,
    "aten.slice_scatter.default": _slice_scatter,
}
