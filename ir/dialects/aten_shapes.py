"""Rules of aten operations that lay out the same entries in other dimensions."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_args import argument, dim_of, dims_of, path_of
from prunec.ir.graph import Arg, Op
from prunec.ir.infer import Dims, Path, Typing
from prunec.ir.unify import AxisId

__all__ = [
    "expand",
    "expand_as",
    "movedim",
    "permute",
    "repeat",
    "repeat_interleave",
    "reshape",
    "reshape_as",
    "reversed_dims",
    "squeeze",
    "swap_last",
    "transpose",
    "unsqueeze",
]


def reshape(t: Typing, op: Op) -> list[Dims]:
    """Row-major: the product of the dimensions before is the product of those after."""
    x = t.of(op.args[0])
    dims = _laid_out(t, x, t.shape(op.types[0].shape))
    if op.name.startswith("aten.flatten"):
        return [dims]
    if op.name.startswith("aten.unflatten"):
        first = dim_of(op.args[1], len(x))
        path: Path = (2,)
        sizes = cast(tuple[Arg, ...], op.args[2])
    else:
        first, path = 0, path_of(op, 1, "size" if "size" in dict(op.kwargs) else "shape")
        sizes = cast(tuple[Arg, ...], argument(op, 1, cast(str, path[-1])))
    for i, size in enumerate(sizes):
        t.size_argument((*path, i), size, dims[first + i])
    return [dims]


def reshape_as(t: Typing, op: Op) -> list[Dims]:
    x, like = t.of(op.args[0]), t.of(op.args[1])
    return [t.unify(_laid_out(t, x, t.shape(op.types[0].shape)), like)]


def _laid_out(t: Typing, x: Dims, sizes: list[int]) -> Dims:
    """Dimensions of these sizes whose product is that of `x`. What both have in the same places
    at the beginning or the end is the same; only what lies between is taken apart."""
    own, most = t.axes.sizes(x), min(len(x), len(sizes))
    first = last = 0
    while first < most and own[first] == sizes[first]:
        first += 1
    while last < most - first and own[-1 - last] == sizes[-1 - last]:
        last += 1
    middle = t.fresh(sizes[first : len(sizes) - last])
    t.axes.unify(t.axes.product(x[first : len(x) - last]), t.axes.product(middle))
    return [*x[:first], *middle, *x[len(x) - last :]]


def expand(t: Typing, op: Op) -> list[Dims]:
    x, shape = t.of(op.args[0]), op.types[0].shape
    sizes = cast(tuple[Arg, ...], argument(op, 1, "size"))
    dims = t.fresh(shape)
    new = len(shape) - len(x)
    for i in range(len(shape)):
        path = (*path_of(op, 1, "size"), i)
        if i >= new and t.axes.size(x[i - new]) > 1:
            dims[i] = x[i - new]
            t.size_argument(path, sizes[i], dims[i])
        else:
            dims[i] = t.new_dimension(path, sizes[i], dims[i])
    return [dims]


def expand_as(t: Typing, op: Op) -> list[Dims]:
    return [t.unify(t.of(op.args[1]), t.of(op.args[0]))]


def repeat(t: Typing, op: Op) -> list[Dims]:
    x, repeats = t.of(op.args[0]), cast(tuple[Arg, ...], op.args[1])
    padded = [t.axes.UNIT] * (len(repeats) - len(x)) + list(x)
    first = len(padded) - len(repeats)  # a tile may name the last dimensions only
    dims = padded[:first]
    for i, (axis, times) in enumerate(zip(padded[first:], repeats, strict=True)):
        if times == 1:
            dims.append(axis)
            continue
        outer = _times(t, op, axis, first + i, times)
        dims.append(t.axes.product([outer, axis]))
        if isinstance(times, int):
            t.literal((1, i), outer)
    return [dims]


def _times(t: Typing, op: Op, axis: AxisId, dim: int, count: Arg) -> AxisId:
    """The axis of a repetition; its size is what the result's size leaves."""
    if isinstance(count, int):
        return t.axes.atom(count)
    total = t.shape(op.types[0].shape)[dim]
    outer = t.axes.atom(total // max(t.axes.size(axis), 1))
    t.axes.mark(outer, "runtime", "")
    t.axes.pin(outer, "its size is known at run time only")
    return outer


def repeat_interleave(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    where = argument(op, 2, "dim")
    if not isinstance(op.args[1], int) or where is None:
        return None
    d = dim_of(where, len(x))
    inner = _times(t, op, x[d], d, op.args[1])
    x[d] = t.axes.product([x[d], inner])
    t.literal((1,), inner)
    total = op.kwarg("output_size")
    if total is not None:
        t.size_argument(("output_size",), total, x[d])
    return [x]


def unsqueeze(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    x.insert(dim_of(op.args[1], len(x) + 1), t.axes.UNIT)
    return [x]


def squeeze(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    over = dims_of(op.args[1] if len(op.args) > 1 else None, len(x))
    for d in over:
        t.axes.pin(x[d], f"`{op.name}` would drop it if one index were left")
    return [[a for d, a in enumerate(x) if d not in over or t.axes.size(a) > 1]]


def permute(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    return [[x[d] for d in dims_of(op.args[1], len(x))]]


def transpose(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    a, b = dim_of(op.args[1], len(x)), dim_of(op.args[2], len(x))
    x[a], x[b] = x[b], x[a]
    return [x]


def swap_last(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    return [x[:-2] + x[-2:][::-1]]


def reversed_dims(t: Typing, op: Op) -> list[Dims]:
    return [t.of(op.args[0])[::-1]]


def movedim(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    source, to = dims_of(op.args[1], len(x)), dims_of(op.args[2], len(x))
    order = [d for d in range(len(x)) if d not in source]
    for target, d in sorted(zip(to, source, strict=True)):
        order.insert(target, d)
    return [[x[d] for d in order]]
