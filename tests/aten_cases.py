"""For each rule of the aten dialect a small program around the operation, weights on both sides.

`groups` are the sizes of all groups that must be found, ascending: a rule that pins too much is
as wrong as one that couples too little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from handmade import Builder

from prunec.ir.graph import Arg, Attr, Ref

__all__ = ["CASES", "SIZES", "Case"]

Build = Callable[[Builder], Ref | tuple[Ref, ...]]


@dataclass(frozen=True)
class Case:
    build: Build
    groups: tuple[int, ...]


def case(build: Build, *groups: int) -> Case:
    return Case(build, tuple(sorted(groups)))


# -- one operand, [batch, time, 12] or [batch, 12, 4, ...] ------------------------------------


def on_rows(name: str, *args: Arg, **kwargs: Arg) -> Case:
    """An operation that leaves the channels last and does not touch them."""
    return case(lambda b: b.down(b.call(name, b.up(12), *args, **kwargs)), 12)


def first_on_rows(name: str, *args: Arg, **kwargs: Arg) -> Case:
    """The same with several results, of which the first is used."""
    return case(lambda b: b.down(b.calls(name, b.up(12), *args, **kwargs)[0]), 12)


def on_space(rank: int, name: str, *args: Arg, **kwargs: Arg) -> Case:
    """An operation on the dimensions behind the channels."""
    return case(lambda b: b.mix(b.calls(name, b.space(12, rank), *args, **kwargs)[0]), 12)


def added(name: str, *args: Arg, **kwargs: Arg) -> Case:
    """A tensor made like another one, added to it."""

    def build(b: Builder) -> Ref:
        x = b.up(12)
        return b.down(b.call("aten.add.Tensor", x, b.call(name, x, *args, **kwargs)))

    return case(build, 12)


def times_zero(name: str) -> Case:
    """A random tensor, which cannot be compared, times zero."""

    def build(b: Builder) -> Ref:
        x = b.up(12)
        noise = b.call("aten.mul.Tensor", b.call(name, x), 0.0)
        return b.down(b.call("aten.add.Tensor", x, noise))

    return case(build, 12)


# -- contractions -----------------------------------------------------------------------------


def bmm(b: Builder) -> Ref:
    y = b.call("aten.bmm.default", b.input(2, "time", 6), b.weight(2, 6, 12))
    y = b.call("aten.relu.default", y)
    return b.call("aten.bmm.default", y, b.weight(2, 12, 3))


def baddbmm(b: Builder) -> Ref:
    x = b.input(2, "time", 6)
    y = b.call("aten.baddbmm.default", b.weight(2, 1, 12), x, b.weight(2, 6, 12))
    return b.call("aten.baddbmm.default", b.weight(3), y, b.weight(2, 12, 3))


def addmm(b: Builder) -> Ref:
    y = b.call("aten.addmm.default", b.weight(12), b.input("time", 6), b.weight(6, 12))
    return b.call("aten.addmm.default", b.weight(1, 3), y, b.weight(12, 3))


def addmm_of_weights(b: Builder) -> Ref:
    """A weight that is computed of three others, as an adapter is merged."""
    merged = b.call("aten.addmm.default", b.weight(12, 6), b.weight(12, 2), b.weight(2, 6))
    return b.down(b.call("aten.linear.default", b.input("batch", 6), merged))


def dot(b: Builder) -> Ref:
    left = b.call("aten.mv.default", b.weight(12, 6), b.input(6))
    right = b.call("aten.mv.default", b.weight(12, 6), b.input(6))
    return b.call("aten.dot.default", left, right)


def outer(b: Builder) -> Ref:
    left = b.call("aten.mv.default", b.weight(12, 6), b.input(6))
    right = b.call("aten.mv.default", b.weight(8, 6), b.input(6))
    y = b.call("aten.outer.default", left, right)
    return b.call("aten.mv.default", b.call("aten.linear.default", y, b.weight(3, 8)), b.weight(3))


def embedding(b: Builder) -> Ref:
    return b.down(b.call("aten.embedding.default", b.weight(11, 12), b.tokens(11)))


def heads(b: Builder, width: int, count: int) -> Ref:
    """[batch, count, time, width / count]"""
    y = b.up(width)
    shape = (b.size(y, 0), b.size(y, 1), count, width // count)
    return b.call("aten.transpose.int", b.call("aten.reshape.default", y, shape), 1, 2)


def joined(b: Builder, y: Ref) -> Ref:
    """Heads side by side again, and the layer that consumes them."""
    y = b.call("aten.transpose.int", y, 1, 2)
    return b.down(b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), -1)))


def attention(b: Builder) -> tuple[Ref, ...]:
    """Plain, with a mask of two dimensions, two query heads to each key head, and two value heads
    to each key head."""
    name = "aten.scaled_dot_product_attention.default"
    q, k, v = heads(b, 12, 3), heads(b, 12, 3), heads(b, 18, 3)
    plain = b.call(name, q, k, v, scale=0.5)
    size = b.size(q, 2)
    ones = b.call("aten.ones.default", (size, size), dtype=Attr("dtype", "bool"))
    masked = b.call(name, q, k, v, b.call("aten.tril.default", ones), scale=0.5)
    shared = b.call(
        name, heads(b, 24, 6), heads(b, 12, 3), heads(b, 12, 3), scale=0.5, enable_gqa=True
    )
    more = b.call(
        name, heads(b, 24, 6), heads(b, 8, 2), heads(b, 24, 6), scale=0.5, enable_gqa=True
    )
    return joined(b, plain), joined(b, masked), joined(b, shared), joined(b, more)


def einsum(b: Builder) -> Ref:
    q, k, v = heads(b, 12, 3), heads(b, 12, 3), heads(b, 12, 3)
    scores = b.call("aten.einsum.default", "bhsd,bhtd->bhst", (q, k))
    y = b.call("aten.einsum.default", "...st,...td->...sd", (scores, v))
    return joined(b, y)


def matmul(b: Builder) -> tuple[Ref, ...]:
    """Stacks of matrices, a vector on the right, and one on the left."""
    q, k, v = heads(b, 12, 3), heads(b, 12, 3), heads(b, 12, 3)
    scores = b.call("aten.matmul.default", q, b.call("aten.transpose.int", k, 2, 3))
    first = joined(b, b.call("aten.matmul.default", scores, v))
    second = b.call("aten.matmul.default", b.up(8), b.weight(8))
    vector = b.call("aten.matmul.default", b.weight(9, 6), b.input(6))
    return first, second, b.call("aten.matmul.default", vector, b.weight(9, 3))


# -- convolutions -----------------------------------------------------------------------------


def convolutions(rank: int) -> Build:
    """Plain; in groups, behind a layer; one channel a group, with two channels out of each."""
    name = f"aten.conv{rank}d.default"

    def build(b: Builder) -> tuple[Ref, ...]:
        ones, threes, padding = [1] * rank, [3] * rank, (1,) * rank
        stride = tuple(ones)
        x = b.space(12, rank)
        plain = b.call(name, x, b.weight(8, 12, *threes), b.weight(8), stride, padding)
        grouped = b.call(
            name, b.space(16, rank), b.weight(24, 8, *ones), b.weight(24), stride, (0,) * rank,
            stride, 2,
        )  # fmt: skip
        depthwise = b.call(
            name, b.space(9, rank), b.weight(18, 1, *threes), None, stride, padding, stride, 9
        )
        return b.mix(plain), b.mix(grouped), b.mix(depthwise)

    return build


def convolution(b: Builder) -> tuple[Ref, ...]:
    """The general form: plain, in groups, and transposed."""
    name, ones, zeros = "aten.convolution.default", (1, 1), (0, 0)
    x = b.space(12)
    plain = b.call(name, x, b.weight(8, 12, 1, 1), None, ones, zeros, ones, False, zeros, 1)
    grouped = b.call(
        name, b.space(16), b.weight(24, 8, 1, 1), None, ones, zeros, ones, False, zeros, 2
    )
    transposed = b.call(
        name, b.space(18), b.weight(18, 3, 2, 2), None, (2, 2), zeros, ones, True, zeros, 3
    )
    return b.mix(plain), b.mix(grouped), b.mix(transposed)


def transposed(rank: int) -> Build:
    name = "aten.conv_transpose2d.input" if rank == 2 else f"aten.conv_transpose{rank}d.default"
    if rank == 3:
        name = "aten.conv_transpose3d.input"

    def build(b: Builder) -> tuple[Ref, ...]:
        twos = [2] * rank
        stride, zeros, ones = tuple(twos), (0,) * rank, (1,) * rank
        plain = b.call(name, b.space(12, rank), b.weight(12, 8, *twos), b.weight(8), stride)
        grouped = b.call(
            name, b.space(18, rank), b.weight(18, 2, *twos), b.weight(6), stride, zeros, zeros, 3,
            ones,
        )  # fmt: skip
        return b.mix(plain), b.mix(grouped)

    return build


# -- norms ------------------------------------------------------------------------------------


def batch_norm(b: Builder) -> Ref:
    stored = b.weight(12), b.weight(12), b.weight(12), b.positive(12)
    rest: tuple[Arg, ...] = (False, 0.1, 1e-5, False)
    return b.mix(b.call("aten.batch_norm.default", b.space(12), *stored, *rest))


def standardised(b: Builder) -> Ref:
    """The filters of a convolution, each made to have mean 0 and variance 1."""
    y = b.space(12)
    rest: tuple[Arg, ...] = (None, None, None, None, True, 0.1, 1e-5, False)
    flat = b.call("aten.reshape.default", b.weight(8, 12, 3, 3), (1, 8, 108))
    filters = b.call("aten.batch_norm.default", flat, *rest)
    filters = b.call("aten.reshape.default", filters, (8, 12, 3, 3))
    return b.mix(b.call("aten.conv2d.default", y, filters, None, (1, 1), (1, 1)))


def batch_norm_legit(b: Builder) -> Ref:
    name = "aten._native_batch_norm_legit_no_training.default"
    stored = b.weight(12), b.weight(12), b.weight(12), b.positive(12)
    return b.mix(b.calls(name, b.space(12), *stored, 0.1, 1e-5)[0])


def instance_norm(b: Builder) -> Ref:
    name = "aten.instance_norm.default"
    rest: tuple[Arg, ...] = (None, None, True, 0.1, 1e-5, False)
    return b.mix(b.call(name, b.space(12), b.weight(12), b.weight(12), *rest))


def group_norm(b: Builder) -> tuple[Ref, ...]:
    """In three groups, in one, and of channels that another layer has joined unevenly."""
    name = "aten.group_norm.default"
    three = b.call(name, b.space(12), 3, b.weight(12), b.weight(12), 1e-5)
    one = b.call(name, b.space(8), 1, b.weight(8), b.weight(8), 1e-5)
    uneven = b.call("aten.cat.default", (b.space(4), b.space(12)), 1)
    two = b.call(name, uneven, 2, b.weight(16), b.weight(16), 1e-5)
    return b.mix(three), b.mix(one), b.mix(two)


def layer_norm(b: Builder) -> tuple[Ref, ...]:
    """Over the channels, and over heads and channels at once without weights."""
    y = b.call("aten.layer_norm.default", b.up(12), (12,), b.weight(12), b.weight(12))
    both = b.call("aten.transpose.int", heads(b, 8, 2), 1, 2)
    return b.down(y), joined(
        b, b.call("aten.transpose.int", b.call("aten.layer_norm.default", both, (2, 4)), 1, 2)
    )


def rms_norm(b: Builder) -> Ref:
    return b.down(b.call("aten.rms_norm.default", b.up(12), (12,), b.weight(12)))


# -- made from nothing ------------------------------------------------------------------------


def filled(name: str, *args: Arg, zero: bool = False, **kwargs: Arg) -> Build:
    """A tensor with the shape of another one as literals."""

    def build(b: Builder) -> Ref:
        x = b.up(12)
        made = b.call(name, (b.size(x, 0), 1, 12), *args, **kwargs)
        made = b.call("aten.mul.Tensor", made, 0.0) if zero else made
        return b.down(b.call("aten.add.Tensor", x, made))

    return build


def empty(b: Builder) -> Ref:
    """What nobody wrote is filled first."""
    x = b.up(12)
    made = b.call("aten.empty.memory_format", (12,))
    return b.down(b.call("aten.add.Tensor", x, b.call("aten.fill.Scalar", made, 2.0)))


def empty_like(b: Builder) -> Ref:
    x = b.up(12)
    made = b.call("aten.fill.Scalar", b.call("aten.empty_like.default", x), 2.0)
    return b.down(b.call("aten.add.Tensor", x, made))


def new(name: str, *args: Arg) -> Build:
    def build(b: Builder) -> Ref:
        x = b.up(12)
        made = b.call(name, x, (b.size(x, 1), 12), *args)
        if "empty" in name:
            made = b.call("aten.fill.Scalar", made, 2.0)
        return b.down(b.call("aten.add.Tensor", x, made))

    return build


def scalar(b: Builder) -> Ref:
    dtype = Attr("dtype", "float32")
    made = b.call("aten.scalar_tensor.default", 3.0, dtype=dtype)
    return b.down(b.call("aten.add.Tensor", b.up(12), made))


def numbered(name: str, *args: Arg, **kwargs: Arg) -> Case:
    """Each index has a value of its own, so that none may leave."""

    def build(b: Builder) -> Ref:
        made = b.call(name, *args, dtype=Attr("dtype", "float32"), **kwargs)
        if "rand" in name:
            made = b.call("aten.mul.Tensor", made, 0.0)
        return b.down(b.down(b.call("aten.add.Tensor", b.up(12), made)))

    return case(build, 3)


# -- reductions -------------------------------------------------------------------------------


def reduced(name: str, *more: Arg, groups: tuple[int, ...] = (12,), **kwargs: Arg) -> Case:
    """Over time, with the channels kept: once without and once with the dimension kept."""

    def build(b: Builder) -> tuple[Ref, ...]:
        y = b.calls(name, b.up(12), *more, **kwargs)[0]
        return (b.down(b.call("aten.to.dtype", y, Attr("dtype", "float32"))),)

    return case(build, *groups)


def all_entries(b: Builder, name: str, *more: Arg) -> Ref:
    """Over everything."""
    return b.call(name, b.call("aten.sigmoid.default", b.up(8)), *more)


def both(first: Case, second: Case) -> Case:
    """Two programs side by side."""

    def build(b: Builder) -> tuple[Ref, ...]:
        found = [c.build(b) for c in (first, second)]
        return tuple(
            ref for part in found for ref in (part if isinstance(part, tuple) else (part,))
        )

    return case(build, *first.groups, *second.groups)


def over_channels(name: str, *args: Arg, groups: tuple[int, ...] = (8,), **kwargs: Arg) -> Case:
    """Over the channels themselves."""

    def build(b: Builder) -> Ref:
        return b.calls(name, b.call("aten.sigmoid.default", b.up(8)), *args, **kwargs)[0]

    return case(build, *groups)


def on_truths(name: str, *args: Arg) -> Build:
    """Of truth values, along time."""

    def build(b: Builder) -> Ref:
        y = b.call(name, b.call("aten.gt.Scalar", b.up(12), 0.0), *args)
        return b.down(b.call("aten.to.dtype", y, Attr("dtype", "float32")))

    return build


# -- shapes -----------------------------------------------------------------------------------


def matrix(b: Builder, rows: int = 3, columns: int = 4, name: str = "aten.reshape.default") -> Ref:
    """Channels of [batch, time] seen as a matrix: [batch, time, rows, columns]."""
    y = b.up(rows * columns)
    return b.call(name, y, (b.size(y, 0), b.size(y, 1), rows, columns))


def seen_as_matrix(name: str) -> Case:
    """As a matrix, transposed, and as one row again."""

    def build(b: Builder) -> Ref:
        y = b.call("aten.transpose.int", matrix(b, name=name), 2, 3)
        y = b.call("aten.contiguous.default", y)
        return b.down(b.call(name, y, (b.size(y, 0), b.size(y, 1), 12)))

    return case(build, 3, 4)


def flatten(b: Builder) -> Ref:
    return b.down(b.call("aten.flatten.using_ints", matrix(b), 2, 3))


def unflatten(b: Builder) -> Ref:
    y = b.call("aten.unflatten.int", b.up(12), 2, (3, 4))
    return b.down(b.call("aten.flatten.using_ints", y, 2, 3))


def expand(b: Builder) -> Ref:
    """Each of three heads four times, as grouped queries share their keys."""
    y = heads(b, 18, 3)
    y = b.call("aten.unsqueeze.default", y, 2)
    sizes = b.size(y, 0), b.size(y, 3)
    y = b.call("aten.expand.default", y, (sizes[0], 3, 4, sizes[1], 6))
    return joined(b, b.call("aten.reshape.default", y, (sizes[0], 12, sizes[1], 6)))


def expand_as(b: Builder) -> Ref:
    x = b.up(12)
    return b.down(b.call("aten.add.Tensor", x, b.call("aten.expand_as.default", b.weight(12), x)))


def repeat(b: Builder) -> tuple[Ref, ...]:
    """Channels three times over; and time and a new dimension, with the channels kept."""
    first = b.down(b.call("aten.repeat.default", b.up(12), (1, 1, 3)))
    second = b.call("aten.repeat.default", b.up(8), (2, 1, 4, 1))
    return first, b.down(second)


def tile(b: Builder) -> Ref:
    """The last dimension alone is named."""
    return b.down(b.call("aten.tile.default", b.up(12), (3,)))


def repeat_interleave(b: Builder) -> Ref:
    """Also with the size of the result stated, as tracing records it."""
    name = "aten.repeat_interleave.self_int"
    return b.down(b.call(name, b.call(name, b.up(12), 3, 2), 2, 2, output_size=72))


def squeeze(b: Builder) -> tuple[Ref, ...]:
    """Of one dimension, of some, and of one that is no unit and stays."""
    wide = b.call("aten.unsqueeze.default", b.up(12), 1)
    first = b.down(b.call("aten.squeeze.dim", wide, 1))
    wide = b.call("aten.unsqueeze.default", b.call("aten.unsqueeze.default", b.up(8), 1), 3)
    second = b.down(b.call("aten.squeeze.dims", wide, (1, 3)))
    return first, second


def permute(b: Builder) -> Ref:
    y = b.call("aten.permute.default", b.space(12), (0, 2, 3, 1))
    return b.down(y)


def transposed_dims(name: str) -> Build:
    return lambda b: b.down(b.call(name, b.space(12), 1, 3))


def t(b: Builder) -> tuple[Ref, ...]:
    """Of a matrix and of a vector."""
    y = b.call("aten.mm.default", b.input("batch", 6), b.call("aten.t.default", b.weight(12, 6)))
    return b.call("aten.mm.default", y, b.weight(12, 3)), b.call("aten.t.default", b.weight(4))


def numpy_t(b: Builder) -> tuple[Ref, ...]:
    """Of a matrix, and of three dimensions of which all change places."""
    y = b.call("aten.linear.default", b.input("batch", 6), b.weight(12, 6))
    back = b.call("aten.numpy_T.default", b.call("aten.numpy_T.default", y))
    cube = b.call("aten.numpy_T.default", b.weight(8, 4, 8))
    return b.down(back), b.call("aten.einsum.default", "abc,xa->xbc", (cube, b.input("batch", 8)))


def mt(b: Builder) -> Ref:
    y = b.call("aten.matmul.default", b.up(12), b.call("aten.mT.default", b.weight(8, 12)))
    return b.down(y)


def movedim(b: Builder) -> tuple[Ref, ...]:
    first = b.down(b.call("aten.movedim.int", b.space(12), 1, 3))
    return first, b.down(b.call("aten.movedim.intlist", b.space(8), (1, 0), (3, 2)))


# -- parts ------------------------------------------------------------------------------------


def select(b: Builder) -> Ref:
    return b.down(b.call("aten.select.int", matrix(b), 2, 1))


def unbind(b: Builder) -> Ref:
    one, _, three = b.calls("aten.unbind.int", matrix(b), 2)
    return b.down(b.call("aten.add.Tensor", one, three))


def slices(b: Builder) -> tuple[Ref, ...]:
    """The two ends of some channels; of a matrix whose inner dimension is a factor."""
    x = b.up(12)
    head = b.call("aten.slice.Tensor", x, 2, 0, 4, 1)
    tail = b.call("aten.slice.Tensor", x, 2, 4, None, 1)
    flat = b.call("aten.reshape.default", matrix(b, 3, 6), (b.size(x, 0), b.size(x, 1), 18))
    rows = b.call("aten.slice.Tensor", flat, 2, 6, None, 1)
    return b.down(head), b.down(tail), b.down(rows)


def interleaved(b: Builder) -> Ref:
    """Even and odd indices, as interleaved rotary embeddings take them."""
    x = b.up(12)
    even, odd = (b.call("aten.slice.Tensor", x, 2, i, None, 2) for i in (0, 1))
    third = b.call("aten.slice.Tensor", b.up(18), 2, 1, None, 3)
    return b.down(b.call("aten.add.Tensor", b.call("aten.mul.Tensor", even, odd), third))


def slice_scatter(b: Builder) -> tuple[Ref, ...]:
    name = "aten.slice_scatter.default"
    first = b.call(name, b.up(12), b.up(4), 2, 0, 4)
    inner = b.call(name, b.up(11), b.up(5), 2, 2, 7)
    return b.down(first), b.down(inner), b.down(b.call(name, b.up(10), b.up(10), 2))


def select_scatter(b: Builder) -> Ref:
    """The first row of one value over that of another."""
    row = b.call("aten.select.int", b.up(12), 1, 0)
    return b.down(b.call("aten.select_scatter.default", b.up(12), row, 1, 0))


def weight_norm(b: Builder) -> Ref:
    """One layer by its outputs, the next by its inputs."""
    first = b.call("aten._weight_norm.default", b.weight(8, 12), b.weight(8, 1), 0)
    second = b.call("aten._weight_norm.default", b.weight(3, 8), b.weight(1, 8), 1)
    y = b.call("aten.linear.default", b.up(12), first)
    return b.call("aten.linear.default", y, second)


def im2col(b: Builder) -> Ref:
    """A convolution as a matrix product over windows of three by three."""
    y = b.call("aten.im2col.default", b.space(12), (3, 3), (1, 1), (1, 1), (1, 1))
    return b.down(
        b.call("aten.linear.default", b.call("aten.transpose.int", y, 1, 2), b.weight(8, 108))
    )


def unfold(b: Builder) -> tuple[Ref, ...]:
    """Windows side by side are factors; those that overlap are space."""
    apart = b.call("aten.unfold.default", b.up(12), 2, 4, 4)
    first = b.call("aten.reshape.default", apart, (b.size(apart, 0), b.size(apart, 1), 12))
    sums = b.call("aten.sum.dim_IntList", b.call("aten.unfold.default", b.space(8), 2, 2, 1), (4,))
    return b.down(first), b.mix(sums)


def channel_shuffle(name: str) -> Build:
    return lambda b: b.mix(b.call(name, b.space(12), 3))


def complex_pairs(b: Builder) -> Ref:
    """Real and imaginary parts beside one another, turned by an angle."""
    x = b.up(12)
    pairs = b.call("aten.reshape.default", x, (b.size(x, 0), b.size(x, 1), 6, 2))
    turned = b.call("aten.view_as_complex.default", pairs)
    ones = b.weight(6)
    turned = b.call("aten.mul.Tensor", turned, b.call("aten.polar.default", ones, b.weight(6)))
    y = b.call("aten.view_as_real.default", turned)
    return b.down(b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), 12)))


def complex_of_a_part(b: Builder) -> tuple[Ref, Ref]:
    """Pairs that lie behind an odd number of others once one of these is left."""
    x = b.up(20)
    first, rest = (b.call("aten.slice.Tensor", x, 2, *at, 1) for at in ((0, 8), (8, None)))
    pairs = b.call("aten.reshape.default", rest, (b.size(rest, 0), b.size(rest, 1), 6, 2))
    y = b.call("aten.view_as_real.default", b.call("aten.view_as_complex.default", pairs))
    y = b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), 12))
    return b.down(first), b.down(y)


def complex_parts(b: Builder) -> tuple[Ref, ...]:
    value = b.call("aten.complex.default", b.up(12), b.weight(12))
    value = b.call("aten.resolve_neg.default", b.call("aten.conj.default", value))
    value = b.call("aten.resolve_conj.default", value)
    parts = [b.call(f"aten.{part}.default", value) for part in ("real", "imag")]
    return tuple(map(b.down, parts))


def fourier(name: str) -> Case:
    """Along dimensions of space; the channels are left alone."""
    over: Arg = (2, 3) if name.endswith(("2", "n")) else 3

    def build(b: Builder) -> Ref:
        y = b.call(f"aten.{name}.default", b.space(12), None, over)
        return b.mix(b.call("aten.abs.default", y))

    return case(build, 12)


TRANSFORMS = (
    "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn"
).split()


def recurrent(name: str, gates: int) -> Build:
    """Pinned in and out; the layers around it keep their other sides."""

    def build(b: Builder) -> Ref:
        hidden = b.call("aten.zeros.default", (1, b.size(b.input("batch", 1), 0), 8))
        state: Arg = (hidden, hidden) if name == "aten.lstm.input" else hidden
        stored = b.weight(gates * 8, 12), b.weight(gates * 8, 8), b.weight(gates * 8)
        rest = (*stored, b.weight(gates * 8))
        x = b.linear(b.up(9), 12)
        y, *_ = b.calls(name, x, state, rest, True, 1, 0.0, False, False, True)
        return b.down(y)

    return build


def similarity(b: Builder) -> Ref:
    y = b.call("aten.cosine_similarity.default", b.up(12), b.up(12), 2)
    return b.call("aten.unsqueeze.default", y, 2)


def bilinear(b: Builder) -> Ref:
    return b.down(b.call("aten.bilinear.default", b.up(12), b.up(8), b.weight(9, 12, 8)))


def grid(name: str) -> Build:
    def build(b: Builder) -> Ref:
        x = b.space(12)
        places = b.call("aten.reshape.default", b.space(16), (b.size(x, 0), 16, 8, 2))
        return b.mix(b.call(name, x, b.call("aten.tanh.default", places), 0, 0, False))

    return build


def masked_scatter(b: Builder) -> Ref:
    """Rows of one layer in the place of some rows of another."""
    x = b.up(12)
    mask = b.call("aten.unsqueeze.default", b.constant([True, False, True]), 1)
    table = b.linear(b.weight(3, 6), 12)
    mask = b.call("aten.expand.default", mask, (3, 12))
    y = b.call("aten.masked_scatter.default", table, mask, b.linear(b.weight(2, 6), 12))
    return b.down(b.call("aten.add.Tensor", x, b.call("aten.sum.dim_IntList", y, (0,))))


def index_write(name: str) -> Build:
    def build(b: Builder) -> Ref:
        table, at = b.linear(b.weight(4, 6), 12), b.constant([2, 0])
        return b.down(b.call(name, table, 0, at, b.linear(b.weight(2, 6), 12)))

    return build


def index_fill(b: Builder) -> Ref:
    table = b.linear(b.weight(4, 6), 12)
    return b.down(b.call("aten.index_fill.int_Scalar", table, 0, b.constant([2, 0]), 0.5))


def diagonals(b: Builder) -> Ref:
    """A vector on the diagonal scales like the vector itself."""
    scale = b.call("aten.diag_embed.default", b.linear(b.weight(1, 6), 12))
    return b.down(b.call("aten.matmul.default", b.up(12), scale))


def reshape_as(b: Builder) -> Ref:
    x, y = b.up(12), matrix(b, 3, 4)
    return b.down(b.call("aten.reshape_as.default", b.call("aten.reshape_as.default", x, y), x))


def narrow(b: Builder) -> tuple[Ref, ...]:
    x = b.up(12)
    parts = [b.call("aten.narrow.default", x, 2, start, n) for start, n in ((0, 3), (3, 4))]
    return tuple(map(b.down, parts))


def parts(name: str, sizes: Arg, *more: Arg) -> Build:
    """Each part goes into a layer of its own."""
    return lambda b: tuple(map(b.down, b.calls(name, b.up(12), sizes, 2, *more)))


def cat(b: Builder) -> tuple[Ref, ...]:
    """Of channels; and of time, which leaves the channels alone."""
    left, right = b.up(8), b.up(4)
    both_sides = b.down(b.call("aten.cat.default", (left, right), 2))
    x = b.up(12)
    return both_sides, b.down(b.call("aten.cat.default", (x, b.up(12), x), 1))


def stack(b: Builder) -> Ref:
    y = b.call("aten.stack.default", (b.up(12), b.up(12)), 2)
    return b.down(y)


def pixel_shuffle(b: Builder) -> Ref:
    """Three channels of what were twelve; the two factors that become space stay."""
    return b.mix(b.call("aten.pixel_shuffle.default", b.space(12), 2))


def pixel_unshuffle(b: Builder) -> Ref:
    return b.mix(b.call("aten.pixel_unshuffle.default", b.space(8), 2))


# -- chosen by data ---------------------------------------------------------------------------


def index(b: Builder) -> tuple[Ref, ...]:
    """A table read by rows; and by its second dimension, the first one kept."""
    table = b.linear(b.weight(11, 6), 12)
    first = b.down(b.call("aten.index.Tensor", table, (b.tokens(11),)))
    at = b.constant([0, 2, 1])
    second = b.call("aten.index.Tensor", matrix(b, 4, 8), (None, None, at))
    return first, b.down(second)


def index_select(b: Builder) -> Ref:
    return b.down(b.call("aten.index_select.default", b.up(12), 1, b.constant([0, 1, 1])))


def gather(b: Builder) -> Ref:
    """From a table of four rows, for every channel another row."""
    x = b.up(12)
    chosen = b.call("aten.argmax.default", matrix(b, 4, 12), 2)
    y = b.call("aten.unsqueeze.default", x, 2)
    four = b.call("aten.expand.default", y, (b.size(x, 0), b.size(x, 1), 4, 12))
    picked = b.call("aten.unsqueeze.default", chosen, 2)
    return b.down(b.call("aten.gather.default", four, 2, picked))


def scattered(name: str, *more: Arg) -> Build:
    """Rows added to the rows of a table of four, which data choose."""

    def build(b: Builder) -> Ref:
        x = b.rows(12)
        y = b.call("aten.unsqueeze.default", x, 1)
        table = b.call("aten.expand.default", y, (b.size(x, 0), 4, 12))
        rows = b.call("aten.reshape.default", b.rows(24), (b.size(x, 0), 2, 12))
        at = b.constant(torch.zeros(1, 2, 1, dtype=torch.int64))
        at = b.call("aten.expand.default", at, (b.size(x, 0), 2, 12))
        return b.down(b.call(name, table, 1, at, rows, *more))

    return build


def index_put(b: Builder) -> Ref:
    """Two of four rows are overwritten."""
    y = b.call("aten.mm.default", b.weight(4, 6), b.weight(6, 12))
    new_rows = b.call("aten.mm.default", b.weight(2, 6), b.weight(6, 12))
    return b.down(b.call("aten.index_put.default", y, (b.constant([2, 0]),), new_rows))


def one_hot(b: Builder) -> Ref:
    y = b.call("aten.one_hot.default", b.tokens(11), 11)
    y = b.call("aten.to.dtype", y, Attr("dtype", "float32"))
    return b.down(b.call("aten.matmul.default", y, b.weight(11, 12)))


def prelu(b: Builder) -> Ref:
    return b.mix(b.call("aten.prelu.default", b.space(12), b.weight(12)))


def copy(b: Builder) -> Ref:
    return b.down(b.call("aten.copy.default", b.up(12), b.weight(12)))


def where(b: Builder) -> Ref:
    x = b.up(12)
    return b.down(b.call("aten.where.self", b.call("aten.gt.Scalar", x, 0.0), x, b.weight(12)))


def masked_fill(b: Builder) -> Ref:
    x = b.up(12)
    return b.down(b.call("aten.masked_fill.Scalar", x, b.call("aten.gt.Scalar", x, 0.0), 2.0))


def prelu_kernel(b: Builder) -> Ref:
    return b.down(b.call("aten._prelu_kernel.default", b.up(12), b.weight(12)))


def type_as(b: Builder) -> Ref:
    return b.down(b.call("aten.type_as.default", b.up(12), b.constant(0.5)))


def bernoulli(b: Builder) -> Ref:
    """Of chances that are all one."""
    x = b.up(12)
    ones = b.call("aten.ones_like.default", x)
    return b.down(b.call("aten.mul.Tensor", x, b.call("aten.bernoulli.default", ones)))


def binary(name: str) -> Build:
    """The overload of a reduction that compares two tensors entry by entry."""
    return lambda b: b.down(b.call(name, b.up(12), b.weight(12)))


FLOAT = Attr("dtype", "float32")

CASES: dict[str, Case] = {
    # contractions
    "aten.linear": case(lambda b: b.down(b.call("aten.relu.default", b.up(12))), 12),
    "aten.mm": case(t, 12),
    "aten.bmm": case(bmm, 12),
    "aten.addmm": both(case(addmm, 12), case(addmm_of_weights, 2, 12)),
    "aten.baddbmm": case(baddbmm, 12),
    "aten.mv": case(dot, 12),
    "aten.dot": case(dot, 12),
    "aten.outer": case(outer, 3, 8),
    "aten.embedding": case(embedding, 12),
    "aten.matmul": case(matmul, 3, 4, 4, 8, 9),
    "aten.einsum": case(einsum, 3, 4, 4),
    "aten.scaled_dot_product_attention": case(attention, 3, 4, 6, 3, 2, 4, 4, 2, 3, 4, 4),
    "aten.conv1d": case(convolutions(1), 12, 8, 2, 8, 12, 9, 2),
    "aten.conv2d": case(convolutions(2), 12, 8, 2, 8, 12, 9, 2),
    "aten.conv3d": case(convolutions(3), 12, 8, 2, 8, 12, 9, 2),
    "aten.convolution": case(convolution, 12, 8, 2, 8, 12, 3, 6, 3),
    "aten.conv_transpose1d": case(transposed(1), 12, 8, 3, 6, 2),
    "aten.conv_transpose2d": case(transposed(2), 12, 8, 3, 6, 2),
    "aten.conv_transpose3d": case(transposed(3), 12, 8, 3, 6, 2),
    # norms
    "aten.batch_norm": both(case(batch_norm, 12), case(standardised, 8, 12)),
    "aten._native_batch_norm_legit_no_training": case(batch_norm_legit, 12),
    "aten.instance_norm": case(instance_norm, 12),
    "aten.layer_norm": case(layer_norm, 12, 2, 4),
    "aten.rms_norm": case(rms_norm, 12),
    "aten.group_norm": case(group_norm, 3, 4, 8),
    "aten._weight_norm": case(weight_norm, 8, 12),
    # pools and other spatial operations
    "aten.max_pool1d": on_space(1, "aten.max_pool1d.default", (2,)),
    "aten.avg_pool1d": on_space(1, "aten.avg_pool1d.default", (2,)),
    "aten.adaptive_avg_pool1d": on_space(1, "aten.adaptive_avg_pool1d.default", (2,)),
    "aten.adaptive_max_pool1d": on_space(1, "aten.adaptive_max_pool1d.default", (2,)),
    "aten.max_pool2d": on_space(2, "aten.max_pool2d.default", (2, 2)),
    "aten.avg_pool2d": on_space(2, "aten.avg_pool2d.default", (2, 2)),
    "aten.adaptive_avg_pool2d": on_space(2, "aten.adaptive_avg_pool2d.default", (1, 1)),
    "aten.adaptive_max_pool2d": on_space(2, "aten.adaptive_max_pool2d.default", (2, 2)),
    "aten.max_pool3d": on_space(3, "aten.max_pool3d.default", (2, 2, 2)),
    "aten.avg_pool3d": on_space(3, "aten.avg_pool3d.default", (2, 2, 2)),
    "aten.adaptive_avg_pool3d": on_space(3, "aten.adaptive_avg_pool3d.default", (1, 1, 1)),
    "aten.upsample_nearest1d": on_space(1, "aten.upsample_nearest1d.default", (8,)),
    "aten.upsample_linear1d": on_space(1, "aten.upsample_linear1d.default", (8,), False),
    "aten.upsample_nearest2d": on_space(2, "aten.upsample_nearest2d.vec", None, (2.0, 2.0)),
    "aten.upsample_bilinear2d": on_space(2, "aten.upsample_bilinear2d.default", (8, 8), False),
    "aten.upsample_bicubic2d": on_space(2, "aten.upsample_bicubic2d.default", (8, 8), False),
    "aten.upsample_nearest3d": on_space(3, "aten.upsample_nearest3d.default", (8, 8, 8)),
    "aten.upsample_trilinear3d": on_space(3, "aten.upsample_trilinear3d.default", (8, 8, 8), False),
    "aten.reflection_pad1d": on_space(1, "aten.reflection_pad1d.default", (1, 1)),
    "aten.replication_pad1d": on_space(1, "aten.replication_pad1d.default", (1, 1)),
    "aten.reflection_pad2d": on_space(2, "aten.reflection_pad2d.default", (1, 1, 1, 1)),
    "aten.replication_pad2d": on_space(2, "aten.replication_pad2d.default", (1, 1, 1, 1)),
    "aten.pad": on_space(2, "aten.pad.default", (1, 1), "constant", 0.0),
    "aten.constant_pad_nd": on_space(2, "aten.constant_pad_nd.default", (0, 0, 1, 1), 2.0),
    "aten.pixel_shuffle": case(pixel_shuffle, 3),
    "aten.pixel_unshuffle": case(pixel_unshuffle, 8),
    # as its operand
    "aten.to": on_rows("aten.to.dtype", Attr("dtype", "float32")),
    "aten._to_copy": on_rows("aten._to_copy.default", dtype=FLOAT),
    "aten.clone": on_rows("aten.clone.default"),
    "aten.contiguous": on_rows("aten.contiguous.default"),
    "aten.detach": on_rows("aten.detach.default"),
    "aten.alias": on_rows("aten.alias.default"),
    "aten.type_as": case(type_as, 12),
    "aten.dropout": on_rows("aten.dropout.default", 0.5, False),
    "aten.feature_dropout": on_rows("aten.feature_dropout.default", 0.5, False),
    "aten.lift_fresh_copy": on_rows("aten.lift_fresh_copy.default"),
    "aten.nan_to_num": on_rows("aten.nan_to_num.default"),
    "aten.fill": case(empty, 12),
    "aten.zeros_like": added("aten.zeros_like.default"),
    "aten.ones_like": added("aten.ones_like.default"),
    "aten.full_like": added("aten.full_like.default", 2.0),
    "aten.empty_like": case(empty_like, 12),
    "aten.rand_like": times_zero("aten.rand_like.default"),
    "aten.randn_like": times_zero("aten.randn_like.default"),
    "aten.bernoulli": case(bernoulli, 12),
    # made from nothing
    "aten.zeros": case(filled("aten.zeros.default"), 12),
    "aten.ones": case(filled("aten.ones.default"), 12),
    "aten.full": case(filled("aten.full.default", 2.0), 12),
    "aten.empty": case(empty, 12),
    "aten.scalar_tensor": case(scalar, 12),
    "aten.new_zeros": case(new("aten.new_zeros.default"), 12),
    "aten.new_ones": case(new("aten.new_ones.default"), 12),
    "aten.new_full": case(new("aten.new_full.default", 2.0), 12),
    "aten.new_empty": case(new("aten.new_empty.default"), 12),
    "aten.arange": numbered("aten.arange.default", 12),
    "aten.linspace": numbered("aten.linspace.default", 0.0, 1.0, 12),
    "aten.eye": numbered("aten.eye.m", 1, 12),
    "aten.rand": numbered("aten.rand.default", (12,)),
    "aten.randn": numbered("aten.randn.default", (12,)),
    # along a dimension
    "aten.softmax": on_rows("aten.softmax.int", 1),
    "aten._softmax": on_rows("aten._softmax.default", 1, False),
    "aten._safe_softmax": on_rows("aten._safe_softmax.default", 1),
    "aten.log_softmax": on_rows("aten.log_softmax.int", 1),
    "aten._log_softmax": on_rows("aten._log_softmax.default", 1, False),
    "aten.cumsum": on_rows("aten.cumsum.default", 1),
    "aten.cumprod": on_rows("aten.cumprod.default", 1),
    "aten.logcumsumexp": on_rows("aten.logcumsumexp.default", 1),
    "aten.argsort": both(
        case(lambda b: b.down(as_float(b, "aten.argsort.default", 1)), 12),
        case(lambda b: b.down(as_float(b, "aten.argsort.stable", stable=True, dim=1)), 12),
    ),
    "aten.sort": both(
        first_on_rows("aten.sort.default", 1), first_on_rows("aten.sort.stable", stable=True, dim=1)
    ),
    "aten.cummax": first_on_rows("aten.cummax.default", 1),
    "aten.cummin": first_on_rows("aten.cummin.default", 1),
    "aten.topk": first_on_rows("aten.topk.default", 2, 1),
    "aten.roll": on_rows("aten.roll.default", (1,), (1,)),
    "aten.flip": on_rows("aten.flip.default", (1,)),
    "aten.triu": case(lambda b: b.mix(b.call("aten.triu.default", b.space(12))), 12),
    "aten.tril": case(lambda b: b.mix(b.call("aten.tril.default", b.space(12), 1)), 12),
    # reductions
    "aten.sum": both(
        reduced("aten.sum.dim_IntList", (1,)), over_channels("aten.sum.dim_IntList", (2,), True)
    ),
    "aten.nansum": both(reduced("aten.nansum.default", (1,)), over_channels("aten.nansum.default")),
    "aten.count_nonzero": both(
        reduced("aten.count_nonzero.dim_IntList", (1,)),
        over_channels("aten.count_nonzero.default"),
    ),
    "aten.mean": both(reduced("aten.mean.dim", (1,), True), over_channels("aten.mean.dim", (2,))),
    "aten.var": both(
        reduced("aten.var.correction", (1,), correction=0.0),
        over_channels("aten.var.correction", (2,), correction=0.0),
    ),
    "aten.std": both(
        reduced("aten.std.dim", (1,), False, True), over_channels("aten.std.default", False)
    ),
    "aten.var_mean": reduced("aten.var_mean.correction", (1,), correction=0.0),
    "aten.std_mean": reduced("aten.std_mean.correction", (1,), correction=0.0),
    "aten.amax": both(
        reduced("aten.amax.default", (1,)), over_channels("aten.amax.default", (2,), groups=())
    ),
    "aten.amin": reduced("aten.amin.default", (1,), True),
    "aten.max": both(reduced("aten.max.dim", 1), case(binary("aten.max.other"), 12)),
    "aten.min": both(reduced("aten.min.dim", 1, True), case(binary("aten.min.other"), 12)),
    "aten.argmax": both(
        reduced("aten.argmax.default", 1), over_channels("aten.argmax.default", groups=())
    ),
    "aten.argmin": reduced("aten.argmin.default", 1, True),
    "aten.prod": both(
        reduced("aten.prod.dim_int", 1), over_channels("aten.prod.default", groups=())
    ),
    "aten.logsumexp": reduced("aten.logsumexp.default", (1,)),
    "aten.any": case(on_truths("aten.any.dim", 1), 12),
    "aten.all": case(on_truths("aten.all.dims", (1,)), 12),
    "aten.median": both(
        reduced("aten.median.dim", 1), over_channels("aten.median.default", groups=())
    ),
    "aten.linalg_vector_norm": both(
        reduced("aten.linalg_vector_norm.default", 2, (1,)),
        over_channels("aten.linalg_vector_norm.default", 1, (2,)),
    ),
    "aten.norm": both(
        reduced("aten.norm.ScalarOpt_dim", 2, (1,)), over_channels("aten.norm.Scalar", 2)
    ),
    # shapes
    "aten.view": seen_as_matrix("aten.view.default"),
    "aten.reshape": seen_as_matrix("aten.reshape.default"),
    "aten._unsafe_view": seen_as_matrix("aten._unsafe_view.default"),
    "aten.flatten": case(flatten, 3, 4),
    "aten.unflatten": case(unflatten, 3, 4),
    "aten.expand": case(expand, 3, 4, 6),
    "aten.expand_as": case(expand_as, 12),
    "aten.repeat": case(repeat, 3, 8, 12),
    "aten.tile": case(tile, 3, 12),
    "aten.repeat_interleave": case(repeat_interleave, 2, 3, 12),
    "aten.unsqueeze": case(squeeze, 8, 12),
    "aten.squeeze": case(squeeze, 8, 12),
    "aten.permute": case(permute, 12),
    "aten.transpose": case(transposed_dims("aten.transpose.int"), 12),
    "aten.swapaxes": case(transposed_dims("aten.swapaxes.default"), 12),
    "aten.t": case(t, 12),
    "aten.numpy_T": case(numpy_t, 12),
    "aten.mT": case(mt, 8, 12),
    "aten.movedim": case(movedim, 8, 12),
    # parts
    "aten.select": case(select, 4),
    "aten.unbind": case(unbind, 4),
    "aten.slice": both(case(slices, 4, 8, 2, 6), case(interleaved, 6)),
    "aten.select_scatter": case(select_scatter, 12),
    "aten.slice_scatter": case(slice_scatter, 4, 8, 2, 5, 4, 10),
    "aten.narrow": case(narrow, 3, 4, 5),
    "aten.split": case(parts("aten.split.Tensor", 4), 4),
    "aten.chunk": case(parts("aten.chunk.default", 3), 4),
    "aten.split_with_sizes": case(parts("aten.split_with_sizes.default", (2, 4, 6)), 2, 4, 6),
    "aten.tensor_split": both(
        case(parts("aten.tensor_split.sections", 3), 4),
        case(parts("aten.tensor_split.indices", (2, 6)), 2, 4, 6),
    ),
    "aten.cat": case(cat, 4, 8, 12),
    "aten.stack": case(stack, 12),
    "aten.glu": case(lambda b: b.down(b.call("aten.glu.default", b.up(24), 2)), 12),
    # chosen by data
    "aten.index": case(index, 6, 8, 12),
    "aten.index_select": case(index_select, 12),
    "aten.gather": case(gather, 12),
    "aten.scatter": case(scattered("aten.scatter.src"), 12),
    "aten.scatter_add": case(scattered("aten.scatter_add.default"), 12),
    "aten.scatter_reduce": case(scattered("aten.scatter_reduce.two", "amax"), 12),
    "aten.index_put": case(index_put, 6, 6, 12),
    "aten.one_hot": case(one_hot, 12),
    # entry by entry, though torch does not say so
    "aten.im2col": case(im2col, 8, 12),
    "aten.unfold": case(unfold, 3, 4, 8),
    "aten.channel_shuffle": case(channel_shuffle("aten.channel_shuffle.default"), 3, 4),
    "aten.native_channel_shuffle": case(
        channel_shuffle("aten.native_channel_shuffle.default"), 3, 4
    ),
    "aten.view_as_complex": case(complex_pairs, 6),
    "aten.view_as_real": case(complex_pairs, 6),
    "aten.polar": case(complex_pairs, 6),
    **dict.fromkeys(
        ("aten.complex aten.real aten.imag aten.conj aten.resolve_conj aten.resolve_neg").split(),
        case(complex_parts, 12),
    ),
    **{f"aten.fft_{name}": fourier(f"fft_{name}") for name in TRANSFORMS},
    "aten.lstm": case(recurrent("aten.lstm.input", 4), 9),
    "aten.gru": case(recurrent("aten.gru.input", 3), 9),
    "aten.rnn_tanh": case(recurrent("aten.rnn_tanh.input", 1), 9),
    "aten.rnn_relu": case(recurrent("aten.rnn_relu.input", 1), 9),
    "aten.cosine_similarity": case(similarity, 12),
    "aten.bilinear": case(bilinear, 8, 9, 12),
    "aten.cdist": case(
        lambda b: b.call(
            "aten.sum.dim_IntList", b.call("aten.cdist.default", b.up(12), b.up(12)), (2,)
        ),
        12,
    ),
    "aten.grid_sampler": case(grid("aten.grid_sampler.default"), 12),
    "aten.grid_sampler_2d": case(grid("aten.grid_sampler_2d.default"), 12),
    "aten.max_pool2d_with_indices": on_space(2, "aten.max_pool2d_with_indices.default", (2, 2)),
    "aten.masked_scatter": case(masked_scatter, 6, 6, 12),
    "aten.index_add": case(index_write("aten.index_add.default"), 6, 6, 12),
    "aten.index_copy": case(index_write("aten.index_copy.default"), 6, 6, 12),
    "aten.index_fill": case(index_fill, 6, 12),
    "aten.diag_embed": case(diagonals, 6, 12),
    "aten.reshape_as": case(reshape_as, 3, 4),
    "aten.hardswish": on_rows("aten.hardswish.default"),
    "aten.log_sigmoid": on_rows("aten.log_sigmoid.default"),
    "aten.rsub": on_rows("aten.rsub.Scalar", 2.0),
    "aten.floor_divide": on_rows("aten.floor_divide.Scalar", 0.5),
    "aten.special_expm1": on_rows("aten.special_expm1.default"),
    "aten.special_erf": on_rows("aten.special_erf.default"),
    "aten.special_log1p": case(
        lambda b: b.down(
            b.call("aten.special_log1p.default", b.call("aten.sigmoid.default", b.up(12)))
        ),
        12,
    ),
    "aten.special_logit": on_rows("aten.special_logit.default", 0.1),
    "aten.bucketize": case(
        lambda b: b.down(as_float(b, "aten.bucketize.Tensor", b.constant([0.0, 0.5]))), 12
    ),
    "aten.prelu": case(prelu, 12),
    "aten._prelu_kernel": case(prelu_kernel, 12),
    "aten.copy": case(copy, 12),
    "aten.where": case(where, 12),
    "aten.masked_fill": case(masked_fill, 12),
}


def merged_heads(b: Builder) -> Ref:
    """Batch and heads in one dimension, and apart again by division, as Bloom does."""
    q, k, v = heads(b, 12, 3), heads(b, 12, 3), heads(b, 12, 3)
    batch, time = b.size(q, 0), b.size(q, 2)
    both = b.call("py.mul", batch, 3)
    q, k, v = (b.call("aten.reshape.default", x, (both, time, 4)) for x in (q, k, v))
    scores = b.call("aten.bmm.default", q, b.call("aten.transpose.int", k, 1, 2))
    y = b.call("aten.bmm.default", scores, v)
    apart = b.call("py.floordiv", b.size(y, 0), 3)
    return joined(b, b.call("aten.reshape.default", y, (apart, 3, time, 4)))


def heads_as_a_number(b: Builder) -> Ref:
    """The size of a group that goes into a number pins the group."""
    q = heads(b, 12, 3)
    both = b.call("py.mul", b.size(q, 0), 3)
    y = b.call("aten.reshape.default", q, (both, b.size(q, 2), 4))
    total = b.call("aten.mul.Tensor", b.down(y), b.call("py.truediv", b.size(y, 0), 100))
    return b.call("aten.reshape.default", total, (b.size(q, 0), 3, b.size(q, 2), 3))


SIZES: dict[str, Case] = {
    "py.mul": case(merged_heads, 3, 4, 4),
    "py.floordiv": case(merged_heads, 3, 4, 4),
    "py.truediv": case(heads_as_a_number, 4),
    "complex of a part": case(complex_of_a_part, 6, 8),
}
"""The like for arithmetic on run-time sizes, and for what lies in memory in another way."""


def as_float(b: Builder, name: str, *args: Arg, **kwargs: Arg) -> Ref:
    y = b.call(name, b.up(12), *args, **kwargs)
    return b.call("aten.to.dtype", y, Attr("dtype", "float32"))
