"""ONNX for operations that move entries without computing: shapes, slices, joins, factories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from prunec.backends.onnx_build import Builder, Rule, Rules, Unsupported, argument
from prunec.ir.graph import Arg, Op, Ref

__all__ = ["SHAPE", "cut"]

_END = 2**63 - 1


def _reshape(b: Builder, op: Op) -> ir.Value:
    wanted = op.args[1]
    assert isinstance(wanted, tuple)
    result, source = op.types[0], b.type(op.args[0])
    if 0 in result.shape:  # a 0 would be read as "as in the source"
        return b.op("Reshape", b.value(op.args[0]), b.shape(wanted, result), allowzero=1)
    return b.op("Reshape", b.value(op.args[0]), b.shape(wanted, result, source))


def _as_reshape(b: Builder, op: Op) -> ir.Value:
    """Flatten, unflatten and their like: the result's type says all."""
    result, source = op.types[0], b.type(op.args[0])
    wanted = (-1,) * len(result.shape)
    return b.op("Reshape", b.value(op.args[0]), b.shape(wanted, result, source))


def _expand(b: Builder, op: Op) -> ir.Value:
    wanted = op.args[1]
    assert isinstance(wanted, tuple)
    result, source = op.types[0], b.type(op.args[0])
    added = len(result.shape) - len(source.shape)
    sizes: list[Arg] = []
    for i, (arg, dim) in enumerate(zip(wanted, result.shape, strict=True)):
        kept = i >= added and source.shape[i - added] == dim
        sizes.append(1 if kept else dim if isinstance(dim, int) else arg)
    if all(isinstance(size, int) for size in sizes):
        return b.op("Expand", b.value(op.args[0]), b.const(sizes))
    parts = [
        b.ints(s)
        if isinstance(s, int)
        else b.size(s.name if isinstance(s, Ref) else result.shape[i])
        for i, s in enumerate(sizes)
    ]
    return b.op("Expand", b.value(op.args[0]), b.op("Concat", *parts, axis=0))


def _expand_as(b: Builder, op: Op) -> ir.Value:
    return b.op("Expand", b.value(op.args[0]), b.op("Shape", b.value(op.args[1])))


def _transpose(b: Builder, op: Op) -> ir.Value:
    order = list(range(b.rank(op.args[0])))
    left, right = op.args[1:3] if len(op.args) > 1 else (0, len(order) - 1)
    assert isinstance(left, int)
    assert isinstance(right, int)
    order[left], order[right] = order[right], order[left]
    return b.op("Transpose", b.value(op.args[0]), perm=order)


def _permute(b: Builder, op: Op) -> ir.Value:
    return b.op("Transpose", b.value(op.args[0]), perm=_ints(op.args[1]))


def _ints(arg: Arg) -> list[int]:
    items = arg if isinstance(arg, tuple) else (arg,)
    if not all(isinstance(i, int) for i in items):
        raise Unsupported(f"computed numbers {arg!r}")
    return [int(i) for i in items if isinstance(i, int)]


def _unsqueeze(b: Builder, op: Op) -> ir.Value:
    return b.op("Unsqueeze", b.value(op.args[0]), b.ints(*_ints(op.args[1])))


def _squeeze(b: Builder, op: Op) -> ir.Value:
    """Torch leaves dimensions alone that are not 1; the type tells which are."""
    shape = b.type(op.args[0]).shape
    dims = _ints(op.args[1]) if len(op.args) > 1 else range(len(shape))
    gone = [d for d in dims if shape[d] == 1]
    if not gone:
        return b.op("Identity", b.value(op.args[0]))
    return b.op("Squeeze", b.value(op.args[0]), b.ints(*gone))


def _tensors(b: Builder, op: Op) -> list[ir.Value]:
    assert isinstance(op.args[0], tuple)
    # torch skips the shapeless empty tensor that old code starts a concatenation with
    return [b.value(a, op.types[0].dtype) for a in op.args[0] if b.type(a).shape != (0,)]


def _cat(b: Builder, op: Op) -> ir.Value:
    return b.op("Concat", *_tensors(b, op), axis=_dim(op, 1))


def _stack(b: Builder, op: Op) -> ir.Value:
    dim = _dim(op, 1)
    parts = [b.op("Unsqueeze", value, b.ints(dim)) for value in _tensors(b, op)]
    return b.op("Concat", *parts, axis=dim)


def _dim(op: Op, position: int, default: int = 0) -> int:
    found = op.args[position] if len(op.args) > position else op.kwarg("dim", default)
    if not isinstance(found, int):
        raise Unsupported(f"{op.name} over {found!r}")
    return found


def _split(b: Builder, op: Op) -> Sequence[ir.Value]:
    dim = _dim(op, 2)
    sizes = [t.shape[dim] for t in op.types]
    if all(isinstance(size, int) for size in sizes):
        lengths = b.const(sizes)
    else:
        lengths = b.op("Concat", *map(b.size, sizes), axis=0)
    return b.many("Split", b.value(op.args[0]), lengths, outputs=len(sizes), axis=dim)


def _chunk(b: Builder, op: Op) -> Sequence[ir.Value]:
    """Parts of computed sizes too: as many alike as go, and what is left."""
    dim, count = _dim(op, 2), len(op.types)
    if all(isinstance(t.shape[dim], int) for t in op.types):
        return _split(b, op)
    if op.args[1] != count:
        raise Unsupported("fewer parts than asked for")
    return b.many("Split", b.value(op.args[0]), outputs=count, axis=dim, num_outputs=count)


def _unbind(b: Builder, op: Op) -> Sequence[ir.Value]:
    dim, count = _dim(op, 1), len(op.types)
    ones = b.ints(*[1] * count)
    parts = b.many("Split", b.value(op.args[0]), ones, outputs=count, axis=dim)
    return [b.op("Squeeze", part, b.ints(dim)) for part in parts]


def _slice(b: Builder, op: Op) -> ir.Value:
    source, dim, start, end, step = op.args
    return cut(b, b.value(source), _ints(dim)[0], start, end, step)


def cut(b: Builder, value: ir.Value, dim: int, start: Arg, end: Arg, step: Arg = 1) -> ir.Value:
    """The part between two bounds, which may be computed; None stands for an end."""
    bounds = [_bound(b, start, 0), _bound(b, end, _END)]
    return b.op("Slice", value, *bounds, b.ints(dim), b.ints(*_ints(step)))


def _bound(b: Builder, bound: Arg, default: int) -> ir.Value:
    if isinstance(bound, Ref):
        return b.value(bound)
    return b.ints(bound if isinstance(bound, int) else default)


def _select(b: Builder, op: Op) -> ir.Value:
    source, dim, index = op.args
    return b.op("Gather", b.value(source), b.scalar(index), axis=_ints(dim)[0])


def _diff(b: Builder, op: Op) -> ir.Value:
    """Each entry less the one before it, over what may be given in front and behind."""
    dim = argument(op, 2, -1)
    if argument(op, 1, 1) != 1 or not isinstance(dim, int):
        raise Unsupported("differences of differences")
    joined = (argument(op, 3, None), op.args[0], argument(op, 4, None))
    parts = [b.value(part) for part in joined if part is not None]
    value = b.op("Concat", *parts, axis=dim) if len(parts) > 1 else parts[0]
    return b.op("Sub", cut(b, value, dim, 1, None), cut(b, value, dim, 0, -1))


def _meshgrid(b: Builder, op: Op) -> Sequence[ir.Value]:
    """Each vector along a dimension of its own, repeated along the others."""
    tensors, order = op.args[0], op.kwarg("indexing", "ij")
    assert isinstance(tensors, tuple)
    count = len(tensors)
    dims = [1, 0, *range(2, count)] if order == "xy" and count > 1 else list(range(count))
    sizes = [b.dim(b.value(tensor), 0) for tensor in tensors]
    shape = b.op("Concat", *(sizes[dims.index(d)] for d in range(count)), axis=0)
    found = []
    for tensor, dim in zip(tensors, dims, strict=True):
        along = [-1 if d == dim else 1 for d in range(count)]
        found.append(b.op("Expand", b.op("Reshape", b.value(tensor), b.ints(*along)), shape))
    return found


def _flip(b: Builder, op: Op) -> ir.Value:
    dims = _ints(op.args[1])
    count = len(dims)
    bounds = (b.ints(*[-1] * count), b.ints(*[-_END] * count))
    return b.op("Slice", b.value(op.args[0]), *bounds, b.ints(*dims), b.ints(*[-1] * count))


def _roll(b: Builder, op: Op) -> ir.Value:
    value = b.value(op.args[0])
    if len(op.args) < 3 or not op.args[2]:
        raise Unsupported("roll of a flattened tensor")
    for shift, dim in zip(_ints(op.args[1]), _ints(op.args[2]), strict=True):
        parts = (cut(b, value, dim, -shift, None), cut(b, value, dim, 0, -shift))
        value = b.op("Concat", *parts, axis=dim) if shift else value
    return value


def _unfold(b: Builder, op: Op) -> ir.Value:
    """Windows along a dimension: their entries by number, the window as the last dimension."""
    source = op.args[0]
    dim, size, step = (_ints(n)[0] for n in op.args[1:])
    rank = b.rank(source)
    dim %= rank
    count = op.types[0].shape[dim]
    within = b.const([list(range(size))])
    if isinstance(count, int):
        starts = b.const([[i * step] for i in range(count)])
    else:
        numbers = b.op("Range", b.const(0), b.op("Squeeze", b.size(count), b.ints(0)), b.const(1))
        starts = b.op("Unsqueeze", b.op("Mul", numbers, b.const(step)), b.ints(1))
    found = b.op("Gather", b.value(source), b.op("Add", starts, within), axis=dim)
    order = [d for d in range(rank + 1) if d != dim + 1]
    return b.op("Transpose", found, perm=[*order, dim + 1])


def _fill(b: Builder, op: Op) -> ir.Value:
    fill = b.value(op.args[1], op.types[0].dtype)
    return b.op("Expand", fill, b.op("Shape", b.value(op.args[0])))


def _repeat(b: Builder, op: Op) -> ir.Value:
    times = op.args[1]
    assert isinstance(times, tuple)
    value = b.value(op.args[0])
    added = len(times) - b.rank(op.args[0])
    if added > 0:
        value = b.op("Unsqueeze", value, b.ints(*range(added)))
    times = (1,) * -added + times  # a tile may name the last dimensions only
    return b.op("Tile", value, _vector(b, times))


def _repeat_interleave(b: Builder, op: Op) -> ir.Value:
    times, dim = _ints(op.args[1])[0], _dim(op, 2)
    rank = b.rank(op.args[0])
    value = b.op("Unsqueeze", b.value(op.args[0]), b.ints(dim + 1))
    sizes = [1] * (rank + 1)
    sizes[dim + 1] = times
    value = b.op("Expand", value, b.ints(*sizes))
    wanted = [0] * rank
    wanted[dim] = -1
    # 0 copies by position: what follows the dimension has moved by one
    for i in range(dim + 1, rank):
        size = b.type(op.args[0]).shape[i]
        if not isinstance(size, int):
            raise Unsupported("repeat_interleave before a dynamic dimension")
        wanted[i] = size
    return b.op("Reshape", value, b.ints(*wanted))


def _pad(b: Builder, op: Op) -> ir.Value:
    amounts = op.args[1]
    assert isinstance(amounts, tuple)
    mode = op.args[2] if len(op.args) > 2 and isinstance(op.args[2], str) else "constant"
    fill = op.args[-1] if len(op.args) > 2 and not isinstance(op.args[-1], str) else 0
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    rank, dtype = b.rank(op.args[0]), op.types[0].dtype
    before: list[Arg] = [0] * rank
    after = before.copy()
    for i in range(len(amounts) // 2):  # torch counts from the last dimension
        before[rank - 1 - i], after[rank - 1 - i] = amounts[2 * i : 2 * i + 2]
    pads = _vector(b, [*before, *after])
    value = b.value(op.args[0])
    if mode != "constant":
        return b.op("Pad", value, pads, mode=modes[str(mode)])
    return b.op("Pad", value, pads, b.const(fill if fill is not None else 0, dtype))


def _triangle(upper: bool) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        diagonal = op.args[1] if len(op.args) > 1 else 0
        return b.op("Trilu", b.value(op.args[0]), b.scalar(diagonal), upper=int(upper))

    return write


def _range(b: Builder, op: Op) -> ir.Value:
    bounds: tuple[Arg, ...] = op.args
    if len(bounds) == 1:
        bounds = (0, *bounds)
    start, end, step = (*bounds, 1)[:3]
    dtype = op.types[0].dtype
    if all(isinstance(x, int | float) for x in (start, end, step)):
        return b.const(np.arange(start, end, step), dtype)  # type: ignore[arg-type]
    parts = [b.scalar(x, dtype) for x in (start, end, step)]
    return b.op("Range", *parts)


def _filled(number: float) -> Rule:
    """A tensor of one number, with the shape of the result."""

    def write(b: Builder, op: Op) -> ir.Value:
        return _constant(b, op, op.args[0] if isinstance(op.args[0], tuple) else None, number)

    return write


def _new_filled(number: float) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        return _constant(b, op, op.args[1], number)

    return write


def _full(b: Builder, op: Op) -> ir.Value:
    return _constant(b, op, op.args[0], op.args[1])


def _new_full(b: Builder, op: Op) -> ir.Value:
    return _constant(b, op, op.args[1], op.args[2])


def _full_like(b: Builder, op: Op) -> ir.Value:
    return _constant(b, op, None, op.args[1])


def _scalar_tensor(b: Builder, op: Op) -> ir.Value:
    return _constant(b, op, (), op.args[0])


def _constant(b: Builder, op: Op, sizes: Arg, number: Arg) -> ir.Value:
    """`number` broadcast to `sizes`, or to the sizes of the first operand."""
    result = op.types[0]
    fill = b.scalar(number, result.dtype)
    if not result.shape:
        return fill
    if all(isinstance(dim, int) for dim in result.shape):
        return b.op("Expand", fill, b.const(list(result.shape)))
    if isinstance(sizes, tuple):
        return b.op("Expand", fill, b.shape(sizes, result))
    return b.op("Expand", fill, b.op("Shape", b.value(op.args[0])))


def _item(b: Builder, op: Op) -> ir.Value:
    """A number out of a tensor; a size, as all of them, as a vector of one."""
    value = b.value(op.args[0])
    if op.types[0].dtype != "index":
        return b.op("Reshape", value, b.const([], "i64"))
    return b.op("Reshape", b.cast(value, "i64"), b.ints(1))


def _sym_size(b: Builder, op: Op) -> ir.Value:
    return b.dim(b.value(op.args[0]), _dim(op, 1))


def _sizes(name: str) -> Rule:
    """Arithmetic on sizes."""

    def write(b: Builder, op: Op) -> ir.Value:
        left, right = (_number(b, a) for a in op.args)
        return b.arithmetic(name, left, right)

    return write


def _negative(b: Builder, op: Op) -> ir.Value:
    return b.op("Neg", _number(b, op.args[0]))


def _vector(b: Builder, numbers: Sequence[Arg]) -> ir.Value:
    """Integers, some of which may be computed."""
    if all(isinstance(n, int) for n in numbers):
        return b.const(list(numbers))
    return b.op("Concat", *(_number(b, n) for n in numbers), axis=0)


def _number(b: Builder, arg: Arg) -> ir.Value:
    if isinstance(arg, Ref):
        return b.value(arg)
    return b.ints(*_ints(arg))


_LIKE = {"zeros": 0, "ones": 1}

SHAPE: Rules = {
    "aten.reshape.default": _reshape,
    **dict.fromkeys(
        (
            "aten.flatten.using_ints",
            "aten.unflatten.int",
            "aten.reshape_as.default",
        ),
        _as_reshape,
    ),
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand_as,
    "aten.transpose.int": _transpose,
    "aten.permute.default": _permute,
    "aten.unsqueeze.default": _unsqueeze,
    **dict.fromkeys(("aten.squeeze.dim", "aten.squeeze.dims"), _squeeze),
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    **dict.fromkeys(
        (
            "aten.split.Tensor",
            "aten.split.sizes",
            "aten.split_with_sizes.default",
        ),
        _split,
    ),
    "aten.chunk.default": _chunk,
    "aten.unbind.int": _unbind,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.diff.default": _diff,
    "aten.meshgrid.indexing": _meshgrid,
    "aten.flip.default": _flip,
    "aten.roll.default": _roll,
    "aten.unfold.default": _unfold,
    **dict.fromkeys(("aten.fill.Scalar", "aten.fill.Tensor"), _fill),
    "aten.repeat.default": _repeat,
    "aten.tile.default": _repeat,
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    "aten.tril.default": _triangle(upper=False),
    "aten.triu.default": _triangle(upper=True),
    **dict.fromkeys(("aten.arange.default", "aten.arange.start", "aten.arange.start_step"), _range),
    **{f"aten.{name}.default": _filled(n) for name, n in _LIKE.items()},
    **{f"aten.{name}_like.default": _filled(n) for name, n in _LIKE.items()},
    **{f"aten.new_{name}.default": _new_filled(n) for name, n in _LIKE.items()},
    "aten.new_empty.default": _new_filled(0),
    "aten.full.default": _full,
    "aten.new_full.default": _new_full,
    "aten.full_like.default": _full_like,
    "aten.scalar_tensor.default": _scalar_tensor,
    "aten.item.default": _item,
    "aten.sym_size.int": _sym_size,
    **{
        f"py.{name}": _sizes(name)
        for name in ("add", "sub", "mul", "floordiv", "mod", "max", "min")
    },
    "py.neg": _negative,
}
