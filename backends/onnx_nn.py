"""ONNX for operations that contract, normalise, attend and pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import onnx_ir as ir

from prunec.backends.onnx_build import NUMPY_DTYPES, Builder, Rule, Rules, Unsupported, argument
from prunec.ir.graph import Arg, Op, Ref

__all__ = ["NN"]


def _ints(arg: Arg, count: int) -> list[int]:
    """A number for each spatial dimension, which torch lets one number stand for."""
    items = arg if isinstance(arg, tuple) else (arg,)
    if not all(isinstance(i, int) for i in items):
        raise Unsupported(f"computed numbers {arg!r}")
    found = [int(i) for i in items if isinstance(i, int)]
    return found * count if len(found) == 1 else found


def _linear(b: Builder, op: Op) -> ir.Value:
    """The weight keeps its [out, in] layout in the file; runtimes fold the transposition."""
    x, weight = op.args[:2]
    bias = argument(op, 2, None)
    one = b.rank(weight) == 1  # a single output, which has no dimension
    product = b.op("MatMul", b.value(x), b.value(weight) if one else _transposed(b, weight))
    return b.op("Add", product, b.value(bias)) if bias is not None else product


def _transposed(b: Builder, weight: Arg) -> ir.Value:
    assert isinstance(weight, Ref)
    key = ("transposed", weight.name)
    if key not in b.memo:
        b.memo[key] = b.op("Transpose", b.value(weight), perm=[1, 0])
    found: ir.Value = b.memo[key]
    return found


def _matmul(b: Builder, op: Op) -> ir.Value:
    return b.op("MatMul", b.value(op.args[0]), b.value(op.args[1]))


def _addmm(b: Builder, op: Op) -> ir.Value:
    bias, left, right = op.args
    factors = {k: float(v) for k, v in op.kwargs if isinstance(v, int | float)}
    return b.op("Gemm", b.value(left), b.value(right), b.value(bias), **factors)


def _baddbmm(b: Builder, op: Op) -> ir.Value:
    bias, left, right = op.args
    dtype = op.types[0].dtype
    product = b.op("MatMul", b.value(left), b.value(right))
    alpha, beta = op.kwarg("alpha", 1), op.kwarg("beta", 1)
    if alpha != 1:
        product = b.op("Mul", product, b.value(alpha, dtype))
    if beta == 0:
        return product
    added = b.value(bias)
    if beta != 1:
        added = b.op("Mul", added, b.value(beta, dtype))
    return b.op("Add", product, added)


def _einsum(b: Builder, op: Op) -> ir.Value:
    equation, operands = op.args[:2]
    assert isinstance(operands, tuple)
    return b.op("Einsum", *(b.value(a) for a in operands), equation=str(equation))


def _conv(b: Builder, op: Op) -> ir.Value:
    spatial = b.rank(op.args[1]) - 2
    x, weight, bias = op.args[0], op.args[1], argument(op, 2, None)
    stride, padding, dilation, groups = (
        argument(op, i + 3, default) for i, default in enumerate((1, 0, 1, 1))
    )
    settings: dict[str, Any] = {
        "strides": _ints(stride, spatial),
        "dilations": _ints(dilation, spatial),
        "group": groups,
    }
    if isinstance(padding, str):
        settings["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[padding]
    else:
        settings["pads"] = _ints(padding, spatial) * 2
    added = b.value(bias) if bias is not None else None
    unbatched = b.rank(x) == spatial + 1
    value = b.op("Unsqueeze", b.value(x), b.ints(0)) if unbatched else b.value(x)
    found = b.op("Conv", value, b.value(weight), added, **settings)
    return b.op("Squeeze", found, b.ints(0)) if unbatched else found


def _conv_transpose(b: Builder, op: Op) -> ir.Value:
    spatial = b.rank(op.args[1]) - 2
    x, weight, bias = op.args[0], op.args[1], argument(op, 2, None)
    stride, padding, extra, groups, dilation = (
        argument(op, i + 3, default) for i, default in enumerate((1, 0, 0, 1, 1))
    )
    return b.op(
        "ConvTranspose",
        b.value(x),
        b.value(weight),
        b.value(bias) if bias is not None else None,
        strides=_ints(stride, spatial),
        pads=_ints(padding, spatial) * 2,
        output_padding=_ints(extra, spatial),
        group=groups,
        dilations=_ints(dilation, spatial),
    )


def _layer_norm(b: Builder, op: Op) -> ir.Value:
    x, normalized = op.args[:2]
    assert isinstance(normalized, tuple)
    weight, bias = argument(op, 2, None), argument(op, 3, None)
    shape = b.type(x).shape[-len(normalized) :]
    ones = b.op("Expand", b.const(1, op.types[0].dtype), b.const(list(shape)))
    return b.op(
        "LayerNormalization",
        b.value(x),
        b.value(weight) if weight is not None else ones,
        b.value(bias) if bias is not None else None,
        axis=-len(normalized),
        epsilon=_epsilon(op, 4),
    )


def _epsilon(op: Op, position: int) -> float:
    eps = argument(op, position, 1e-5)
    assert isinstance(eps, int | float)
    return float(eps)


def _rms_norm(b: Builder, op: Op) -> ir.Value:
    x, normalized = op.args[:2]
    assert isinstance(normalized, tuple)
    dtype = op.types[0].dtype
    weight, eps = argument(op, 2, None), argument(op, 3, None)
    if not isinstance(eps, int | float):
        eps = float(_limits(dtype).eps)
    value = b.value(x)
    dims = b.ints(*range(-len(normalized), 0))
    mean = b.op("ReduceMean", b.op("Pow", value, b.const(2, dtype)), dims, keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.const(eps, dtype)))
    found = b.op("Div", value, root)
    return b.op("Mul", found, b.value(weight)) if weight is not None else found


def _group_norm(b: Builder, op: Op) -> ir.Value:
    x, groups = op.args[:2]
    weight, bias = argument(op, 2, None), argument(op, 3, None)
    rank, dtype = b.rank(x), op.types[0].dtype
    value = b.value(x)
    split = b.op("Reshape", value, b.const([0, groups, -1]))
    one, zero = (b.op("Expand", b.const(n, dtype), b.const([groups])) for n in (1, 0))
    found = b.op("InstanceNormalization", split, one, zero, epsilon=_epsilon(op, 4))
    found = b.op("Reshape", found, b.op("Shape", value))
    axes = b.ints(*range(1, rank - 1))
    if weight is not None:
        found = b.op("Mul", found, b.op("Unsqueeze", b.value(weight), axes))
    if bias is not None:
        found = b.op("Add", found, b.op("Unsqueeze", b.value(bias), axes))
    return found


def _batch_norm(epsilon: int) -> Rule:
    """`epsilon` is the position of that argument."""

    def write(b: Builder, op: Op) -> ir.Value | Sequence[ir.Value]:
        x, weight, bias, mean, variance = op.args[:5]
        if mean is None and variance is None and len(op.results) == 1:
            return _norm_by_channel(b, op, _epsilon(op, epsilon))
        if op.args[5] is True or mean is None or variance is None:
            raise Unsupported("batch norm in training")
        if any(result in b.graph.uses for result in op.results[1:]):
            raise Unsupported("statistics of a batch norm")
        dtype = op.types[0].dtype
        channels = b.op("Shape", b.value(mean))
        scale = (
            b.value(weight) if weight is not None else b.op("Expand", b.const(1, dtype), channels)
        )
        shift = b.value(bias) if bias is not None else b.op("Expand", b.const(0, dtype), channels)
        found = b.op(
            "BatchNormalization",
            b.value(x),
            scale,
            shift,
            b.value(mean),
            b.value(variance),
            epsilon=_epsilon(op, epsilon),
        )
        return found if len(op.results) == 1 else [found, *[b.const([], dtype)] * 2]

    return write


def _norm_by_channel(b: Builder, op: Op, epsilon: float) -> ir.Value:
    """Batch normalisation by the mean and variance of what is read, as of standardised weights."""
    x, weight, bias = op.args[:3]
    dtype, rank = op.types[0].dtype, b.rank(x)
    others = b.ints(*(d for d in range(rank) if d != 1))
    centred = b.op("Sub", b.value(x), b.op("ReduceMean", b.value(x), others, keepdims=1))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), others, keepdims=1)
    spread = b.op("Sqrt", b.op("Add", variance, b.const(epsilon, dtype)))
    found = b.op("Div", centred, spread)
    along = b.ints(1, -1, *[1] * (rank - 2))
    if weight is not None:
        found = b.op("Mul", found, b.op("Reshape", b.value(weight), along))
    if bias is not None:
        found = b.op("Add", found, b.op("Reshape", b.value(bias), along))
    return found


def _attention(b: Builder, op: Op) -> ir.Value:
    """softmax(scale q k' + mask) v, in the form that runtimes fuse and run at the speed of its
    products. A row that may attend to nothing gives 0, as in torch."""
    query, key, value = op.args[:3]
    mask = argument(op, 3, None)
    causal = argument(op, 5, False)
    dtype = op.types[0].dtype
    scale = op.kwarg("scale")
    if scale is None:
        width = b.type(query).shape[-1]
        if not isinstance(width, int):
            raise Unsupported("attention of a dynamic width")
        scale = 1.0 / math.sqrt(width)
    keys, values = (_for_all_heads(b, op, a) for a in (key, value))
    rank = b.rank(key)
    flipped = [*range(rank - 2), rank - 1, rank - 2]
    scores = b.op("MatMul", b.value(query), b.op("Transpose", keys, perm=flipped))
    scores = b.op("Mul", scores, b.value(scale, dtype))
    seen: ir.Value | None = None
    if mask is not None:
        added, seen = _additive(b, mask, dtype)
        scores = b.op("Add", scores, added)
    if causal is True:
        scores = b.op("Add", scores, _causal(b, op, dtype))
    found = b.op("MatMul", b.op("Softmax", scores, axis=-1), values)
    return b.op("Mul", found, seen) if seen is not None else found


def _for_all_heads(b: Builder, op: Op, arg: Arg) -> ir.Value:
    """Keys or values, repeated when fewer heads have them than there are queries."""
    value = b.value(arg)
    if op.kwarg("enable_gqa") is not True:
        return value
    shape, wanted = b.type(arg).shape, b.type(op.args[0]).shape
    heads, all_heads = shape[-3], wanted[-3]
    if not isinstance(heads, int) or not isinstance(all_heads, int) or len(shape) != 4:
        raise Unsupported("grouped attention with dynamic heads")
    if heads == all_heads:
        return value
    value = b.op("Unsqueeze", value, b.ints(2))
    value = b.op("Expand", value, b.ints(1, 1, all_heads // heads, 1, 1))
    width = shape[-1]
    if not isinstance(width, int):
        raise Unsupported("attention of a dynamic width")
    return b.op("Reshape", value, b.ints(0, all_heads, -1, width))


def _additive(b: Builder, mask: Arg, dtype: str) -> tuple[ir.Value, ir.Value | None]:
    """The mask as a term of the scores, and a factor of 0 for rows that may attend to nothing."""
    if b.dtype(mask) != "bool":
        return b.value(mask, dtype), None
    assert isinstance(mask, Ref)
    key = ("additive", mask.name)
    if key not in b.memo:
        value = b.value(mask)
        # finite: a row of infinities would give NaN, and NaN times a weight of 0 is NaN
        term = b.op("Where", value, b.const(0, dtype), b.const(_least(dtype), dtype))
        seen = b.op("ReduceMax", b.cast(value, dtype), b.ints(-1), keepdims=1)
        b.memo[key] = (term, seen)
    found: tuple[ir.Value, ir.Value] = b.memo[key]
    return found


def _least(dtype: str) -> float:
    """Low enough to hide an entry, and two of them still finite."""
    return float(_limits(dtype).min) / 2


def _limits(dtype: str) -> Any:
    return ml_dtypes.finfo(NUMPY_DTYPES[dtype])  # type: ignore[no-untyped-call]


def _causal(b: Builder, op: Op, dtype: str) -> ir.Value:
    query, key = b.value(op.args[0]), b.value(op.args[1])
    rows, columns = b.dim(query, b.rank(op.args[0]) - 2), b.dim(key, b.rank(op.args[1]) - 2)
    memo = ("causal", f"{rows.name}:{columns.name}:{dtype}")
    if memo not in b.memo:
        shape = b.op("Concat", rows, columns, axis=0)
        full = b.op("Expand", b.const(_least(dtype), dtype), shape)
        b.memo[memo] = b.op("Trilu", full, b.const(1), upper=1)
    found: ir.Value = b.memo[memo]
    return found


def _pool(kind: str, spatial: int) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        kernel = _ints(op.args[1], spatial)
        stride = argument(op, 2, ()) or tuple(kernel)
        padding = argument(op, 3, 0)
        settings: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": _ints(stride, spatial),
            "pads": _ints(padding, spatial) * 2,
        }
        if kind == "MaxPool":
            settings["dilations"] = _ints(argument(op, 4, 1), spatial)
            settings["ceil_mode"] = int(bool(argument(op, 5, False)))
        else:
            settings["ceil_mode"] = int(bool(argument(op, 4, False)))
            settings["count_include_pad"] = int(bool(argument(op, 5, True)))
            if argument(op, 6, None) is not None:
                raise Unsupported("average pooling with its own divisor")
        x = b.value(op.args[0])
        if b.rank(op.args[0]) == spatial + 1:  # no batch
            first = b.ints(0)
            return b.op("Squeeze", b.op(kind, b.op("Unsqueeze", x, first), **settings), first)
        return b.op(kind, x, **settings)

    return write


def _adaptive_pool(spatial: int) -> Rule:
    def write(b: Builder, op: Op) -> ir.Value:
        wanted = _ints(op.args[1], spatial)
        if all(n == 1 for n in wanted):
            rank = b.rank(op.args[0])
            dims = b.ints(*range(rank - spatial, rank))
            return b.op("ReduceMean", b.value(op.args[0]), dims, keepdims=1)
        sizes = b.type(op.args[0]).shape[-spatial:]
        kernel = []
        for size, n in zip(sizes, wanted, strict=True):
            if not isinstance(size, int) or size % n:
                raise Unsupported(f"adaptive pooling of {size} to {n}")
            kernel.append(size // n)
        return b.op("AveragePool", b.value(op.args[0]), kernel_shape=kernel, strides=kernel)

    return write


def _resize(mode: str, spatial: int) -> Rule:
    """Nearest takes the entry at or before; the others count from the centres of pixels."""

    def write(b: Builder, op: Op) -> ir.Value:
        x, factors = b.value(op.args[0]), op.args[-1]
        aligned = mode != "nearest" and op.args[2]
        settings: dict[str, Any] = {"mode": mode, "cubic_coeff_a": -0.75}
        if mode == "nearest":
            places, settings["nearest_mode"] = "asymmetric", "floor"
        else:
            places = "align_corners" if aligned else "half_pixel"
        settings["coordinate_transformation_mode"] = places
        if isinstance(factors, tuple) and not aligned:
            scales = b.const([1.0, 1.0, *factors], "f32")
            return b.op("Resize", x, None, scales, **settings)
        shape = op.types[0].shape
        kept = b.op("Shape", x, start=0, end=len(shape) - spatial)
        sizes = b.op("Concat", kept, *(b.size(n) for n in shape[-spatial:]), axis=0)
        return b.op("Resize", x, None, None, sizes, **settings)

    return write


def _grid_sample(b: Builder, op: Op) -> ir.Value:
    x, grid, mode, padding, aligned = op.args
    return b.op(
        "GridSample",
        b.value(x),
        b.value(grid),
        mode=("linear", "nearest", "cubic")[_ints(mode, 1)[0]],
        padding_mode=("zeros", "border", "reflection")[_ints(padding, 1)[0]],
        align_corners=int(bool(aligned)),
    )


def _weight_norm(b: Builder, op: Op) -> ir.Value:
    weight, length = op.args[:2]
    rank, (dim,) = b.rank(weight), _ints(argument(op, 2, 0), 1)
    axes = b.ints(*(d for d in range(rank) if d != dim % rank))
    norm = b.op("ReduceL2", b.value(weight), axes, keepdims=1)
    return b.op("Mul", b.value(weight), b.op("Div", b.value(length), norm))


def _glu(b: Builder, op: Op) -> ir.Value:
    dim = argument(op, 1, -1)
    assert isinstance(dim, int)
    left, right = b.many("Split", b.value(op.args[0]), outputs=2, axis=dim, num_outputs=2)
    return b.op("Mul", left, b.op("Sigmoid", right))


NN: Rules = {
    "aten.linear.default": _linear,
    **dict.fromkeys(
        ("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default"), _matmul
    ),
    "aten.addmm.default": _addmm,
    "aten.baddbmm.default": _baddbmm,
    "aten.einsum.default": _einsum,
    **{f"aten.conv{n}d.{v}": _conv for n in (1, 2, 3) for v in ("default", "padding")},
    "aten.conv_transpose1d.default": _conv_transpose,
    "aten.conv_transpose2d.input": _conv_transpose,
    "aten.conv_transpose3d.input": _conv_transpose,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.group_norm.default": _group_norm,
    "aten.batch_norm.default": _batch_norm(7),
    "aten._native_batch_norm_legit_no_training.default": _batch_norm(6),
    "aten.scaled_dot_product_attention.default": _attention,
    **{f"aten.max_pool{n}d.default": _pool("MaxPool", n) for n in (1, 2, 3)},
    **{f"aten.avg_pool{n}d.default": _pool("AveragePool", n) for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d.default": _adaptive_pool(n) for n in (1, 2, 3)},
    **{f"aten.upsample_nearest{n}d.vec": _resize("nearest", n) for n in (1, 2, 3)},
    "aten.upsample_linear1d.vec": _resize("linear", 1),
    "aten.upsample_bilinear2d.vec": _resize("linear", 2),
    "aten.upsample_trilinear3d.vec": _resize("linear", 3),
    "aten.upsample_bicubic2d.vec": _resize("cubic", 2),
    **dict.fromkeys(("aten.grid_sampler.default", "aten.grid_sampler_2d.default"), _grid_sample),
    "aten._weight_norm.default": _weight_norm,
    "aten.glu.default": _glu,
}
