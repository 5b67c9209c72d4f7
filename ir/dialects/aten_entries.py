"""Rules of aten operations that keep their operand's dimensions, make or reduce some.

A rule takes the typing so far and the operation, and returns the axes of every result, or None
for a form that it does not cover (which pins what the operation touches).
"""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_args import argument, dim_of, dims_of, path_of
from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Rule, Typing

__all__ = [
    "along_first",
    "copy",
    "filled",
    "group_norm",
    "layer_norm",
    "moved_within",
    "new_filled",
    "numbered",
    "pointwise",
    "prelu",
    "recurrent",
    "reduced",
    "reduction",
    "rms_norm",
    "same",
    "similarity",
    "softmax",
    "sort",
    "topk",
    "triangle",
    "vector_norm",
    "weight_norm",
]


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


def _sized(t: Typing, op: Op, position: int, dims: Dims) -> None:
    """The size list of an operation follows from the axes of its result."""
    sizes = argument(op, position, "size")
    for i, size in enumerate(cast(tuple[Arg, ...], sizes)):
        dims[i] = t.new_dimension((*path_of(op, position, "size"), i), size, dims[i])


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


def reduction(effect: str = "") -> Rule:
    """Reduce over dimensions; `norm` when the result depends on their size, `pin` when
    entries that are zero would count."""

    def rule(t: Typing, op: Op) -> list[Dims]:
        x = t.of(op.args[0])
        has_dims = len(op.args) > 1 and not isinstance(op.args[1], (bool, Ref))
        where = argument(op, 1, "dim") if has_dims else op.kwarg("dim")
        return reduced(t, op, dims_of(where, len(x)), effect)

    return rule


def reduced(t: Typing, op: Op, over: list[int], effect: str) -> list[Dims]:
    """Results of reducing the first operand over some dimensions, kept with one index or not."""
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
    over = dims_of(where, len(t.of(op.args[0])))
    return reduced(t, op, over, "" if order in (None, 1, 2, 1.0, 2.0) else "pin")


def along_first(t: Typing, op: Op) -> list[Dims]:
    """The shape stays; the dimension given by the second argument cannot be cut."""
    x = t.of(op.args[0])
    t.axes.pin(x[dim_of(argument(op, 1, "dim", -1), len(x))], f"`{op.name}` runs over it")
    return [list(x) for _ in op.results]


def softmax(t: Typing, op: Op) -> list[Dims]:
    """The shape stays; the indices of a dimension share out a whole."""
    x = t.of(op.args[0])
    t.shared_out(x[dim_of(argument(op, 1, "dim", -1), len(x))], f"`{op.name}` runs over it")
    return [list(x)]


def sort(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    t.axes.pin(x[dim_of(argument(op, 1, "dim", -1), len(x))], f"`{op.name}` runs over it")
    return [list(x) for _ in op.results]


def topk(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = dim_of(argument(op, 2, "dim", -1), len(x))
    if isinstance(op.args[1], int) and len(op.results) == 2:
        t.choose(x[d], op.args[1], op.results[1])
    else:
        t.axes.pin(x[d], f"`{op.name}` chooses from it")
    x[d] = t.fresh(op.types[0].shape[d : d + 1], f"chosen by `{op.name}`")[0]
    return [list(x) for _ in op.results]


def moved_within(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    last = argument(op, 2 if op.name.startswith("aten.roll") else 1, "dims")
    for d in dims_of(last, len(x)):
        t.axes.pin(x[d], f"`{op.name}` moves entries along it")
    return [x]


def triangle(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    t.pin(x[-2:], f"`{op.name}` depends on positions in it")
    return [x]


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


def channel_norm(t: Typing, op: Op) -> list[Dims] | None:
    """Batch and instance norm: pointwise with stored statistics, by channel with fresh ones."""
    found = t.apply("b c ..., c, c, c, c -> b c ...", op.args[:5])
    if found is None or op.name.startswith("aten._native_batch_norm_legit_no_training"):
        return found and [found[0], *(t.fresh(type_.shape) for type_ in op.types[1:])]
    for axis in [*found[0][:1], *found[0][2:]] if op.args[5] else ():
        t.norm(axis)
    return found


def group_norm(t: Typing, op: Op) -> list[Dims]:
    x, groups = t.of(op.args[0]), cast(int, op.args[1])
    for arg in (argument(op, 2, "weight"), argument(op, 3, "bias")):
        if isinstance(arg, Ref):
            t.axes.unify(x[1], t.of(arg)[0])
    for axis in x[2:]:
        t.norm(axis)
    pair = t.axes.split(x[1], groups) if groups > 1 else (t.axes.UNIT, x[1])
    if pair is None:  # and all that it holds is pinned
        return [x]
    t.norm(pair[1])
    if groups > 1:
        t.literal((1,), pair[0])
    return [x]


def weight_norm(t: Typing, op: Op) -> list[Dims]:
    """A direction divided by its norm over all dimensions but one, times a length."""
    direction, length = t.of(op.args[0]), t.of(op.args[1])
    kept = dim_of(argument(op, 2, "dim", 0), len(direction))
    for d, axis in enumerate(direction):
        if d != kept:
            t.norm(axis)
    return [t.unify(direction, length)]


def recurrent(t: Typing, op: Op) -> list[Dims]:
    """A layer that feeds back into itself, with its gates stacked in one matrix: nothing of it can
    be cut without rewriting the cell."""
    reason = f"`{op.name}` holds the gates of all steps in one matrix"
    for name in op.operands:
        t.pin(t.dims[name], reason)
    return [t.fresh(type_.shape, reason) for type_ in op.types]


def similarity(t: Typing, op: Op) -> list[Dims]:
    """Cosine of the angle between vectors along a dimension."""
    both = t.unify(t.of(op.args[0]), t.of(op.args[1]))
    gone = dim_of(argument(op, 2, "dim", 1), len(both))
    return [both[:gone] + both[gone + 1 :]]
