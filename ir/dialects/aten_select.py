"""Rules of aten operations in which data say what is read or written."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_args import argument, dim_of
from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Typing

__all__ = [
    "diagonals",
    "gather",
    "index",
    "index_put",
    "index_select",
    "index_write",
    "masked_scatter",
    "one_hot",
    "scatter",
]


def index(t: Typing, op: Op) -> list[Dims] | None:
    """Advanced indexing: indexed dimensions are pinned, the others pass."""
    x = t.of(op.args[0])
    at = _indexed(t, op)
    for i in at or ():
        t.select(cast(tuple[Arg, ...], op.args[1])[i], x[i])
    return None if at is None else [_chosen(t, op, at)]


def _indexed(t: Typing, op: Op) -> list[int] | None:
    """The dimensions that have an index; None when one of those is a mask."""
    given = cast(tuple[Arg, ...], op.args[1])
    at = [i for i, arg in enumerate(given) if isinstance(arg, Ref)]
    masks = [i for i in at if t.graph.types[cast(Ref, given[i]).name].dtype in ("bool", "u8")]
    return None if masks or not at else at


def _chosen(t: Typing, op: Op, at: list[int]) -> Dims:
    """What advanced indexing reads: the indices' own dimensions stand where the indexed ones
    stood, or first where those are not side by side."""
    x, given = t.of(op.args[0]), cast(tuple[Arg, ...], op.args[1])
    shared: Dims = []
    for i in at:
        shared = t.unify(shared, t.of(given[i]))
    adjacent = at == list(range(at[0], at[0] + len(at)))
    first = at[0] if adjacent else 0
    kept = [a for i, a in enumerate(x) if i not in at]
    return kept[:first] + shared + kept[first:]


def index_select(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = dim_of(op.args[1], len(x))
    t.select(op.args[2], x[d])
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
    d = dim_of(op.args[1], len(x))
    t.select(op.args[2], x[d])
    _other_dims(t, op, d, x, chosen)
    return [chosen]


def scatter(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    d = dim_of(op.args[1], len(x))
    t.axes.pin(x[d], f"`{op.name}` writes to places that data choose")
    written = [t.of(arg) for arg in op.args[2:4] if isinstance(arg, Ref)]
    for dims in written:
        _other_dims(t, op, d, x, dims)
    for dims in written[1:]:
        for index_axis, axis in zip(written[0][d : d + 1], dims[d : d + 1], strict=False):
            t.pin([axis], f"`{op.name}` writes it to places that data choose")
            t.axes.unify(index_axis, axis)
    return [x]


def index_put(t: Typing, op: Op) -> list[Dims] | None:
    x, at = t.of(op.args[0]), _indexed(t, op)
    if at is None:
        return None
    given = cast(tuple[Arg, ...], op.args[1])
    for i in at:
        t.pin([x[i], *t.of(given[i])], f"`{op.name}` writes to places that data choose")
    t.unify(_chosen(t, op, at), t.of(op.args[2]))
    return [x]


def masked_scatter(t: Typing, op: Op) -> list[Dims] | None:
    """Rows go to the positions that a mask names; the mask is the same for all of a row."""
    x, source = t.of(op.args[0]), t.of(op.args[2])
    if not _same_along_last(t, cast(Ref, op.args[1]).name):
        return None
    t.pin([*x[:-1], *source[:-1]], f"`{op.name}` writes to places that data choose")
    t.axes.unify(x[-1], source[-1])
    t.counted(x[-1])
    return [t.unify(x, t.of(op.args[1]))]


def _same_along_last(t: Typing, value: str) -> bool:
    """Whether a value was repeated along its last dimension."""
    while value in t.graph.producers:
        if t.graph.types[value].shape[-1:] == (1,):
            return True
        op = t.graph.ops[t.graph.producers[value]]
        if not op.name.startswith(("aten.expand", "aten.broadcast_to", "aten.to.")):
            return False
        value = cast(Ref, op.args[0]).name
    return False


def index_write(t: Typing, op: Op) -> list[Dims]:
    """Slices along a dimension go to places that data choose."""
    x, source = t.of(op.args[0]), op.args[3]
    d = dim_of(op.args[1], len(x))
    t.axes.pin(x[d], f"`{op.name}` writes to places that data choose")
    if isinstance(source, Ref) and t.of(source):
        _other_dims(t, op, d, x, t.of(source))
        t.pin([t.of(source)[d]], f"`{op.name}` writes it to places that data choose")
    return [x]


def diagonals(t: Typing, op: Op) -> list[Dims] | None:
    """The last dimension becomes the diagonal of a square matrix."""
    x = t.of(op.args[0])
    if len(op.types[0].shape) != len(x) + 1 or op.types[0].shape[-1] != op.types[0].shape[-2]:
        return None
    where = [argument(op, i + 1, name, default) for i, (name, default) in enumerate(_PLACES)]
    if where[0] != 0 or {dim_of(d, len(x) + 1) for d in where[1:]} != {len(x) - 1, len(x)}:
        return None
    return [[*x, x[-1]]]


_PLACES = (("offset", 0), ("dim1", -2), ("dim2", -1))


def one_hot(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    return [[*x, t.fresh(op.types[0].shape[-1:], "one index a class")[0]]]
