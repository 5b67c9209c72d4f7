"""Rules of aten operations that turn space into channels and back, or cut it into windows."""

from __future__ import annotations

from typing import cast

from prunec.ir.dialects.aten_args import dim_of
from prunec.ir.graph import Op
from prunec.ir.infer import Dims, Typing

__all__ = ["channel_shuffle", "im2col", "pixel_shuffle", "pixel_unshuffle", "unfold"]

SPACE = "a spatial dimension"
WINDOW = "a spatial dimension or a kernel window"


def pixel_shuffle(t: Typing, op: Op) -> list[Dims] | None:
    r = cast(int, op.args[1])
    sizes = {"r": r, "q": r, "c": t.axes.size(t.of(op.args[0])[-3]) // (r * r)}
    facts = "pin r: becomes space | pin q: becomes space"
    return t.apply(f"... (c r q) _ _ -> ... c _ _ | {facts}", op.args[:1], sizes=sizes)


def im2col(t: Typing, op: Op) -> list[Dims]:
    """The entries of each window side by side, as a convolution would sum them."""
    x, kernel = t.of(op.args[0]), cast(tuple[int, ...], op.args[1])
    t.pin(x[-2:], SPACE)
    window = t.fresh([kernel[0] * kernel[1]], WINDOW)
    places = t.fresh(op.types[0].shape[-1:], SPACE)
    return [[*x[:-3], t.axes.product([x[-3], *window]), *places]]


def pixel_unshuffle(t: Typing, op: Op) -> list[Dims]:
    r = cast(int, op.args[1])
    x = t.of(op.args[0])
    t.pin(x[-2:], "spatial")
    inner = t.fresh([r, r], "comes from space")
    spatial = t.fresh(op.types[0].shape[-2:], "spatial")
    return [[*x[:-3], t.axes.product([x[-3], *inner]), *spatial]]


def unfold(t: Typing, op: Op) -> list[Dims]:
    """Windows along one dimension; those that follow one another are the factors of a product."""
    x = list(t.of(op.args[0]))
    d, size, step = dim_of(op.args[1], len(x)), cast(int, op.args[2]), cast(int, op.args[3])
    total = t.axes.size(x[d])
    pair = t.axes.split(x[d], total // size) if size == step and not total % size else None
    if pair is None:
        t.axes.pin(x[d], WINDOW)
        pair = t.fresh(op.types[0].shape[d : d + 1], SPACE)[0], t.fresh([size], WINDOW)[0]
    elif size > 1:
        t.literal((2,), pair[1])
        t.literal((3,), pair[1])
    x[d] = pair[0]
    return [[*x, pair[1]]]


def channel_shuffle(t: Typing, op: Op) -> list[Dims] | None:
    """Channels (g c) become (c g)."""
    x, groups = list(t.of(op.args[0])), cast(int, op.args[1])
    pair = t.axes.split(x[1], groups)
    if pair is None:
        return None
    t.literal((1,), pair[0])
    x[1] = t.axes.product([pair[1], pair[0]])
    return [x]
