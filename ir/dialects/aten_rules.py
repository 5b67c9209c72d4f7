"""Rules of aten operations whose types depend on their arguments.

Each takes the typing so far and the operation, and returns the axes of every result, or None
for a form that it does not cover (which pins what the operation touches).
"""

from __future__ import annotations

from typing import cast

from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Path, Rule, Typing, dim_size
from prunec.ir.unify import AxisId

__all__: list[str] = []

FAR = 1 << 62
"""Bounds from here on mean the end of the dimension."""


def argument(op: Op, position: int, name: str, default: Arg = None) -> Arg:
    """An argument given by position or by keyword."""
    return op.args[position] if len(op.args) > position else op.kwarg(name, default)


def _path(op: Op, position: int, name: str) -> Path:
    return (position,) if len(op.args) > position else (name,)


def _dim(arg: Arg, rank: int) -> int:
    return int(cast(int, arg)) % max(rank, 1)


def _dims(arg: Arg, rank: int) -> list[int]:
    if arg is None or arg == ():
        return list(range(rank))
    found = arg if isinstance(arg, tuple) else (arg,)
    return [_dim(d, rank) for d in found]


# -- entry by entry ---------------------------------------------------------------------------


def pointwise(t: Typing, op: Op) -> list[Dims]:
    result: Dims = []
    for name in op.operands:
        if name in t.dims:
            result = t.unify(result, t.dims[name])
    return [result for _ in op.results]


def same(t: Typing, op: Op) -> list[Dims]:
    return [list(t.of(op.args[0])) for _ in op.results]


def copy(t: Typing, op: Op) -> list[Dims]:
    return [t.unify(t.of(op.args[0]), t.of(op.args[1]))]


def prelu(t: Typing, op: Op) -> list[Dims]:
    x, weight = t.of(op.args[0]), t.of(op.args[1])
    if t.axes.size(weight[0]) > 1:
        t.axes.unify(x[1], weight[0])
    return [x]


# -- made from nothing ------------------------------------------------------------------------


def _sized(t: Typing, op: Op, position: int, dims: Dims) -> None:
    """The size list of an operation follows from the axes of its result."""
    sizes = argument(op, position, "size")
    for i, size in enumerate(cast(tuple[Arg, ...], sizes)):
        t.size_argument((*_path(op, position, "size"), i), size, dims[i])


def filled(t: Typing, op: Op) -> list[Dims]:
    dims = t.fresh(op.types[0].shape)
    if dims:
        _sized(t, op, 0, dims)
    return [dims]


def new_filled(t: Typing, op: Op) -> list[Dims]:
    dims = t.fresh(op.types[0].shape)
    if dims:
        _sized(t, op, 1, dims)
    return [dims]


def numbered(t: Typing, op: Op) -> list[Dims]:
    return [t.fresh(op.types[0].shape, f"`{op.name}` gives each index a value of its own")]


# -- reductions and orders --------------------------------------------------------------------


def reduction(effect: str = "") -> Rule:
    """Reduce over dimensions; `norm` when the result depends on their size, `pin` when
    entries that are zero would count."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        x = t.of(op.args[0])
        has_dims = len(op.args) > 1 and not isinstance(op.args[1], (bool, Ref))
        where = argument(op, 1, "dim") if has_dims else op.kwarg("dim")
        return _reduced(t, op, _dims(where, len(x)), effect)

    return rule


def _reduced(t: Typing, op: Op, over: list[int], effect: str) -> list[Dims]:
    x = t.of(op.args[0])
    for d in over:
        if effect == "norm":
            t.norm(x[d])
        elif effect == "pin":
            t.axes.pin(x[d], f"`{op.name}` runs over it")
    kept = [a for d, a in enumerate(x) if d not in over]
    full = [t.axes.UNIT if d in over else a for d, a in enumerate(x)]
    return [full if len(type_.shape) == len(x) and x else kept for type_ in op.types]


def vector_norm(t: Typing, op: Op) -> list[Dims]:
    order = argument(op, 1, "ord" if "linalg" in op.name else "p", 2)
    where = argument(op, 2, "dim")
    over = _dims(where, len(t.of(op.args[0])))
    return _reduced(t, op, over, "" if order in (None, 1, 2, 1.0, 2.0) else "pin")


def along_first(t: Typing, op: Op) -> list[Dims]:
    """The shape stays; the dimension given by the second argument cannot be cut."""
    x = t.of(op.args[0])
    t.axes.pin(x[_dim(argument(op, 1, "dim", -1), len(x))], f"`{op.name}` runs over it")
    return [list(x) for _ in op.results]


def sort(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    t.axes.pin(x[_dim(argument(op, 1, "dim", -1), len(x))], f"`{op.name}` runs over it")
    return [list(x) for _ in op.results]


def topk(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = _dim(argument(op, 2, "dim", -1), len(x))
    t.axes.mark(x[d], "pin", f"`{op.name}` chooses from it")
    x[d] = t.fresh(op.types[0].shape[d : d + 1], f"chosen by `{op.name}`")[0]
    return [list(x) for _ in op.results]


def moved_within(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    last = argument(op, 2 if op.name.startswith("aten.roll") else 1, "dims")
    for d in _dims(last, len(x)):
        t.axes.pin(x[d], f"`{op.name}` moves entries along it")
    return [x]


def triangle(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    t.pin(x[-2:], f"`{op.name}` depends on positions in it")
    return [x]


# -- normalisation ----------------------------------------------------------------------------


def _normalised(t: Typing, op: Op, affine: tuple[Arg, ...]) -> list[Dims]:
    x = t.of(op.args[0])
    shape = cast(tuple[Arg, ...], op.args[1])
    inner = x[len(x) - len(shape) :]
    for arg in affine:
        if isinstance(arg, Ref):
            t.unify(inner, t.of(arg))
    for i, axis in enumerate(inner):
        t.norm(axis)
        t.literal((1, i), axis)
    return [x]


def layer_norm(t: Typing, op: Op) -> list[Dims]:
    return _normalised(t, op, (argument(op, 2, "weight"), argument(op, 3, "bias")))


def rms_norm(t: Typing, op: Op) -> list[Dims]:
    return _normalised(t, op, (argument(op, 2, "weight"),))


def group_norm(t: Typing, op: Op) -> list[Dims]:
    x, groups = t.of(op.args[0]), cast(int, op.args[1])
    pair = t.axes.split(x[1], groups) if groups > 1 else (t.axes.UNIT, x[1])
    if pair is None:
        return [t.unify(x, x)]
    for arg in (argument(op, 2, "weight"), argument(op, 3, "bias")):
        if isinstance(arg, Ref):
            t.axes.unify(x[1], t.of(arg)[0])
    t.norm(pair[1])
    t.pin(x[2:], f"`{op.name}` takes a statistic over it")
    if groups > 1:
        t.literal((1,), pair[0])
    return [x]


# -- contractions -----------------------------------------------------------------------------


def matmul(t: Typing, op: Op) -> list[Dims]:
    a, b = len(t.of(op.args[0])), len(t.of(op.args[1]))
    left = "i" if a == 1 else "... n i"
    right = "i" if b == 1 else "... i o"
    result = " ".join(["..."] + ["n"] * (a > 1) + ["o"] * (b > 1))
    return t.apply(f"{left}, {right} -> {result}", op.args)


def einsum(t: Typing, op: Op) -> list[Dims] | None:
    text, operands = cast(str, op.args[0]).replace(" ", ""), cast(tuple[Arg, ...], op.args[1])
    if "->" not in text:
        return None

    def spaced(part: str) -> str:
        return " ".join(part.replace("...", "*").replace("*", "~")).replace("~", "...")

    left, right = text.split("->")
    signature = ", ".join(map(spaced, left.split(","))) + " -> " + spaced(right)
    return t.apply(signature, operands)


def attention(t: Typing, op: Op) -> list[Dims]:
    """Fused attention. With `enable_gqa` the kernel shares each key head among query heads."""
    operands = [*op.args[:3], argument(op, 3, "attn_mask")]
    if not argument(op, 7, "enable_gqa", False):
        return t.apply("... h s d, ... h t d, ... h t e, ... h s t -> ... h s e", operands)
    kv = t.axes.size(t.of(op.args[1])[-3])
    shared = "... (k g) s d, ... k t d, ... k t e, ... (k g) s t -> ... (k g) s e"
    mask = operands[3]
    if isinstance(mask, Ref) and (len(t.of(mask)) < 3 or t.axes.size(t.of(mask)[-3]) == 1):
        operands = operands[:3]
    return t.apply(shared, operands, sizes={"k": kv})


def _spatial(t: Typing, op: Op) -> tuple[int, int]:
    weight = t.of(op.args[1])
    groups = argument(op, 8 if op.name == "aten.convolution.default" else 6, "groups", 1)
    return len(weight) - 2, cast(int, groups)


def convolution(t: Typing, op: Op) -> list[Dims] | None:
    rank, groups = _spatial(t, op)
    if op.name == "aten.convolution.default" and op.args[6]:
        return None
    space = "_ " * rank
    if groups == 1:
        return t.apply(f"... i {space}, o i {space}, o -> ... o {space}", op.args[:3])
    position = 8 if op.name == "aten.convolution.default" else 6
    return t.apply(
        f"... (g i) {space}, (g o) i {space}, (g o) -> ... (g o) {space}",
        op.args[:3],
        sizes={"g": groups},
        literals={"g": _path(op, position, "groups")},
    )


def transposed_convolution(t: Typing, op: Op) -> list[Dims]:
    rank = len(t.of(op.args[1])) - 2
    groups = cast(int, argument(op, 6, "groups", 1))
    space = "_ " * rank
    if groups == 1:
        return t.apply(f"... i {space}, i o {space}, o -> ... o {space}", op.args[:3])
    return t.apply(
        f"... (g i) {space}, (g i) o {space}, (g o) -> ... (g o) {space}",
        op.args[:3],
        sizes={"g": groups},
        literals={"g": _path(op, 6, "groups")},
    )


# -- shapes -----------------------------------------------------------------------------------


def reshape(t: Typing, op: Op) -> list[Dims]:
    """Row-major: the product of the dimensions before is the product of those after."""
    x = t.of(op.args[0])
    dims = t.fresh([dim_size(d, t.graph.symbols) for d in op.types[0].shape])
    t.axes.unify(t.axes.product(x), t.axes.product(dims))
    if op.name.startswith("aten.flatten"):
        return [dims]
    if op.name.startswith("aten.unflatten"):
        first = _dim(op.args[1], len(x))
        path: Path = (2,)
        sizes = cast(tuple[Arg, ...], op.args[2])
    else:
        first, path = 0, _path(op, 1, "size" if "size" in dict(op.kwargs) else "shape")
        sizes = cast(tuple[Arg, ...], argument(op, 1, cast(str, path[-1])))
    for i, size in enumerate(sizes):
        t.size_argument((*path, i), size, dims[first + i])
    return [dims]


def expand(t: Typing, op: Op) -> list[Dims]:
    x, shape = t.of(op.args[0]), op.types[0].shape
    sizes = cast(tuple[Arg, ...], argument(op, 1, "size"))
    dims = t.fresh(shape)
    new = len(shape) - len(x)
    for i in range(len(shape)):
        if i >= new and t.axes.size(x[i - new]) > 1:
            dims[i] = x[i - new]
        t.size_argument((*_path(op, 1, "size"), i), sizes[i], dims[i])
    return [dims]


def expand_as(t: Typing, op: Op) -> list[Dims]:
    return [t.unify(t.of(op.args[1]), t.of(op.args[0]))]


def repeat(t: Typing, op: Op) -> list[Dims]:
    x, repeats = t.of(op.args[0]), cast(tuple[Arg, ...], op.args[1])
    padded = [t.axes.UNIT] * (len(repeats) - len(x)) + list(x)
    dims = []
    for i, (axis, times) in enumerate(zip(padded, repeats, strict=True)):
        if times == 1:
            dims.append(axis)
            continue
        outer = _times(t, op, axis, i)
        dims.append(t.axes.product([outer, axis]))
        if isinstance(times, int):
            t.literal((1, i), outer)
    return [dims]


def _times(t: Typing, op: Op, axis: AxisId, dim: int) -> AxisId:
    """The axis of a repetition; its size is what the result's size leaves."""
    total = dim_size(op.types[0].shape[dim], t.graph.symbols)
    outer = t.axes.atom(total // t.axes.size(axis))
    if isinstance(op.types[0].shape[dim], str):
        t.axes.mark(outer, "runtime", "")
        t.axes.pin(outer, "its size is known at run time only")
    return outer


def repeat_interleave(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    where = argument(op, 2, "dim")
    if not isinstance(op.args[1], int) or where is None:
        return None
    d = _dim(where, len(x))
    inner = _times(t, op, x[d], d)
    x[d] = t.axes.product([x[d], inner])
    t.literal((1,), inner)
    return [x]


def unsqueeze(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    x.insert(_dim(op.args[1], len(x) + 1), t.axes.UNIT)
    return [x]


def squeeze(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    over = _dims(op.args[1] if len(op.args) > 1 else None, len(x))
    return [[a for d, a in enumerate(x) if d not in over or t.axes.size(a) > 1]]


def permute(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    return [[x[d] for d in _dims(op.args[1], len(x))]]


def transpose(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    a, b = _dim(op.args[1], len(x)), _dim(op.args[2], len(x))
    x[a], x[b] = x[b], x[a]
    return [x]


def swap_last(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    return [x[:-2] + x[-2:][::-1]]


def movedim(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    source, to = _dims(op.args[1], len(x)), _dims(op.args[2], len(x))
    order = [d for d in range(len(x)) if d not in source]
    for target, d in sorted(zip(to, source, strict=True)):
        order.insert(target, d)
    return [[x[d] for d in order]]


# -- parts ------------------------------------------------------------------------------------


def select(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    t.axes.pin(x.pop(_dim(op.args[1], len(x))), "one index of it is selected by number")
    return [x]


def unbind(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    t.axes.pin(x.pop(_dim(argument(op, 1, "dim", 0), len(x))), "it is taken apart by number")
    return [list(x) for _ in op.results]


def _bounds(start: Arg, end: Arg, size: int) -> tuple[int, int] | None:
    """Slice bounds as Python means them; None when they are computed at run time."""
    if isinstance(start, Ref) or isinstance(end, Ref):
        return None
    first, last, _ = slice(cast(int | None, start), cast(int | None, end)).indices(size)
    return first, max(first, last)


def slice_(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = _dim(argument(op, 1, "dim", 0), len(x))
    start, end = argument(op, 2, "start"), argument(op, 3, "end")
    step = argument(op, 4, "step", 1)
    size = t.axes.size(x[d])
    static = isinstance(t.graph.types[cast(Ref, op.args[0]).name].shape[d], int)
    bounds = _bounds(start, end, size) if static and step == 1 else None
    if bounds is None:
        t.axes.pin(x[d], f"`{op.name}` with a step or bounds known at run time")
        x[d] = t.fresh(op.types[0].shape[d : d + 1], "part of a strided or dynamic slice")[0]
        return [x]
    if bounds == (0, size):
        return [x]
    x[d] = _slice_static(t, op, x[d], bounds, (start, end))
    return [x]


def _slice_static(
    t: Typing, op: Op, axis: AxisId, bounds: tuple[int, int], given: tuple[Arg, Arg]
) -> AxisId:
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
    _bound_literal(t, op, 2, "start", given[0], [before], [middle, after])
    _bound_literal(t, op, 3, "end", given[1], [before, middle], [after])
    return middle


def _bound_literal(
    t: Typing, op: Op, position: int, name: str, given: Arg, below: Dims, above: Dims
) -> None:
    """A bound counts from the start, or, when negative, from the end."""
    if not isinstance(given, int) or given == 0 or given >= FAR:
        return
    path = _path(op, position, name)
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
    d, start, length = _dim(op.args[1], len(x)), op.args[2], op.args[3]
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
    d = _dim(argument(op, 2, "dim", 0), len(x))
    if any(isinstance(type_.shape[d], str) for type_ in op.types):
        t.axes.pin(x[d], f"`{op.name}` cuts a size known at run time")
        return [x[:d] + t.fresh(ty.shape[d : d + 1]) + x[d + 1 :] for ty in op.types]
    sizes = [cast(int, type_.shape[d]) for type_ in op.types]
    parts: Dims = []
    rest = x[d]
    for size in sizes[:-1]:
        pair = t.axes.cut(rest, size)
        if pair is None:
            return None
        parts.append(pair[0])
        rest = pair[1]
    parts.append(rest)
    _split_literals(t, op, parts, sizes)
    return [x[:d] + [part] + x[d + 1 :] for part in parts]


def _split_literals(t: Typing, op: Op, parts: Dims, sizes: list[int]) -> None:
    given = op.args[1]
    if isinstance(given, tuple):
        for i, part in enumerate(parts):
            t.literal((1, i), part)
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
    d = _dim(argument(op, 1, "dim", 0), rank)
    result = list(operands[0])
    for dims in operands[1:]:
        for i in range(rank):
            if i != d:
                t.axes.unify(result[i], dims[i])
    if isinstance(op.types[0].shape[d], str):
        t.pin([dims[d] for dims in operands], "concatenated at a size known at run time")
        result[d] = t.fresh(op.types[0].shape[d : d + 1])[0]
    else:
        result[d] = t.axes.sum([dims[d] for dims in operands])
    return [result]


def stack(t: Typing, op: Op) -> list[Dims]:
    operands = [t.of(arg) for arg in cast(tuple[Arg, ...], op.args[0])]
    result = operands[0]
    for dims in operands[1:]:
        result = t.unify(result, dims)
    d = _dim(argument(op, 1, "dim", 0), len(result) + 1)
    result = list(result)
    result.insert(d, t.fresh([len(operands)], "each index is a stacked value of its own")[0])
    return [result]


def glu(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    d = _dim(argument(op, 1, "dim", -1), len(x))
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


def pixel_shuffle(t: Typing, op: Op) -> list[Dims]:
    r = cast(int, op.args[1])
    x = t.of(op.args[0])
    t.pin(x[-2:], "spatial")
    sizes = {"r": r, "q": r, "c": t.axes.size(x[-3]) // (r * r)}
    result = t.apply("... (c r q) _ _ -> ... c _ _", op.args[:1], sizes=sizes)
    channel = t.axes.factors(x[-3])
    for axis in channel[-2:]:
        t.axes.pin(axis, "becomes space")
    return result


def pixel_unshuffle(t: Typing, op: Op) -> list[Dims]:
    r = cast(int, op.args[1])
    x = t.of(op.args[0])
    t.pin(x[-2:], "spatial")
    inner = t.fresh([r, r], "comes from space")
    spatial = t.fresh(op.types[0].shape[-2:], "spatial")
    return [[*x[:-3], t.axes.product([x[-3], *inner]), *spatial]]


# -- selection by data ------------------------------------------------------------------------


def index(t: Typing, op: Op) -> list[Dims] | None:
    """Advanced indexing: indexed dimensions are pinned, the others pass."""
    x, given = t.of(op.args[0]), cast(tuple[Arg, ...], op.args[1])
    at = [i for i, arg in enumerate(given) if isinstance(arg, Ref)]
    if any(t.graph.types[cast(Ref, given[i]).name].dtype == "bool" for i in at):
        return None
    shared: Dims = []
    for i in at:
        t.axes.mark(x[i], "index", "data select from it")
        shared = t.unify(shared, t.of(given[i]))
    adjacent = at == list(range(at[0], at[0] + len(at)))
    first = at[0] if adjacent else 0
    kept = [a for i, a in enumerate(x) if i not in at]
    return [kept[:first] + shared + kept[first:]]


def index_select(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = _dim(op.args[1], len(x))
    t.axes.mark(x[d], "index", "data select from it")
    x[d] = t.of(op.args[2])[0]
    return [x]


def _other_dims(t: Typing, op: Op, d: int, left: Dims, right: Dims) -> None:
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if i == d:
            continue
        if t.axes.size(a) == t.axes.size(b):
            t.axes.unify(a, b)
        else:
            t.pin([a, b], f"`{op.name}` reads a part of it")


def gather(t: Typing, op: Op) -> list[Dims]:
    x, chosen = t.of(op.args[0]), t.of(op.args[2])
    d = _dim(op.args[1], len(x))
    t.axes.mark(x[d], "index", "data select from it")
    _other_dims(t, op, d, x, chosen)
    return [chosen]


def scatter(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    d = _dim(op.args[1], len(x))
    t.axes.pin(x[d], f"`{op.name}` writes to places that data choose")
    for arg in op.args[2:4]:
        if isinstance(arg, Ref) and t.of(arg):
            _other_dims(t, op, d, x, t.of(arg))
    return [x]


def index_put(t: Typing, op: Op) -> list[Dims] | None:
    x, given = t.of(op.args[0]), cast(tuple[Arg, ...], op.args[1])
    value = t.of(op.args[2])
    t.pin(x[: len(given)], f"`{op.name}` writes to places that data choose")
    t.unify(x[len(given) :], value[len(value) - (len(x) - len(given)) :])
    return [x]


def one_hot(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    return [[*x, t.fresh(op.types[0].shape[-1:], "one index a class")[0]]]


