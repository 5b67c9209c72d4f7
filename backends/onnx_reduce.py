"""ONNX for operations along dimensions: reductions, softmax, ordering, lookups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from prunec.backends.onnx_build import Builder, Rule, Rules, Unsupported
from prunec.ir.graph import Arg, Op, Ref

__all__ = ["REDUCE"]


def _dims(arg: Arg) -> list[int] | None:
    """The dimensions named, or None for all."""
    if arg is None or arg == ():
        return None
    items = arg if isinstance(arg, tuple) else (arg,)
    return [i for i in items if isinstance(i, int)]


def _reduce(kind: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        dims = _dims(op.args[1] if len(op.args) > 1 else None)
        keep = bool(op.args[2]) if len(op.args) > 2 else bool(op.kwarg("keepdim", False))
        return _over(b, kind, b.value(op.args[0], op.types[0].dtype), dims, keep)

    return write


def _over(b: Builder, kind: str, value: ir.Value, dims: list[int] | None, keep: bool) -> ir.Value:
    axes = b.ints(*dims) if dims is not None else None
    return b.op(kind, value, axes, keepdims=int(keep))


def _quantifier(kind: str) -> Rule:
    """`any` and `all`: the greatest or least of numbers 0 and 1."""

    def write(b: Builder, op: Op) -> ir.Value:
        dims = _dims(op.args[1] if len(op.args) > 1 else None)
        keep = bool(op.args[2]) if len(op.args) > 2 else False
        numbers = b.cast(b.value(op.args[0], "bool"), "i32")
        return b.cast(_over(b, kind, numbers, dims, keep), "bool")

    return write


def _nonzero(b: Builder, op: Op) -> ir.Value:
    return b.op("Transpose", b.op("NonZero", b.value(op.args[0])), perm=[1, 0])


def _places(b: Builder, op: Op) -> Sequence[ir.Value]:
    """Where entries are true, dimension by dimension."""
    found = b.op("NonZero", b.value(op.args[0]))
    count = len(op.results)
    rows = b.many("Split", found, outputs=count, axis=0, num_outputs=count)
    return [b.op("Squeeze", row, b.ints(0)) for row in rows]


def _is_in(b: Builder, op: Op) -> ir.Value:
    """Whether an entry is among some others: any of them equals it."""
    dtype = b.promoted(*op.args)
    entry = b.op("Unsqueeze", b.value(op.args[0], dtype), b.ints(-1))
    others = b.op("Reshape", b.value(op.args[1], dtype), b.ints(-1))
    same = b.cast(b.op("Equal", entry, others), "i32")
    found = b.cast(_over(b, "ReduceMax", same, [-1], keep=False), "bool")
    return b.op("Not", found) if op.kwarg("invert", False) else found


def _variance(b: Builder, op: Op) -> ir.Value:
    dims = _dims(op.args[1] if len(op.args) > 1 else None)
    if op.name.endswith(".dim"):
        correction: float = 0 if op.args[2:3] == (False,) else 1
        keep = bool(op.args[3]) if len(op.args) > 3 else False
    else:
        given, keep = op.kwarg("correction", 1), bool(op.kwarg("keepdim", False))
        correction = given if isinstance(given, int | float) else 1
    shape = b.type(op.args[0]).shape
    over = dims if dims is not None else list(range(len(shape)))
    count = 1
    for d in over:
        size = shape[d]
        if not isinstance(size, int):
            raise Unsupported("variance over a dynamic dimension")
        count *= size
    value, dtype = b.value(op.args[0]), op.types[0].dtype
    mean = b.op("ReduceMean", value, b.ints(*over), keepdims=1)
    away = b.op("Sub", value, mean)
    total = _over(b, "ReduceSum", b.op("Mul", away, away), over, keep)
    return b.op("Div", total, b.const(count - correction, dtype))


def _deviation(b: Builder, op: Op) -> ir.Value:
    return b.op("Sqrt", _variance(b, op))


def _norm(b: Builder, op: Op) -> ir.Value:
    order = op.args[1] if len(op.args) > 1 else 2
    kinds = {1: "ReduceL1", 2: "ReduceL2"}
    if not isinstance(order, int | float) or order not in kinds:
        raise Unsupported(f"norm of order {order!r}")
    dims = _dims(op.args[2] if len(op.args) > 2 else None)
    keep = bool(op.args[3]) if len(op.args) > 3 else False
    return _over(b, kinds[int(order)], b.value(op.args[0], op.types[0].dtype), dims, keep)


def _softmax(kind: str) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        value = b.value(op.args[0], op.types[0].dtype)
        dim = op.args[1]
        assert isinstance(dim, int)
        return b.op(kind, value, axis=dim)

    return write


def _cumsum(b: Builder, op: Op) -> ir.Value:
    return b.op("CumSum", b.value(op.args[0], op.types[0].dtype), b.scalar(op.args[1]))


def _so_far(kind: str) -> Rule:
    """The extreme of each entry and those before it, and the last place of it: of a square in
    which every row holds what came until then."""

    def write(b: Builder, op: Op) -> Sequence[ir.Value]:
        dtype, rank = op.types[0].dtype, b.rank(op.args[0])
        (dim,) = _dims(op.args[1]) or [0]
        dim %= rank
        x = b.value(op.args[0])
        length = b.op("Squeeze", b.dim(x, dim), b.ints(0))
        places = b.op("Range", b.const(0), length, b.const(1))
        rows, columns = (b.op("Unsqueeze", places, b.ints(axis)) for axis in (1, 0))
        until = b.op("GreaterOrEqual", rows, columns)
        others = [d for d in range(rank + 1) if d not in (dim, dim + 1)]
        until = b.op("Unsqueeze", until, b.ints(*others)) if others else until
        never = b.value(-math.inf if kind == "Max" else math.inf, dtype)
        square = b.op("Where", until, b.op("Unsqueeze", x, b.ints(dim)), never)
        found = b.op(f"Reduce{kind}", square, b.ints(dim + 1), keepdims=0)
        place = b.op(f"Arg{kind}", square, axis=dim + 1, keepdims=0, select_last_index=1)
        return [found, place]

    return write


def _topk(b: Builder, op: Op) -> Sequence[ir.Value]:
    source, k = op.args[:2]
    dim = op.args[2] if len(op.args) > 2 else -1
    largest = op.args[3] if len(op.args) > 3 else True
    ordered = op.args[4] if len(op.args) > 4 else True
    count = b.value(k) if isinstance(k, Ref) else b.const([k])
    assert isinstance(dim, int)
    return b.many(
        "TopK",
        b.value(source),
        count,
        outputs=2,
        axis=dim,
        largest=int(bool(largest)),
        sorted=int(bool(ordered)),
    )


def _sort(b: Builder, op: Op) -> Sequence[ir.Value]:
    dim = op.args[1] if len(op.args) > 1 else -1
    descending = op.args[2] if len(op.args) > 2 else False
    assert isinstance(dim, int)
    value = b.value(op.args[0])
    size = b.dim(value, dim if dim >= 0 else dim + b.rank(op.args[0]))
    largest = int(bool(descending))
    return b.many("TopK", value, size, outputs=2, axis=dim, largest=largest, sorted=1)


def _place(kind: str) -> Rule:
    """Position of the greatest or least entry."""

    def write(b: Builder, op: Op) -> ir.Value:
        dim = op.args[1] if len(op.args) > 1 else None
        keep = bool(op.args[2]) if len(op.args) > 2 else False
        value = b.value(op.args[0])
        if dim is None:
            value, dim = b.op("Reshape", value, b.ints(-1)), 0
        assert isinstance(dim, int)
        return b.op(kind, value, axis=dim, keepdims=int(keep))

    return write


def _extreme(kind: str) -> Rule:
    """The greatest or least entry along a dimension, with its position."""

    def write(b: Builder, op: Op) -> Sequence[ir.Value]:
        dim = op.args[1]
        keep = bool(op.args[2]) if len(op.args) > 2 else False
        assert isinstance(dim, int)
        value = b.value(op.args[0])
        found = _over(b, f"Reduce{kind}", value, [dim], keep)
        return found, b.op(f"Arg{kind}", value, axis=dim, keepdims=int(keep))

    return write


def _gather(b: Builder, op: Op) -> ir.Value:
    source, dim, index = op.args[:3]
    assert isinstance(dim, int)
    return b.op("GatherElements", b.value(source), b.value(index, "i64"), axis=dim)


def _index_select(b: Builder, op: Op) -> ir.Value:
    source, dim, index = op.args
    assert isinstance(dim, int)
    return b.op("Gather", b.value(source), b.value(index), axis=dim)


def _embedding(b: Builder, op: Op) -> ir.Value:
    return b.op("Gather", b.value(op.args[0]), b.value(op.args[1]), axis=0)


def _index(b: Builder, op: Op) -> ir.Value:
    """Advanced indexing with integers. The indexed dimensions come first for GatherND; its new
    dimensions stay where the first index stood, or go to the front when the indices are apart."""
    source, indices = op.args
    assert isinstance(indices, tuple)
    placed = {d: i for d, i in enumerate(indices) if i is not None}
    if list(placed) == [0] and b.dtype(placed[0]) == "bool":
        marked = b.op("Transpose", b.op("NonZero", b.value(placed[0])), perm=[1, 0])
        return b.op("GatherND", b.value(source), marked)
    if any(b.dtype(i) in ("bool", "u8") for i in placed.values()):
        raise Unsupported("indexing with a mask")
    dims = list(placed)
    value, rank = b.value(source), b.rank(source)
    if len(dims) == 1:
        return b.op("Gather", value, b.value(placed[dims[0]]), axis=dims[0])
    order = dims + [d for d in range(rank) if d not in placed]
    if order != list(range(rank)):
        value = b.op("Transpose", value, perm=order)
    found = b.op("GatherND", value, _coordinates(b, [placed[d] for d in dims]))
    new = len(op.types[0].shape) - (rank - len(dims))
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    if not adjacent or dims[0] == 0:
        return found
    first = dims[0]
    rest = list(range(new, new + rank - len(dims)))
    perm = rest[:first] + list(range(new)) + rest[first:]
    return b.op("Transpose", found, perm=perm)


def _coordinates(b: Builder, indices: list[Arg]) -> ir.Value:
    """Indices broadcast together and joined along a new last dimension."""
    values = [b.value(i, "i64") for i in indices]
    shapes = {b.type(i).shape for i in indices}
    if len(shapes) > 1:
        total = values[0]
        for value in values[1:]:
            total = b.op("Add", total, value)
        shape = b.op("Shape", total)
        values = [b.op("Expand", value, shape) for value in values]
    return b.op("Concat", *(b.op("Unsqueeze", v, b.ints(-1)) for v in values), axis=-1)


def _one_hot(b: Builder, op: Op) -> ir.Value:
    source, classes = op.args
    if not isinstance(classes, int) or classes < 0:
        raise Unsupported("one_hot without a number of classes")
    return b.op("OneHot", b.value(source), b.const(classes), b.ints(0, 1), axis=-1)


REDUCE: Rules = {
    **dict.fromkeys(("aten.mean.dim", "aten.mean.default"), _reduce("ReduceMean")),
    **dict.fromkeys(("aten.sum.dim_IntList", "aten.sum.default"), _reduce("ReduceSum")),
    "aten.amax.default": _reduce("ReduceMax"),
    "aten.amin.default": _reduce("ReduceMin"),
    "aten.max.default": _reduce("ReduceMax"),
    "aten.min.default": _reduce("ReduceMin"),
    **dict.fromkeys(("aten.prod.dim_int", "aten.prod.default"), _reduce("ReduceProd")),
    "aten.logsumexp.default": _reduce("ReduceLogSumExp"),
    **dict.fromkeys(
        ("aten.any.dim", "aten.any.dims", "aten.any.default"), _quantifier("ReduceMax")
    ),
    **dict.fromkeys(
        ("aten.all.dim", "aten.all.dims", "aten.all.default"), _quantifier("ReduceMin")
    ),
    "aten.nonzero.default": _nonzero,
    "aten.where.default": _places,
    "aten.isin.Tensor_Tensor": _is_in,
    **dict.fromkeys(("aten.var.correction", "aten.var.dim"), _variance),
    **dict.fromkeys(("aten.std.correction", "aten.std.dim"), _deviation),
    "aten.linalg_vector_norm.default": _norm,
    "aten.softmax.int": _softmax("Softmax"),
    "aten._softmax.default": _softmax("Softmax"),
    "aten.log_softmax.int": _softmax("LogSoftmax"),
    "aten._log_softmax.default": _softmax("LogSoftmax"),
    "aten.cumsum.default": _cumsum,
    "aten.cummax.default": _so_far("Max"),
    "aten.cummin.default": _so_far("Min"),
    "aten.topk.default": _topk,
    "aten.sort.default": _sort,
    "aten.argmax.default": _place("ArgMax"),
    "aten.argmin.default": _place("ArgMin"),
    "aten.max.dim": _extreme("Max"),
    "aten.min.dim": _extreme("Min"),
    "aten.gather.default": _gather,
    "aten.index_select.default": _index_select,
    "aten.embedding.default": _embedding,
    "aten.index.Tensor": _index,
    "aten.one_hot.default": _one_hot,
}
