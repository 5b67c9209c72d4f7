"""Rules of ONNX operations that lay out the same entries in other dimensions."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.onnx_args import dims_given, entries, given, integer, integers, say
from prunec.ir.graph import Op, Ref
from prunec.ir.infer import Dims, Typing
from prunec.ir.sizes import dim_size

__all__ = [
    "depth_to_space",
    "expand",
    "flatten",
    "reshape",
    "space_to_depth",
    "squeeze",
    "tile",
    "transpose",
    "unsqueeze",
]


def reshape(t: Typing, op: Op) -> list[Dims] | None:
    """Row-major: the product of the dimensions before is the product of those after.

    0 stands for the size that the operand has at the same place, -1 for what is left.
    """
    x = t.of(op.args[0])
    dims = t.fresh([dim_size(d, t.graph.symbols) for d in op.types[0].shape])
    t.axes.unify(t.axes.product(x), t.axes.product(dims))
    if op.kwarg("shape") is not None:  # before version 5
        return None
    target = entries(t, op, 1)
    if target is None or len(target) != len(dims):
        return None
    for i, size in enumerate(target):
        if size.value == 0 and not integer(op, "allowzero") and i < len(x):
            t.axes.unify(x[i], dims[i])
        elif size.value >= 0:
            say(t, op, 1, i, dims[i])
    if isinstance(arg := op.args[1], Ref):
        t.understood(arg.name)
    return [dims]


def flatten(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    axis = integer(op, "axis", 1)
    at = axis + len(x) if axis < 0 else axis
    return [[t.axes.product(x[:at]), t.axes.product(x[at:])]]


def transpose(t: Typing, op: Op) -> list[Dims]:
    x = t.of(op.args[0])
    order = integers(op, "perm") or tuple(reversed(range(len(x))))
    return [[x[d] for d in order]]


def unsqueeze(t: Typing, op: Op) -> list[Dims] | None:
    x = list(t.of(op.args[0]))
    at = dims_given(op, 1, "axes", len(op.types[0].shape))
    if at is None:
        return None
    for d in sorted(at):
        x.insert(d, t.axes.UNIT)
    return [x]


def squeeze(t: Typing, op: Op) -> list[Dims] | None:
    """Named dimensions have one index; without names one that is cut to one would go too."""
    x = t.of(op.args[0])
    over = dims_given(op, 1, "axes", len(x))
    if over is None:
        return None
    if given(op, 1) is None and op.kwarg("axes") is None:
        t.pin(x, f"`{op.name}` would drop it if one index were left")
    return [[a for d, a in enumerate(x) if d not in over or t.axes.size(a) > 1]]


def expand(t: Typing, op: Op) -> list[Dims] | None:
    """Broadcast to a shape; where that says 1, the operand's own size stays."""
    x, target = t.of(op.args[0]), entries(t, op, 1)
    dims = t.fresh(op.types[0].shape)
    if target is None:
        return None
    new, ahead = len(dims) - len(x), len(dims) - len(target)
    for i in range(len(dims)):
        if i >= new and t.axes.size(x[i - new]) > 1:
            dims[i] = x[i - new]
        if i >= ahead and target[i - ahead].value != 1:
            say(t, op, 1, i - ahead, dims[i])
    if isinstance(arg := op.args[1], Ref):
        t.understood(arg.name)
    return [dims]


def tile(t: Typing, op: Op) -> list[Dims] | None:
    x, repeats = t.of(op.args[0]), entries(t, op, 1)
    if repeats is None:
        return None
    dims = []
    for i, (axis, times) in enumerate(zip(x, repeats, strict=True)):
        if times.value == 1 and not times.factors:
            dims.append(axis)
            continue
        total = op.types[0].shape[i]
        outer = t.axes.atom(dim_size(total, t.graph.symbols) // t.axes.size(axis))
        if isinstance(total, str):
            t.axes.mark(outer, "runtime", "")
            t.axes.pin(outer, "its size is known at run time only")
        say(t, op, 1, i, outer)
        dims.append(t.axes.product([outer, axis]))
    if isinstance(arg := op.args[1], Ref):
        t.understood(arg.name)
    return [dims]


def depth_to_space(t: Typing, op: Op) -> list[Dims] | None:
    r = integer(op, "blocksize")
    sizes = {"r": r, "q": r, "c": t.axes.size(t.of(op.args[0])[1]) // (r * r)}
    facts = "pin r: becomes space | pin q: becomes space"
    order = "c r q" if op.kwarg("mode") == "CRD" else "r q c"
    return t.apply(f"b ({order}) _ _ -> b c _ _ | {facts}", op.args[:1], sizes=sizes)


def space_to_depth(t: Typing, op: Op) -> list[Dims]:
    r = cast(int, op.kwarg("blocksize"))
    x = t.of(op.args[0])
    t.pin(x[2:], "spatial")
    inner = t.fresh([r, r], "comes from space")
    spatial = t.fresh(op.types[0].shape[2:], "spatial")
    return [[x[0], t.axes.product([*inner, x[1]]), *spatial]]
