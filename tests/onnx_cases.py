"""For each rule of the ONNX backend a small function that the rule has to write.

The first dimension of every input is dynamic, and called `n`, unless the case says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nnf

__all__ = ["CASES", "Case"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """`function` of `inputs`, in which the dimensions `dynamic` vary."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    dynamic: tuple[int, ...] = (0,)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def positive(*shape: int) -> Tensor:
    return rand(*shape).abs() + 0.1


def unit(*shape: int) -> Tensor:
    return rand(*shape).tanh() * 0.9


def ints(*shape: int, high: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-high, high, shape, generator=generator)


def places(*shape: int, high: int = 3) -> Tensor:
    return ints(*shape, high=high).abs() % high


def truth(*shape: int) -> Tensor:
    return rand(*shape) > 0


X, Y = rand(2, 3, 4), rand(2, 3, 4) * 2
N, M = ints(2, 3, 4), ints(2, 3, 4, high=5).abs() + 1
T, U = truth(2, 3, 4), truth(2, 3, 1)
IMAGE, WIDE = rand(2, 6, 8, 8), rand(2, 6, 16)


def case(function: Callable[..., Any], *inputs: Tensor) -> Case:
    return Case(function, inputs)


def sizes(function: Callable[..., Any]) -> Case:
    """Arithmetic on the size of a dimension."""
    return case(lambda x: x.new_zeros(function(x.shape[0])), X)


def _unary() -> dict[str, Case]:
    on_any = (
        "abs ceil cos erf exp floor neg relu round sigmoid sign sin sinh cosh tan tanh atan asinh"
    )
    found = {f"aten.{n}.default": case(getattr(aten, n), X) for n in on_any.split()}
    for name in ("log", "sqrt", "rsqrt", "reciprocal", "log1p", "log2", "log10"):
        found[f"aten.{name}.default"] = case(getattr(aten, name), positive(2, 3))
    for name in ("asin", "acos", "atanh"):
        found[f"aten.{name}.default"] = case(getattr(aten, name), unit(2, 3))
    for name in ("erf", "expm1", "log1p"):
        found[f"aten.special_{name}.default"] = case(getattr(aten, f"special_{name}"), unit(2, 3))
    for name in ("logit", "special_logit"):
        function = getattr(aten, name)
        found[f"aten.{name}.default"] = Case(
            lambda x, f=function: (f(x.sigmoid()), f(x, 0.1)), (unit(2, 3),)
        )
    found["aten.acosh.default"] = case(lambda x: aten.acosh(x + 1), positive(2, 3))
    for name in "softplus mish silu square exp2 expm1 relu6 hardsigmoid hardswish".split():
        found[f"aten.{name}.default"] = case(getattr(aten, name), X)
    return found


def _comparisons() -> dict[str, Case]:
    found = {}
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        function = getattr(torch, name)
        found[f"aten.{name}.Tensor"] = case(lambda x, y, f=function: f(x, y), N, M)
        found[f"aten.{name}.Scalar"] = case(lambda x, f=function: f(x, 2.5), N)
    for name in ("and", "or", "xor"):
        function = getattr(torch, f"bitwise_{name}")
        found[f"aten.bitwise_{name}.Tensor"] = case(lambda x, y, f=function: f(x, y), T, U)
        found[f"aten.bitwise_{name}.Scalar"] = case(lambda x, f=function: f(x, 5), N)
        function = getattr(torch, f"logical_{name}")
        found[f"aten.logical_{name}.default"] = case(lambda x, y, f=function: f(x, y), T, U)
    return found


POINTWISE: dict[str, Case] = {
    **_unary(),
    **_comparisons(),
    "aten.isnan.default": case(lambda x: torch.isnan(x.log()), X),
    "aten.isinf.default": case(lambda x: aten.isinf(1 / x.relu()), X),
    "aten.logical_not.default": case(torch.logical_not, N),
    "aten.bitwise_not.default": case(lambda x, y: (~x, ~y), N, T),
    "aten.add.Tensor": case(lambda x, y: torch.add(x, y, alpha=2.5) + 1, X, N),
    "aten.add.Scalar": case(lambda x: aten.add.Scalar(x, 2, 3), X),
    "aten.sub.Tensor": case(lambda x, y: torch.sub(x, y, alpha=2) - 1, X, Y),
    "aten.sub.Scalar": case(lambda x: aten.sub.Scalar(x, 2), X),
    "aten.rsub.Scalar": case(lambda x: torch.rsub(x, 2), X),
    "aten.mul.Tensor": case(lambda x, y, z: (x * z, y * z, y * 0.5, x * (x * x).rsqrt()), X, N, T),
    "aten.mul.Scalar": case(lambda x: aten.mul.Scalar(x, 3), X),
    "aten.div.Tensor": case(lambda x, y: (x / y, x / 2), N, M),
    "aten.div.Scalar": case(lambda x: aten.div.Scalar(x, 3), X),
    "aten.div.Tensor_mode": case(
        lambda x, y, z: [
            torch.div(a, b, rounding_mode=m)
            for a, b in ((x, y), (z, y))
            for m in ("floor", "trunc")
        ],
        N,
        M,
        X * 5,
    ),
    "aten.div.Scalar_mode": case(lambda x: aten.div.Scalar_mode(x, 3, rounding_mode="floor"), N),
    "aten.floor_divide.default": case(lambda x, y: x // y, N, M),
    "aten.floor_divide.Scalar": case(lambda x: aten.floor_divide.Scalar(x, 3), X * 5),
    "aten.remainder.Tensor": case(lambda x, y, z: (x % y, z % y), N, M, X * 5),
    "aten.remainder.Scalar": case(lambda x: (x % 3, -x % 4), N),
    "aten.pow.Tensor_Scalar": case(lambda x: (x**2, x**3), X),
    "aten.pow.Tensor_Tensor": case(torch.pow, positive(2, 3), rand(2, 3)),
    "aten.pow.Scalar": case(lambda x: 2**x, X),
    "aten.minimum.default": case(torch.minimum, X, Y),
    "aten.maximum.default": case(torch.maximum, X, Y),
    "aten.min.other": case(torch.min, X, Y),
    "aten.max.other": case(torch.max, X, Y),
    "aten.where.self": case(torch.where, T, X, N),
    "aten.where.ScalarOther": case(lambda t, x: torch.where(t, x, -1e9), U, X),
    "aten.where.ScalarSelf": case(lambda t, x: torch.where(t, 2.0, x), U, X),
    "aten.where.Scalar": case(lambda t: torch.where(t, 2.0, 3.0), T),
    "aten.masked_fill.Scalar": case(lambda x, t: x.masked_fill(t, float("-inf")), X, U),
    "aten.masked_fill.Tensor": case(lambda x, t, y: x.masked_fill(t, y.sum()), X, U, Y),
    "aten.clamp.default": case(lambda x: (x.clamp(-1, 1), x.clamp(max=0.5)), X),
    "aten.clip.default": case(lambda x: aten.clip(x, -1, 1), X),
    "aten.clamp.Tensor": case(lambda x, y: torch.clamp(x, max=y), X, Y),
    "aten.clamp_min.default": case(lambda x: aten.clamp_min(x, 0.5), X),
    "aten.clamp_min.Tensor": case(aten.clamp_min.Tensor, X, Y),
    "aten.clamp_max.default": case(lambda x: aten.clamp_max(x, 0.5), X),
    "aten.clamp_max.Tensor": case(aten.clamp_max.Tensor, X, Y),
    "aten.gelu.default": case(lambda x: (nnf.gelu(x), nnf.gelu(x, approximate="tanh")), X),
    "aten.hardtanh.default": case(lambda x: (nnf.hardtanh(x), nnf.hardtanh(x, -0.5, 0.25)), X),
    "aten.elu.default": case(lambda x: (nnf.elu(x), nnf.elu(x, 0.5)), X),
    "aten.leaky_relu.default": case(lambda x: (nnf.leaky_relu(x), nnf.leaky_relu(x, 0.2)), X),
    "aten.to.dtype": case(lambda x, y: (x.long(), y.float(), x.bool()), X, N),
}

SHAPE: dict[str, Case] = {
    "aten.reshape.default": case(
        lambda x: (
            x.reshape(x.shape[0], 12),
            x.reshape(-1, 4),
            x.reshape(3, x.shape[0], 2, 2),
            x.reshape(1, x.shape[0] * 3, -1),
            x[..., :0].reshape(x.shape[0], 1, 0, 3),
        ),
        X,
    ),
    "aten.reshape_as.default": case(lambda x, y: x.reshape_as(y), X, rand(2, 4, 3)),
    "aten.flatten.using_ints": case(lambda x: (x.flatten(1), x.flatten(0, 1)), X),
    "aten.unflatten.int": case(lambda x: x.unflatten(2, (2, 2)), X),
    "aten.expand.default": case(
        lambda x, y: (
            x.expand(y.shape[0], 3, 4),
            x.expand(y.shape[0], 5, 3, -1),
            y.expand(-1, 3, 4),
        ),
        rand(3, 1),
        rand(2, 1, 4),
    ),
    "aten.transpose.int": case(lambda x: x.transpose(1, 2), X),
    "aten.permute.default": case(lambda x: x.permute(2, 0, 1), X),
    "aten.unsqueeze.default": case(lambda x: (x.unsqueeze(0), x.unsqueeze(-1)), X),
    "aten.squeeze.dim": case(lambda x: (x.squeeze(1), x.squeeze(2)), rand(2, 1, 3, 1)),
    "aten.squeeze.dims": case(lambda x: x.squeeze((1, 2, 3)), rand(2, 1, 3, 1)),
    "aten.cat.default": case(lambda x, y: (torch.cat([x, y], 1), torch.cat([x, y])), X, Y),
    "aten.stack.default": case(lambda x, y: (torch.stack([x, y]), torch.stack([x, y], -1)), X, Y),
    "aten.split.Tensor": case(lambda x: x.split(3, 2), X),
    "aten.split.sizes": case(lambda x: aten.split.sizes(x, [1, 3], 2), X),
    "aten.split_with_sizes.default": case(
        lambda x: (*x.split([1, 3], 2), *torch.cat([x, x[:1]]).split([1, x.shape[0]])), X
    ),
    "aten.chunk.default": case(lambda x: (x.chunk(3, 2), torch.cat([x, x]).chunk(2, 0)), X),
    "aten.unbind.int": case(lambda x: x.unbind(1), X),
    "aten.slice.Tensor": case(
        lambda x: (x[:, 1:], x[..., ::2], x[1:], x[..., -2:], x[: x.shape[0] - 1], x[-1:]), X
    ),
    "aten.expand_as.default": case(lambda x, y: y.expand_as(x), X, rand(1, 4)),
    "aten.unfold.default": case(
        lambda x, y: (x.unfold(1, 2, 1), x.unfold(-1, 3, 1), x.unfold(-2, 2, 1), y.unfold(0, 2, 1)),
        X,
        Y,
    ),
    "aten.fill.Scalar": case(lambda x: aten.fill(x, 2.5), X),
    "aten.fill.Tensor": case(lambda x: aten.fill(x, x.sum()), X),
    "aten.diff.default": case(
        lambda x, y: (
            x.diff(),
            x.diff(dim=1),
            x.diff(dim=1, prepend=y[:, :1], append=y[:, 1:]),
            x.diff(dim=0, append=y[:1]),
        ),
        X,
        Y,
    ),
    "aten.meshgrid.indexing": case(
        lambda x, y: (
            *torch.meshgrid(x[:, 0, 0], y[0, :, 0], indexing="ij"),
            *torch.meshgrid(x[:, 0, 0], y[0, :, 0], y[0, 0], indexing="xy"),
        ),
        X,
        Y,
    ),
    "aten.select.int": case(lambda x: (x[:, 1], x[0], x[:, -1], x[-1]), X),
    "aten.flip.default": case(lambda x: (x.flip(1), x.flip(0, 2)), X),
    "aten.roll.default": case(lambda x: x.roll((1, -2), (1, 2)), X),
    "aten.repeat.default": case(lambda x: (x.repeat(1, 2, 1), x.repeat(3, x.shape[0], 1, 1)), X),
    "aten.tile.default": case(lambda x: aten.tile(x, [1, 2, 1]), X),
    "aten.repeat_interleave.self_int": case(lambda x: x.repeat_interleave(2, 1), X),
    "aten.pad.default": case(
        lambda x: (
            nnf.pad(x, (1, 2, 0, 1)),
            nnf.pad(x, (0, 0, 0, x.shape[0])),
            nnf.pad(x, (1, 1), value=2.0),
            nnf.pad(x, (1, 1), mode="reflect"),
            nnf.pad(x, (1, 1), mode="replicate"),
        ),
        X,
    ),
    "aten.constant_pad_nd.default": case(lambda x: aten.constant_pad_nd(x, [1, 2], 3.0), X),
    "aten.tril.default": case(lambda x: (x.tril(), x.tril(-1)), X),
    "aten.triu.default": case(lambda x: x.triu(1), X),
    "aten.arange.default": case(
        lambda x: (torch.arange(x.shape[0]), torch.arange(x.shape[0], dtype=torch.float32)), X
    ),
    "aten.arange.start": case(lambda x: torch.arange(1, x.shape[0] + 3), X),
    "aten.arange.start_step": case(
        lambda x: (torch.arange(0, 8, 2) + x[0, 0].sum(), torch.arange(0, 3 * x.shape[0], 3)), X
    ),
    "aten.zeros.default": case(lambda x: torch.zeros(x.shape[0], 2) + x.sum(), X),
    "aten.ones.default": case(lambda x: torch.ones(x.shape[0], 2, dtype=torch.int64), X),
    "aten.zeros_like.default": case(lambda x: torch.zeros_like(x) + 1, X),
    "aten.ones_like.default": case(lambda x: torch.ones_like(x, dtype=torch.int64), X),
    "aten.new_zeros.default": case(lambda x: x.new_zeros(3, x.shape[0]), X),
    "aten.new_ones.default": case(lambda x: x.new_ones((), dtype=torch.bool) & (x > 0), X),
    "aten.full.default": case(lambda x: torch.full((x.shape[0], 2), 3.5), X),
    "aten.new_full.default": case(lambda x: x.new_full((2, x.shape[0]), 3.5), X),
    "aten.new_empty.default": case(lambda x: x.new_empty(3, x.shape[0], dtype=torch.int64) * 0, X),
    "aten.full_like.default": case(lambda x: torch.full_like(x, 2.5), X),
    "aten.scalar_tensor.default": case(lambda x: x * aten.scalar_tensor(2.5), X),
    "aten.sym_size.int": case(lambda x: x.reshape(1, x.shape[0], -1), X),
    "py.add": sizes(lambda n: n + 2),
    "py.sub": sizes(lambda n: n - 1),
    "py.mul": sizes(lambda n: n * 3),
    "py.floordiv": sizes(lambda n: n // 2),
    "py.mod": sizes(lambda n: n % 2 + 1),
    "py.neg": case(lambda x: x[: -(x.shape[0] - 1)], X),
    "py.max": sizes(lambda n: torch.sym_max(n, 4)),
    "py.min": sizes(lambda n: torch.sym_min(n, 4)),
}

SCATTER: dict[str, Case] = {
    "aten.scatter.src": case(lambda x, i, y: x.scatter(1, i, y), X, places(2, 1, 4), rand(2, 1, 4)),
    "aten.scatter.value": case(lambda x, i: x.scatter(1, i, 2.5), X, places(2, 1, 4)),
    "aten.index_add.default": case(
        lambda x, i, y: (
            x.index_add(1, i, y),
            x.index_add(2, i, x[..., :3], alpha=3),
            x[0].index_add(0, i, y[0]),
        ),
        X,
        places(3),
        Y,
    ),
    "aten.scatter_add.default": case(lambda x, i, y: x.scatter_add(1, i, y), X, places(2, 3, 4), Y),
    "aten.masked_scatter.default": case(
        lambda x, t, y: (
            x.masked_scatter(t, y),
            x.masked_scatter(t[:, :, :1], y),
            x.masked_scatter(t & ~t, y[:0, 0]),
        ),
        X,
        T,
        Y,
    ),
    "aten.copy.default": case(
        lambda x, n: (aten.copy(x, n), aten.copy(x, n[0, 0]), aten.copy(n, n + 1)), X, N
    ),
    "aten.select_scatter.default": case(
        lambda x, y: (
            aten.select_scatter(x, y[:, 0], 1, 0),
            aten.select_scatter(x, y[:, 1], 1, 1),
            aten.select_scatter(x, y[:, 1], 1, -1),
            aten.select_scatter(x, y[..., 3], -1, -2),
        ),
        X,
        Y,
    ),
    "aten.slice_scatter.default": case(
        lambda x, y: (
            aten.slice_scatter(x, y[:, :2], 1, 0, 2),
            aten.slice_scatter(x, y[..., :2], 2, 1, 3),
            aten.slice_scatter(x, y[..., :2], -1, -2),
            aten.slice_scatter(x, y[..., :2], 2, -3, -1),
            aten.slice_scatter(x, y, 0, 0, 2**63 - 1),
            aten.slice_scatter(x, y[:1], 0, 1, 2),
            aten.slice_scatter(torch.cat([x, x]), y, 0, x.shape[0] - 1, 2 * x.shape[0] - 1),
        ),
        X,
        Y,
    ),
}

REDUCE: dict[str, Case] = {
    "aten.mean.dim": case(lambda x: (x.mean(1), x.mean((0, 2), keepdim=True)), X),
    "aten.mean.default": case(lambda x: x.mean(), X),
    "aten.sum.dim_IntList": case(lambda x, t: (x.sum(1), t.sum(-1, keepdim=True)), X, T),
    "aten.sum.default": case(lambda x: x.sum(), N),
    "aten.amax.default": case(lambda x: (x.amax(1), x.amax((0, 2), keepdim=True)), X),
    "aten.amin.default": case(lambda x: x.amin(1), X),
    "aten.max.default": case(lambda x: x.max(), X),
    "aten.min.default": case(lambda x: x.min(), X),
    "aten.prod.dim_int": case(lambda x: x.prod(1), X),
    "aten.prod.default": case(lambda x: x.prod(), X),
    "aten.logsumexp.default": case(lambda x: x.logsumexp(1), X),
    "aten.any.dim": case(lambda x: x.any(1), T),
    "aten.any.dims": case(lambda x: x.any((1, 2)), T),
    "aten.any.default": case(lambda x: x.any(), T),
    "aten.all.dim": case(lambda x: x.all(1, keepdim=True), T),
    "aten.all.dims": case(lambda x: x.all((1, 2)), T),
    "aten.all.default": case(lambda x: x.all(), T),
    "aten.nonzero.default": case(lambda x: (x > 0).nonzero(), X),
    "aten.where.default": case(lambda x: (*torch.where(x > 0), *torch.where(x[:, 0, 0] < 9)), X),
    "aten.isin.Tensor_Tensor": case(
        lambda n, m: (torch.isin(n, m), torch.isin(n[:, 0], m[0], invert=True)), N, M
    ),
    "aten.var.correction": case(
        lambda x: (aten.var.correction(x, [2]), x.var((1, 2), correction=0, keepdim=True)), X
    ),
    "aten.var.dim": case(lambda x: (x.var(-1), x.var((1, 2), False, True)), X),
    "aten.std.dim": case(lambda x: x.std(-1, keepdim=True), X),
    "aten.std.correction": case(lambda x: aten.std.correction(x, [2], correction=1), X),
    "aten.linalg_vector_norm.default": case(
        lambda x: (torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(x, ord=1)), X
    ),
    "aten.softmax.int": case(lambda x: (x.softmax(1), x.softmax(-1, dtype=torch.float64)), X),
    "aten._softmax.default": case(lambda x: aten._softmax(x, 1, False), X),
    "aten.log_softmax.int": case(lambda x: x.log_softmax(1), X),
    "aten._log_softmax.default": case(lambda x: aten._log_softmax(x, 1, False), X),
    "aten.cumsum.default": case(lambda x, t: (x.cumsum(1), t.cumsum(-1)), X, T),
    "aten.cummax.default": case(lambda x, n: (*x.cummax(1), *n.cummax(-1), *n.cummax(0)), X, N),
    "aten.cummin.default": case(lambda x: (*x.cummin(1), *x[0, 0].cummin(0)), X),
    "aten.topk.default": case(lambda x: (*x.topk(2), *x.topk(1, 1, largest=False)), X),
    "aten.sort.default": case(lambda x: (*x.sort(), *x.sort(1, descending=True)), X),
    "aten.argmax.default": case(lambda x: (x.argmax(1), x.argmax(), x.argmax(1, True)), X),
    "aten.argmin.default": case(lambda x: x.argmin(1), X),
    "aten.max.dim": case(lambda x: x.max(1), X),
    "aten.min.dim": case(lambda x: x.min(1, keepdim=True), X),
    "aten.gather.default": case(lambda x, i: x.gather(1, i), X, places(2, 3, 4)),
    "aten.item.default": case(
        lambda x, i: (x[:, : i[0].item() + 1].sum(1), x * i.sum().item()), X, places(2)
    ),
    "aten.index_select.default": case(lambda x, i: x.index_select(1, i), X, places(2)),
    "aten.embedding.default": case(
        lambda i, w: nnf.embedding(i, w), places(2, 5, high=7), rand(7, 3)
    ),
    "aten.index.Tensor": case(
        lambda x, i, j: (
            x[x > 0],  # a mask
            x[x.sum((1, 2)) > -9],
            x[:, i],  # one index
            x[i, j],  # two in front
            x[:, i, j],  # two adjacent
            x[i, :, j],  # two apart: the new dimension goes to the front
            x[i[:, None], j[None]],  # broadcast
            x[:, [0, 2]],
        ),
        rand(3, 3, 3),
        places(4),
        places(4, high=2),
    ),
    "aten.one_hot.default": case(lambda i: nnf.one_hot(i, 5), places(2, 3)),
}

NN: dict[str, Case] = {
    "aten.linear.default": case(
        lambda x, w, c: (nnf.linear(x, w), nnf.linear(x, w, c), nnf.linear(x, w[0])),
        X,
        rand(5, 4),
        rand(5),
    ),
    "aten.matmul.default": case(lambda x, y: x @ y, X, rand(2, 4, 5)),
    "aten.mm.default": case(torch.mm, rand(2, 3), rand(3, 4)),
    "aten.bmm.default": case(torch.bmm, X, rand(2, 4, 5)),
    "aten.mv.default": case(torch.mv, rand(2, 3), rand(3)),
    "aten.addmm.default": case(
        lambda c, x, w: torch.addmm(c, x, w, beta=0.5, alpha=2), rand(4), rand(2, 3), rand(3, 4)
    ),
    "aten.baddbmm.default": case(
        lambda c, x, y: (
            torch.baddbmm(c, x, y, beta=0.5, alpha=2),
            torch.baddbmm(c, x, y, beta=0),
        ),
        rand(2, 3, 5),
        X,
        rand(2, 4, 5),
    ),
    "aten.einsum.default": case(lambda x, y: torch.einsum("bij,bkj->bik", x, y), X, rand(2, 5, 4)),
    "aten.conv1d.default": case(
        lambda x, w, c: nnf.conv1d(x, w, c, stride=2, padding=1), WIDE, rand(4, 6, 3), rand(4)
    ),
    "aten.conv1d.padding": case(lambda x, w: nnf.conv1d(x, w, padding="same"), WIDE, rand(4, 6, 3)),
    "aten.conv2d.default": case(
        lambda x, w, v: (
            nnf.conv2d(x, w, stride=(2, 1), padding=(1, 0)),
            nnf.conv2d(x, v, groups=3, dilation=2),
        ),
        IMAGE,
        rand(4, 6, 3, 3),
        rand(9, 2, 3, 3),
    ),
    "aten.conv2d.padding": case(
        lambda x, w: (nnf.conv2d(x, w, padding="same"), nnf.conv2d(x, w, padding="valid")),
        IMAGE,
        rand(4, 6, 3, 3),
    ),
    "aten.conv3d.default": case(nnf.conv3d, rand(2, 2, 4, 4, 4), rand(3, 2, 2, 2, 2)),
    "aten.conv3d.padding": case(
        lambda x, w: nnf.conv3d(x, w, padding="valid"), rand(2, 2, 4, 4, 4), rand(3, 2, 2, 2, 2)
    ),
    "aten.conv_transpose1d.default": case(
        lambda x, w: nnf.conv_transpose1d(x, w, stride=2), WIDE, rand(6, 4, 3)
    ),
    "aten.conv_transpose2d.input": case(
        lambda x, w, c: nnf.conv_transpose2d(x, w, c, stride=2, padding=1, output_padding=1),
        IMAGE,
        rand(6, 4, 3, 3),
        rand(4),
    ),
    "aten.conv_transpose3d.input": case(
        nnf.conv_transpose3d, rand(2, 5, 4, 4, 4), rand(5, 3, 2, 2, 2)
    ),
    "aten.layer_norm.default": case(
        lambda x, w, c: (
            nnf.layer_norm(x, (4,), w, c, 1e-3),
            nnf.layer_norm(x, (3, 4)),
            nnf.layer_norm(x, (4,), w),
        ),
        X,
        rand(4),
        rand(4),
    ),
    "aten.rms_norm.default": case(
        lambda x, w: (nnf.rms_norm(x, (4,), w, 1e-3), nnf.rms_norm(x, (3, 4))), X, rand(4)
    ),
    "aten.group_norm.default": case(
        lambda x, w, c: (nnf.group_norm(x, 3, w, c), nnf.group_norm(x, 2)), IMAGE, rand(6), rand(6)
    ),
    "aten.batch_norm.default": case(
        lambda x, m, v, w, c: (
            nnf.batch_norm(x, m, v, w, c),
            nnf.batch_norm(x, m, v),
            nnf.batch_norm(x[:1], None, None, w, c, training=True, eps=1e-8),
            nnf.batch_norm(x[:1, :, 0], None, None, training=True),
        ),
        IMAGE,
        rand(6),
        positive(6),
        rand(6),
        rand(6),
    ),
    "aten._native_batch_norm_legit_no_training.default": case(
        lambda x, m, v, w: aten._native_batch_norm_legit_no_training(x, w, None, m, v, 0.1, 1e-3)[
            0
        ],
        IMAGE,
        rand(6),
        positive(6),
        rand(6),
    ),
    "aten.scaled_dot_product_attention.default": case(
        lambda q, k, v, m, t: (
            nnf.scaled_dot_product_attention(q, k, v),
            nnf.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
            nnf.scaled_dot_product_attention(q, k, v, m),
            nnf.scaled_dot_product_attention(q, k, v, t),
            nnf.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        ),
        rand(2, 4, 5, 8),
        rand(2, 4, 5, 8),
        rand(2, 4, 5, 6),
        rand(2, 1, 5, 5),
        (rand(2, 1, 5, 5) > 0) & (torch.arange(5)[:, None] > 0),  # row 0 attends to nothing
    ),
    "aten.max_pool1d.default": case(lambda x: aten.max_pool1d(x, [2]), WIDE),
    "aten.max_pool2d.default": case(
        lambda x: (nnf.max_pool2d(x, 3, 2, 1), nnf.max_pool2d(x[0], 2)), IMAGE
    ),
    "aten.max_pool3d.default": case(lambda x: nnf.max_pool3d(x, 2), rand(2, 2, 4, 4, 4)),
    "aten.avg_pool1d.default": case(lambda x: nnf.avg_pool1d(x, 3, 2, 1), WIDE),
    "aten.avg_pool2d.default": case(
        lambda x: (nnf.avg_pool2d(x, 2), nnf.avg_pool2d(x, 3, 2, 1, count_include_pad=False)), IMAGE
    ),
    "aten.avg_pool3d.default": case(lambda x: nnf.avg_pool3d(x, 2), rand(2, 2, 4, 4, 4)),
    "aten.adaptive_avg_pool1d.default": case(lambda x: nnf.adaptive_avg_pool1d(x, 4), WIDE),
    "aten.upsample_nearest1d.vec": case(
        lambda x: (nnf.interpolate(x, scale_factor=2), nnf.interpolate(x, 7)), WIDE
    ),
    "aten.upsample_nearest2d.vec": case(
        lambda x: (
            nnf.interpolate(x, scale_factor=2),
            nnf.interpolate(x, (11, 5)),
            nnf.interpolate(x, (x.shape[0] + 3, 5)),
        ),
        IMAGE,
    ),
    "aten.upsample_nearest3d.vec": case(
        lambda x: nnf.interpolate(x, scale_factor=(2, 1, 3)), rand(2, 2, 4, 4, 4)
    ),
    "aten.upsample_linear1d.vec": case(
        lambda x: (
            nnf.interpolate(x, scale_factor=1.5, mode="linear"),
            nnf.interpolate(x, 23, mode="linear", align_corners=True),
        ),
        WIDE,
    ),
    "aten.upsample_bilinear2d.vec": case(
        lambda x: (
            nnf.interpolate(x, scale_factor=2, mode="bilinear"),
            nnf.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
            nnf.interpolate(x, (3, 13), mode="bilinear"),
            nnf.interpolate(x, (1, 1), mode="bilinear"),
        ),
        IMAGE,
    ),
    "aten.upsample_trilinear3d.vec": case(
        lambda x: nnf.interpolate(x, scale_factor=2, mode="trilinear"), rand(2, 2, 4, 4, 4)
    ),
    "aten.upsample_bicubic2d.vec": case(
        lambda x: (
            nnf.interpolate(x, (3, 13), mode="bicubic"),
            nnf.interpolate(x, (9, 13), mode="bicubic", align_corners=True),
        ),
        IMAGE,
    ),
    "aten.grid_sampler.default": case(
        lambda x, g: (
            nnf.grid_sample(x, g, align_corners=False),
            nnf.grid_sample(x, g, "nearest", "border", align_corners=False),
            nnf.grid_sample(x, g, "bilinear", "reflection", align_corners=True),
        ),
        IMAGE,
        rand(2, 3, 5, 2),
    ),
    "aten.grid_sampler_2d.default": case(
        lambda x, g: aten.grid_sampler_2d(x, g, 0, 0, True), IMAGE, rand(2, 3, 5, 2)
    ),
    "aten._weight_norm.default": case(
        lambda x, v, g: x @ torch._weight_norm(v, g, 0) + x @ torch._weight_norm(v, g.mT, 1),
        X,
        rand(4, 4),
        rand(4, 1),
    ),
    "aten.glu.default": case(lambda x: (nnf.glu(x), nnf.glu(IMAGE[:1, :, 0] * x[0, 0, 0], 1)), X),
    "aten.adaptive_avg_pool2d.default": case(
        lambda x: (nnf.adaptive_avg_pool2d(x, 1), nnf.adaptive_avg_pool2d(x, (2, 4))), IMAGE
    ),
    "aten.adaptive_avg_pool3d.default": case(
        lambda x: nnf.adaptive_avg_pool3d(x, 2), rand(2, 2, 4, 4, 4)
    ),
}

CASES: dict[str, Case] = {**POINTWISE, **SHAPE, **REDUCE, **SCATTER, **NN}
