"""Rules of aten operations that take tensors apart or put them together, at known places."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_args import FAR, argument, dim_of, path_of
from prunec.ir.graph import Arg, Dim, Op, Ref
from prunec.ir.infer import Dims, Typing
from prunec.ir.unify import AxisId

__all__ = [
    "cat",
    "concatenated",
    "glu",
    "narrow",
    "pad",
    "pieces",
    "select",
    "select_scatter",
    "slice_",
    "slice_scatter",
    "split",
    "stack",
    "unbind",
]


def select(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    t.axes.pin(x.pop(dim_of(op.args[1], len(x))), "one index of it is selected by number")
    return [x]


def unbind(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    t.axes.pin(x.pop(dim_of(argument(op, 1, "dim", 0), len(x))), "it is taken apart by number")
    return [list(x) for _ in op.results]


def _bounds(start: Arg, end: Arg, size: int) -> tuple[int, int] | None:
    """Slice bounds as Python means them; None when they are computed at run time."""
    if isinstance(start, Ref) or isinstance(end, Ref):
        return None
    first, last, _ = slice(cast(int | None, start), cast(int | None, end)).indices(size)
    return first, max(first, last)


def slice_(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = dim_of(argument(op, 1, "dim", 0), len(x))
    start, end = argument(op, 2, "start"), argument(op, 3, "end")
    step = argument(op, 4, "step", 1)
    size = t.axes.size(x[d])
    static = isinstance(t.graph.types[cast(Ref, op.args[0]).name].shape[d], int)
    bounds = _bounds(start, end, size) if static else None
    strided = None if bounds is None or step == 1 else _strided(t, x[d], bounds, cast(int, step))
    if strided is not None:
        x[d] = strided
        return [x]
    if bounds is None or step != 1:
        t.axes.pin(x[d], f"`{op.name}` with a step or bounds known at run time")
        x[d] = t.fresh(op.types[0].shape[d : d + 1], "part of a strided or dynamic slice")[0]
        return [x]
    if bounds == (0, size):
        return [x]
    x[d] = _slice_static(t, op, x[d], bounds, (start, end))
    return [x]


def _strided(t: Typing, axis: AxisId, bounds: tuple[int, int], step: int) -> AxisId | None:
    """Every other index (`x[..., 1::2]`): one index of the inner factor of a product."""
    size = t.axes.size(axis)
    if size % step or bounds[0] >= step or bounds[1] <= size - step + bounds[0]:
        return None
    pair = t.axes.split(axis, size // step)
    if pair is None:
        return None
    t.axes.pin(pair[1], "one index of it is selected by number")
    return pair[0]


def slice_scatter(t: Typing, op: Op) -> list[Dims] | None:
    """Writes a value over a part of another one."""
    x, source = list(t.of(op.args[0])), list(t.of(op.args[1]))
    d = dim_of(argument(op, 2, "dim", 0), len(x))
    given = argument(op, 3, "start"), argument(op, 4, "end")
    static = isinstance(op.types[0].shape[d], int)
    bounds = _bounds(*given, t.axes.size(x[d])) if static else None
    if bounds is None or argument(op, 5, "step", 1) != 1:
        return None
    part = list(x)
    if bounds != (0, t.axes.size(x[d])):
        part[d] = _slice_static(t, op, x[d], bounds, given, position=3)
    t.unify(part, source)
    return [x]


def select_scatter(t: Typing, op: Op) -> list[Dims]:
    """Writes a value over one index of another one."""
    x = list(t.of(op.args[0]))
    d = dim_of(argument(op, 2, "dim"), len(x))
    t.axes.pin(x[d], "one index of it is written by number")
    t.unify([axis for i, axis in enumerate(x) if i != d], t.of(op.args[1]))
    return [x]


def _slice_static(
    t: Typing,
    op: Op,
    axis: AxisId,
    bounds: tuple[int, int],
    given: tuple[Arg, Arg],
    position: int = 2,
) -> AxisId:
    """The part of an axis between two bounds, which stand at `position` and behind."""
    first, last = bounds
    size = t.axes.size(axis)
    before, rest = t.axes.cut(axis, first) or (None, None) if first else (t.axes.sum([]), axis)
    if rest is None or before is None:
        return _uncut(t, op, axis, last - first)
    middle, after = (rest, t.axes.sum([])) if last == size else (None, None)
    if middle is None:
        pair = t.axes.cut(rest, last - first) if last > first else (t.axes.sum([]), rest)
        if pair is None:
            return _uncut(t, op, axis, last - first)
        middle, after = pair
    assert after is not None
    _bound_literal(t, op, position, "start", given[0], [before], [middle, after])
    _bound_literal(t, op, position + 1, "end", given[1], [before, middle], [after])
    return middle


def _bound_literal(
    t: Typing, op: Op, position: int, name: str, given: Arg, below: Dims, above: Dims
) -> None:
    """A bound counts from the start, or, when negative, from the end."""
    if not isinstance(given, int) or given == 0 or given >= FAR:
        return
    path = path_of(op, position, name)
    if given > 0:
        t.literal(path, *below)
    else:
        t.literal((*path, "negative"), *above)


def _uncut(t: Typing, op: Op, axis: AxisId, size: int) -> AxisId:
    reason = f"`{op.name}` cuts {t.axes.show(axis)} across its structure"
    t.axes.pin(axis, reason)
    return t.fresh([size], reason)[0]


def narrow(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    d, start, length = dim_of(op.args[1], len(x)), op.args[2], op.args[3]
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    rest = t.axes.cut(x[d], start) if start else (t.axes.sum([]), x[d])
    pair = rest and (t.axes.cut(rest[1], length) if length < t.axes.size(rest[1]) else (rest[1],))
    if not pair or rest is None:
        return None
    t.literal((2,), rest[0])
    t.literal((3,), pair[0])
    x[d] = pair[0]
    return [x]


def split(t: Typing, op: Op) -> list[Dims] | None:
    x = t.of(op.args[0])
    d = dim_of(argument(op, 2, "dim", 0), len(x))
    if any(isinstance(type_.shape[d], str) for type_ in op.types):
        t.axes.pin(x[d], f"`{op.name}` cuts a size known at run time")
        return [x[:d] + t.fresh(ty.shape[d : d + 1]) + x[d + 1 :] for ty in op.types]
    sizes = [cast(int, type_.shape[d]) for type_ in op.types]
    parts = pieces(t, x[d], sizes)
    if parts is None:
        return None
    _split_literals(t, op, parts, sizes)
    return [x[:d] + [part] + x[d + 1 :] for part in parts]


def pieces(t: Typing, axis: AxisId, sizes: list[int]) -> Dims | None:
    """See an axis as the sum of parts of these sizes; None when it has no such form."""
    parts: Dims = []
    rest = axis
    for size in sizes:
        pair: tuple[AxisId, AxisId] | None
        if size == 0:
            pair = t.axes.sum([]), rest
        elif size == t.axes.size(rest):
            pair = rest, t.axes.sum([])
        else:
            pair = t.axes.cut(rest, size)
        if pair is None:
            return None
        parts.append(pair[0])
        rest = pair[1]
    return parts


def _split_literals(t: Typing, op: Op, parts: Dims, sizes: list[int]) -> None:
    given = op.args[1]
    if isinstance(given, tuple):
        for i in range(len(given)):
            # `tensor_split` is given where to cut, the others how long each part is
            below = parts[: i + 1] if "tensor_split" in op.name else parts[i : i + 1]
            t.literal((1, i), *below)
        return
    # one number says how all are cut, so the parts must stay equal
    for part, size in zip(parts[1:], sizes[1:], strict=True):
        if size == sizes[0]:
            t.axes.unify(parts[0], part)
        else:
            t.pin([parts[0], part], f"`{op.name}` cuts it into unequal parts by one number")
    if "chunk" not in op.name and "tensor_split" not in op.name:
        t.literal((1,), parts[0])


def cat(t: Typing, op: Op) -> list[Dims]:
    rank = len(op.types[0].shape)
    operands = [t.of(arg) for arg in cast(tuple[Arg, ...], op.args[0])]
    operands = [dims for dims in operands if len(dims) == rank]
    d = dim_of(argument(op, 1, "dim", 0), rank)
    return [concatenated(t, operands, d, op.types[0].shape[d])]


def concatenated(t: Typing, operands: list[Dims], d: int, size: Dim) -> Dims:
    """Operands one behind the other in dimension `d`, which then has that size."""
    result = list(operands[0])
    for dims in operands[1:]:
        for i in range(len(result)):
            if i != d:
                t.axes.unify(result[i], dims[i])
    if isinstance(size, str):
        t.pin([dims[d] for dims in operands], "concatenated at a size known at run time")
        result[d] = t.fresh([size])[0]
    else:
        result[d] = t.axes.sum([dims[d] for dims in operands])
    return result


def stack(t: Typing, op: Op) -> list[Dims]:
    operands = [t.of(arg) for arg in cast(tuple[Arg, ...], op.args[0])]
    result = operands[0]
    for dims in operands[1:]:
        result = t.unify(result, dims)
    d = dim_of(argument(op, 1, "dim", 0), len(result) + 1)
    result = list(result)
    result.insert(d, t.fresh([len(operands)], "each index is a stacked value of its own")[0])
    return [result]


def glu(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    d = dim_of(argument(op, 1, "dim", -1), len(x))
    halves = t.axes.cut(x[d], t.axes.size(x[d]) // 2)
    if halves is None:
        return None
    t.axes.unify(*halves)
    x[d] = halves[0]
    return [x]


def pad(t: Typing, op: Op) -> list[Dims]:
    x, amounts = list(t.of(op.args[0])), cast(tuple[Arg, ...], op.args[1])
    for i in range(len(amounts) // 2):
        d = len(x) - 1 - i
        if amounts[2 * i] != 0 or amounts[2 * i + 1] != 0:
            t.axes.pin(x[d], "padded")
            x[d] = t.fresh(op.types[0].shape[d : d + 1], "padded")[0]
    return [x]
