"""Rules of ONNX operations that keep their operand's dimensions, make or reduce some."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_entries import reduced
from prunec.ir.dialects.onnx_args import dims_given, given, integer, say
from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Rule, Typing

__all__ = [
    "along",
    "batch_norm",
    "cast_like",
    "cumulated",
    "filled",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "numbered",
    "one_hot",
    "over_neighbours",
    "pointwise",
    "quantized_pair",
    "reduction",
    "same",
    "skip_norm",
    "skip_rms_norm",
    "spatial",
    "spatial_globally",
    "top",
    "triangle",
]


def pointwise(t: Typing, op: Op) -> list[Dims]:
    """Entry by entry with broadcasting from the right. A row of numbers in the graph itself says
    something of each index."""
    result: Dims = []
    for arg in op.args:
        if isinstance(arg, Ref):
            result = t.unify(result, t.of(arg))
    for arg in op.args:
        if isinstance(arg, tuple) and len(arg) > 1 and result:
            t.axes.pin(result[-1], f"`{op.name}` joins it with numbers of the graph")
    return [list(result) for _ in op.results]


def quantized_pair(t: Typing, op: Op) -> list[Dims]:
    """A, its scale and zero point, B ...: one scale for all entries of each."""
    return [t.unify(t.of(op.args[0]), t.of(op.args[3]))]


def same(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    return [list(x) if len(type_.shape) == len(x) else t.fresh(type_.shape) for type_ in op.types]


def cast_like(t: Typing, op: Op) -> list[Dims]:
    """Of the second operand only the dtype matters."""
    t.of(op.args[1])
    return [t.of(op.args[0])]


def along(t: Typing, op: Op) -> list[Dims]:
    """A softmax and its like. Older versions run over all dimensions from the axis on; those
    behind it, where the newer do not, are pinned too."""
    x = t.of(op.args[0])
    first = integer(op, "axis", -1) % max(len(x), 1)
    t.pin(x[first:], f"`{op.name}` runs over it")
    return [list(x) for _ in op.results]


def over_neighbours(t: Typing, op: Op) -> list[Dims]:
    """Each channel is normed by those beside it."""
    x = t.of(op.args[0])
    t.axes.pin(x[1], f"`{op.name}` looks at neighbours in it")
    return [x]


def cumulated(t: Typing, op: Op) -> list[Dims]:
    x, axis = t.of(op.args[0]), given(op, 1)
    over = [x[axis % len(x)]] if isinstance(axis, int) else x
    t.pin(over, f"`{op.name}` runs over it")
    return [x]


def triangle(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    t.pin(x[-2:], f"`{op.name}` depends on positions in it")
    return [x]


def reduction(effect: str = "") -> Rule:
    """Reduce over dimensions; `norm` when the result depends on their size, `pin` when
    entries that are zero would count."""

    def rule(t: Typing, op: Op) -> list[Dims] | None:
        rank = len(t.of(op.args[0]))
        over = dims_given(op, 1, "axes", rank)
        if op.name in ("onnx.ArgMax", "onnx.ArgMin"):
            over = [integer(op, "axis") % max(rank, 1)]
        if over is None:
            return None
        nothing = given(op, 1) is None and op.kwarg("axes") is None
        if nothing and integer(op, "noop_with_empty_axes"):
            over = []
        return reduced(t, op, over, effect)

    return rule


def spatial(t: Typing, op: Op) -> list[Dims]:
    """Batch and channel pass; all behind them is space."""
    x = t.of(op.args[0])
    t.pin(x[2:], "a spatial dimension or a kernel window")
    return [[*x[:2], *t.fresh(type_.shape[2:], "a spatial dimension")] for type_ in op.types]


def spatial_globally(t: Typing, op: Op) -> list[Dims] | None:
    if integer(op, "channels_last"):
        return None
    x = t.of(op.args[0])
    t.pin(x[2:], "a spatial dimension")
    return [[*x[:2], *[t.axes.UNIT] * (len(x) - 2)]]


def top(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    d = integer(op, "axis", -1) % len(x)
    t.axes.pin(x[d], f"`{op.name}` chooses from it")
    x[d] = t.fresh(op.types[0].shape[d : d + 1], f"chosen by `{op.name}`")[0]
    return [list(x) for _ in op.results]


def numbered(t: Typing, op: Op) -> list[Dims]:
    return [t.fresh(op.types[0].shape, f"`{op.name}` gives each index a value of its own")]


def filled(t: Typing, op: Op) -> list[Dims]:
    """One number everywhere; the operand holds the sizes."""
    dims = t.fresh(op.types[0].shape)
    for i, axis in enumerate(dims):
        say(t, op, 0, i, axis)
    return [dims]


def one_hot(t: Typing, op: Op) -> list[Dims]:
    x = list(t.of(op.args[0]))
    at = integer(op, "axis", -1) % (len(x) + 1)
    x.insert(at, t.fresh(op.types[0].shape[at : at + 1], "one index a class")[0])
    return [x]


# Norms


def layer_norm(t: Typing, op: Op) -> list[Dims]:
    """Statistics over all dimensions from the axis on; further results are those statistics."""
    x = t.of(op.args[0])
    first = integer(op, "axis", -1) % len(x)
    _affine(t, x[first:], op.args[1:3])
    outer = x[:first] + [t.axes.UNIT] * (len(x) - first)
    return [x, *(outer for _ in op.results[1:])]


def _affine(t: Typing, inner: Dims, operands: tuple[Arg, ...]) -> None:
    for arg in operands:
        if isinstance(arg, Ref):
            t.unify(inner, t.of(arg))
    for axis in inner:
        t.norm(axis)


def skip_norm(t: Typing, op: Op) -> list[Dims]:
    """Input, skip, scale, shift, bias: the sum normed; the fourth result is the sum."""
    return _skip_norm(t, op, op.args[2:5])


def skip_rms_norm(t: Typing, op: Op) -> list[Dims]:
    """Input, skip, scale, bias."""
    return _skip_norm(t, op, op.args[2:4])


def _skip_norm(t: Typing, op: Op, affine: tuple[Arg, ...]) -> list[Dims]:
    x = t.unify(t.of(op.args[0]), t.of(op.args[1]))
    _affine(t, x[-1:], affine)
    statistic = [*x[:-1], t.axes.UNIT]
    found = [x, statistic, statistic, x]
    return [
        dims if len(dims) == len(type_.shape) else t.fresh(type_.shape)
        for dims, type_ in zip(found, op.types, strict=False)
    ]


def batch_norm(t: Typing, op: Op) -> list[Dims] | None:
    """Pointwise with stored statistics; in training they would be taken anew."""
    if integer(op, "training_mode"):
        return None
    return t.apply("b c ..., c, c, c, c -> b c ...", op.args[:5])


def instance_norm(t: Typing, op: Op) -> list[Dims] | None:
    t.pin(t.of(op.args[0])[2:], f"`{op.name}` takes a statistic over it")
    return t.apply("b c ..., c, c -> b c ...", op.args[:3])


def group_norm(t: Typing, op: Op) -> list[Dims]:
    """Scale and bias are by channel, in older versions by group."""
    x, groups = t.of(op.args[0]), cast(int, op.kwarg("num_groups"))
    t.pin(x[2:], f"`{op.name}` takes a statistic over it")
    pair = t.axes.split(x[1], groups) if groups > 1 else (t.axes.UNIT, x[1])
    for arg in op.args[1:3]:
        (own,) = t.of(arg)
        by_group = t.axes.size(own) == groups and groups != t.axes.size(x[1])
        t.axes.unify(own, pair[0] if by_group and pair is not None else x[1])
    if pair is None:  # and all that it holds is pinned
        return [x]
    t.norm(pair[1])
    if groups > 1:
        t.literal(("num_groups",), pair[0])
    return [x]
