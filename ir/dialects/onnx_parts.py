"""Rules of ONNX operations that take tensors apart or put them together."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_parts import concatenated, pieces
from prunec.ir.dialects.onnx_args import entries, given, integer, integers, say, say_sizes
from prunec.ir.graph import Op, Ref
from prunec.ir.infer import Dims, Typing
from prunec.ir.runtime import Size
from prunec.ir.unify import AxisId

__all__ = [
    "concat",
    "gather",
    "gather_elements",
    "gather_nd",
    "pad",
    "resize",
    "scatter_elements",
    "scatter_nd",
    "slice_",
    "split",
]

ENDLESS = 1 << 30
"""Bounds from here on mean the end of the dimension."""


def concat(t: Typing, op: Op) -> list[Dims]:
    """Numbers of the graph among data have no other dimension of more than one index."""
    rank = len(op.types[0].shape)
    d = integer(op, "axis") % rank
    operands = []
    for arg in op.args:
        own: Dims = t.of(arg) if isinstance(arg, Ref) else []
        if isinstance(arg, tuple):
            own = t.fresh([len(arg)], "numbers of the graph")
        operands.append(own)
    return [concatenated(t, operands, d, op.types[0].shape[d])]


def split(t: Typing, op: Op) -> list[Dims] | None:
    x = t.of(op.args[0])
    d = integer(op, "axis") % len(x)
    if any(isinstance(type_.shape[d], str) for type_ in op.types):
        t.axes.pin(x[d], f"`{op.name}` cuts a size known at run time")
        return [x[:d] + t.fresh(ty.shape[d : d + 1]) + x[d + 1 :] for ty in op.types]
    parts = pieces(t, x[d], [cast(int, type_.shape[d]) for type_ in op.types])
    if parts is None:
        return None
    if integers(op, "split") is not None:
        say_sizes(t, ("split",), parts)
    elif given(op, 1) is not None:
        if entries(t, op, 1) is None:
            return None
        for i, part in enumerate(parts):
            say(t, op, 1, i, part)
    else:
        _equal(t, op, parts)
    return [x[:d] + [part] + x[d + 1 :] for part in parts]


def _equal(t: Typing, op: Op, parts: Dims) -> None:
    """Without sizes the parts are equal, but for a last one that is smaller."""
    for part in parts[1:]:
        if t.axes.size(part) == t.axes.size(parts[0]):
            t.axes.unify(parts[0], part)
        else:
            t.pin([parts[0], part], f"`{op.name}` cuts it into unequal parts by their number")


# Slices


def slice_(t: Typing, op: Op) -> list[Dims] | None:
    """Bounds as attributes in older versions, as operands in newer ones."""
    x = list(t.of(op.args[0]))
    if integers(op, "starts") is not None:
        starts, ends = integers(op, "starts") or (), integers(op, "ends") or ()
        at = integers(op, "axes") or tuple(range(len(starts)))
        for i, axis in enumerate(at):
            bounds = Size((), starts[i]), Size((), ends[i])
            _slice(t, op, x, axis % len(x), bounds, (("starts", i), ("ends", i)), 1)
        return [x]
    begin, end = entries(t, op, 1), entries(t, op, 2)
    axes = entries(t, op, 3) if given(op, 3) is not None else None
    steps = entries(t, op, 4) if given(op, 4) is not None else None
    if begin is None or end is None:
        return _somewhere(t, op, x)
    for position in (1, 2):
        if isinstance(arg := op.args[position], Ref):
            t.understood(arg.name)
    for i in range(len(begin)):
        d = (axes[i].value if axes else i) % len(x)
        paths = (1, i), (2, i)
        _slice(t, op, x, d, (begin[i], end[i]), paths, steps[i].value if steps else 1)
    return [x]


def _somewhere(t: Typing, op: Op, x: Dims) -> list[Dims] | None:
    """Bounds that data decide, of dimensions that are named."""
    axes = entries(t, op, 3) if given(op, 3) is not None else None
    if axes is None:
        return None
    for size in axes:
        _dynamic(t, op, x, size.value % len(x))
    return [x]


def _dynamic(t: Typing, op: Op, x: Dims, d: int) -> None:
    t.axes.pin(x[d], f"`{op.name}` with a step or bounds known at run time")
    own = op.types[0].shape[d : d + 1]
    x[d] = t.fresh(own, "part of a strided or dynamic slice")[0]


def _slice(
    t: Typing,
    op: Op,
    x: Dims,
    d: int,
    bounds: tuple[Size, Size],
    paths: tuple[tuple[int | str, int], tuple[int | str, int]],
    step: int,
) -> None:
    size = t.axes.size(x[d])
    given = [b.value for b in bounds]
    first, last, _ = slice(given[0], given[1]).indices(size)
    static = isinstance(t.graph.types[cast(Ref, op.args[0]).name].shape[d], int)
    whole = (first, last) == (0, size) and step == 1
    if whole and _open(bounds[0], bounds[1]):
        return
    if not static or step != 1 or last < first:
        for bound in bounds:
            t.sizes.pin(t, bound)
        _dynamic(t, op, x, d)
        return
    parts = pieces(t, x[d], [first, last - first, size - last])
    if parts is None or not all(_followed(t, b, x[d], parts) for b in bounds):
        for bound in bounds:
            t.sizes.pin(t, bound)
        reason = f"`{op.name}` cuts {t.axes.show(x[d])} across its structure"
        t.axes.pin(x[d], reason)
        x[d] = t.fresh([last - first], reason)[0]
        return
    before, middle, after = parts
    for bound, path, below, above in (
        (bounds[0], paths[0], [before], [middle, after]),
        (bounds[1], paths[1], [before, middle], [after]),
    ):
        if bound.factors or abs(bound.value) >= ENDLESS:
            continue
        computed = isinstance(path[0], int) and isinstance(op.args[path[0]], Ref)
        if computed and bound.value < 0:
            t.pin(above, f"`{op.name}` counts a computed bound from its end")
        elif not computed:
            _literal(t, path, bound.value, below, above)
    x[d] = middle


def _open(start: Size, end: Size) -> bool:
    """A slice of everything that stays one of everything, whatever the size becomes."""
    return start.value <= 0 and not start.factors and end.value >= ENDLESS


def _followed(t: Typing, bound: Size, axis: AxisId, parts: Dims) -> bool:
    """A bound that is computed must keep its place: at a known part of the axis that it cuts."""
    if not bound.factors or abs(bound.value) >= ENDLESS:
        return True
    sizes = [t.axes.size(part) for part in parts]
    at = bound.value
    if not bound.exact or [t.axes.find(f) for f in bound.factors if isinstance(f, int)] != [
        t.axes.find(axis)
    ]:
        return _same_size(t, bound, parts)
    if bound.divisor == 1:
        return at == sum(sizes)
    if t.axes.size(axis) != bound.divisor * at:
        return False
    equal = [part for part in parts if t.axes.size(part)]
    if any(t.axes.size(part) != at for part in equal):
        return False
    return all(t.axes.unify(equal[0], part) for part in equal[1:])


def _same_size(t: Typing, bound: Size, parts: Dims) -> bool:
    """The size of another axis, which is made the one below the bound."""
    if not bound.exact or bound.divisor != 1:
        return False
    below: list[AxisId] = []
    for part in parts:
        if sum(t.axes.size(p) for p in below) == bound.value:
            break
        below.append(part)
    if sum(t.axes.size(p) for p in below) != bound.value:
        return False
    t.sizes.says(t, bound, t.axes.sum(below))
    return True


def _literal(t: Typing, path: tuple[int | str, int], given: int, below: Dims, above: Dims) -> None:
    """A bound counts from the start, or, when negative, from the end."""
    if given > 0:
        t.literal(path, *below)
    elif given < 0:
        t.literal((*path, "negative"), *above)


# By index


def gather(t: Typing, op: Op) -> list[Dims] | None:
    x, at = t.of(op.args[0]), op.args[1]
    d = integer(op, "axis") % len(x)
    if isinstance(at, int):
        t.axes.pin(x[d], "one index of it is selected by number")
        return [x[:d] + x[d + 1 :]]
    if isinstance(at, tuple):
        t.axes.pin(x[d], "indices of it are selected by number")
        return [[*x[:d], *t.fresh([len(at)], "selected by number"), *x[d + 1 :]]]
    t.axes.mark(x[d], "index", "data select from it")
    return [x[:d] + t.of(at) + x[d + 1 :]]


def gather_elements(t: Typing, op: Op) -> list[Dims]:
    x, at = t.of(op.args[0]), t.of(op.args[1])
    d = integer(op, "axis") % len(x)
    t.axes.mark(x[d], "index", "data select from it")
    _others(t, op, d, x, at)
    return [at]


def _others(t: Typing, op: Op, d: int, left: Dims, right: Dims) -> None:
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        if i != d and t.axes.size(a) == t.axes.size(b):
            t.axes.unify(a, b)
        elif i != d:
            t.pin([a, b], f"`{op.name}` reads a part of it")


def gather_nd(t: Typing, op: Op) -> list[Dims] | None:
    x, at = t.of(op.args[0]), t.of(op.args[1])
    batch, depth = integer(op, "batch_dims"), t.axes.size(at[-1])
    t.pin(at[-1:], f"`{op.name}` reads one index a dimension")
    for axis in x[batch : batch + depth]:
        t.axes.mark(axis, "index", "data select from it")
    for a, b in zip(x[:batch], at[:batch], strict=True):
        t.axes.unify(a, b)
    return [at[:-1] + x[batch + depth :]]


def scatter_nd(t: Typing, op: Op) -> list[Dims]:
    x, at, updates = (t.of(arg) for arg in op.args[:3])
    depth = t.axes.size(at[-1])
    written = f"`{op.name}` writes to places that data choose"
    t.pin([*x[:depth], *at], written)
    t.pin(updates[: len(at) - 1], written)
    for a, b in zip(x[depth:], updates[len(at) - 1 :], strict=True):
        t.axes.unify(a, b)
    return [x]


def scatter_elements(t: Typing, op: Op) -> list[Dims]:
    x, at, updates = (t.of(arg) for arg in op.args[:3])
    d = integer(op, "axis") % len(x)
    t.pin([x[d], at[d], updates[d]], f"`{op.name}` writes to places that data choose")
    _others(t, op, d, x, at)
    _others(t, op, d, x, updates)
    return [x]


# Space


def pad(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    amounts = integers(op, "pads") or integers(op, "paddings")
    if amounts is None:
        found = entries(t, op, 1)
        if found is None or any(size.factors for size in found):
            return None
        amounts = tuple(size.value for size in found)
    if isinstance(arg := given(op, 1), Ref):
        t.understood(arg.name)
    axes = entries(t, op, 3) if given(op, 3) is not None else None
    at = [size.value % len(x) for size in axes] if axes else list(range(len(x)))
    for i, d in enumerate(at):
        if amounts[i] or amounts[len(at) + i]:
            t.axes.pin(x[d], "padded")
            x[d] = t.fresh(op.types[0].shape[d : d + 1], "padded")[0]
    return [x]


def resize(t: Typing, op: Op) -> list[Dims]:
    """Dimensions of the same size pass; sizes given for those follow them."""
    x, shape = list(t.of(op.args[0])), op.types[0].shape
    before = t.graph.types[cast(Ref, op.args[0]).name].shape
    sizes = entries(t, op, 3) if given(op, 3) is not None else None
    listed = sizes is not None and len(sizes) == len(x)
    if isinstance(arg := given(op, 3), Ref) and listed:
        t.understood(arg.name)
    for d in range(len(x)):
        if before[d] != shape[d] or d > 1 or (given(op, 3) is not None and not listed):
            t.axes.pin(x[d], "resized")
            x[d] = t.fresh(shape[d : d + 1], "resized")[0]
        elif listed:
            say(t, op, 3, d, x[d])
    return [x]
