"""Shapes that operators of ONNX Runtime's own domain give, for which ONNX has no inference.

One line an operator: dtype and shape of each result from what is known of the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import onnx_ir as ir

__all__ = ["CONTRIB", "STANDARD"]

Shape = tuple[int, ...]
Result = tuple[ir.DataType, Shape | None]
Attributes = Mapping[str, ir.Attr]


class Typed(Protocol):
    @property
    def dtype(self) -> ir.DataType: ...
    @property
    def shape(self) -> Shape | None: ...


Operands = Sequence[Typed | None]
Rule = Callable[[Operands, Attributes], Sequence[Result]]


def number(attributes: Attributes, name: str, default: int = 0) -> int:
    return attributes[name].as_int() if name in attributes else default


def of(operands: Operands, i: int) -> Result:
    """An operand's own type; nothing when it is left out."""
    found = operands[i] if i < len(operands) else None
    return (ir.DataType.FLOAT, None) if found is None else (found.dtype, found.shape)


def like(i: int = 0, results: int = 1) -> Rule:
    """Results like operand `i`."""
    return lambda operands, attributes: [of(operands, i)] * results


def skip_norm(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    """Output, two statistics that only training asks for, and the sum."""
    x = of(operands, 0)
    unknown = (ir.DataType.FLOAT, None)
    return [x, unknown, unknown, x]


def fused_matmul(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    (dtype, a), (_, b) = of(operands, 0), of(operands, 1)
    batched = number(attributes, "transBatchA") or number(attributes, "transBatchB")
    if a is None or b is None or len(a) < 2 or len(b) < 2 or batched:
        return [(dtype, None)]
    rows = a[-1] if number(attributes, "transA") else a[-2]
    columns = b[-2] if number(attributes, "transB") else b[-1]
    left, right = a[:-2], b[:-2]
    width = max(len(left), len(right))
    left, right = (1,) * (width - len(left)) + left, (1,) * (width - len(right)) + right
    outer = tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))
    return [(dtype, (*outer, rows, columns))]


def matmul_nbits(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    dtype, a = of(operands, 0)
    return [(dtype, None if a is None else (*a[:-1], number(attributes, "N")))]


def integer_matmul(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    _, shape = fused_matmul(operands, {})[0]
    return [(ir.DataType.FLOAT, shape)]


def attention(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    """Projections inside: the values' width is the last of `qkv_hidden_sizes`, or a third."""
    (dtype, x), (_, weight) = of(operands, 0), of(operands, 1)
    if x is None or weight is None:
        return [(dtype, None)]
    sizes = attributes["qkv_hidden_sizes"].as_ints() if "qkv_hidden_sizes" in attributes else ()
    return [(dtype, (*x[:-1], sizes[2] if sizes else weight[1] // 3)), (dtype, None)]


def multi_head(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    """The values are [b, t, n e], or [b, n, t, e] as a cache holds them."""
    (dtype, q), (_, v) = of(operands, 0), of(operands, 2)
    if q is None or len(q) != 3:
        return [(dtype, None)]
    width = q[2] if v is None else v[2] if len(v) == 3 else v[1] * v[3]
    return [(dtype, (q[0], q[1], width)), (dtype, None), (dtype, None), (dtype, None)]


def grouped_query(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    """Without a key the query holds key and value too; the caches grow by what is new."""
    (dtype, q), (_, k), (kind, past) = of(operands, 0), of(operands, 1), of(operands, 3)
    heads, kv = number(attributes, "num_heads"), number(attributes, "kv_num_heads")
    if q is None or not heads or not kv:
        return [(dtype, None)]
    width = q[2] if k is not None else q[2] * heads // (heads + 2 * kv)
    cache = None
    if past is not None and len(past) == 4:
        cache = (past[0], past[1], past[2] + q[1], past[3])
    return [(dtype, (q[0], q[1], width)), (kind, cache), (kind, cache)]


def embedded(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    """Embeddings of words, positions and segments, added and normed."""
    (_, ids), (dtype, table) = of(operands, 0), of(operands, 2)
    if ids is None or table is None:
        return [(dtype, None)]
    x = (dtype, (*ids, table[1]))
    return [x, (ir.DataType.INT32, ids[:1]), x]


def quantized_like(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    return [of(operands, 0)]


def quantized_pair(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    """A, scale and zero point of A, then B."""
    (dtype, a), (_, b) = of(operands, 0), of(operands, 3)
    if a is None or b is None:
        return [(dtype, None)]
    width = max(len(a), len(b))
    a, b = (1,) * (width - len(a)) + a, (1,) * (width - len(b)) + b
    return [(dtype, tuple(y if x == 1 else x for x, y in zip(a, b, strict=True)))]


def dequantized(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    (_, x), (dtype, _) = of(operands, 0), of(operands, 1)
    return [(dtype, x)]


def cast_like(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    (_, x), (dtype, _) = of(operands, 0), of(operands, 1)
    return [(dtype, x)]


def quantized(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    (_, x), (dtype, zero) = of(operands, 0), of(operands, 2)
    return [(dtype if zero is not None else ir.DataType.UINT8, x)]


def global_pool(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    dtype, x = of(operands, 0)
    if x is None or number(attributes, "channels_last"):
        return [(dtype, None)]
    return [(dtype, x[:2] + (1,) * (len(x) - 2))]


def rms(operands: Operands, attributes: Attributes) -> Sequence[Result]:
    return [of(operands, 0), (ir.DataType.FLOAT, None)]


MICROSOFT: Mapping[str, Rule] = {
    **dict.fromkeys(
        "BiasGelu FastGelu Gelu QuickGelu BiasAdd BiasSplitGelu RotaryEmbedding BiasSoftmax "
        "BiasDropout".split(),
        like(),
    ),
    "BiasSplitGelu": lambda operands, attributes: [
        (of(operands, 0)[0], (*s[:-1], s[-1] // 2) if (s := of(operands, 0)[1]) else None)
    ],
    "SkipLayerNormalization": skip_norm,
    "SkipSimplifiedLayerNormalization": skip_norm,
    "EmbedLayerNormalization": embedded,
    "FusedMatMul": fused_matmul,
    "TransposeMatMul": fused_matmul,
    "MatMulNBits": matmul_nbits,
    "DynamicQuantizeMatMul": integer_matmul,
    "MatMulIntegerToFloat": integer_matmul,
    "Attention": attention,
    "MultiHeadAttention": multi_head,
    "GroupQueryAttention": grouped_query,
    "QLinearAdd": quantized_pair,
    "QLinearMul": quantized_pair,
    "QLinearSigmoid": quantized_like,
    "QLinearLeakyRelu": quantized_like,
    "QLinearGlobalAveragePool": global_pool,
    "DequantizeLinear": dequantized,
    "QuantizeLinear": quantized,
}

CONTRIB: Mapping[str, Rule] = {
    **{f"com.microsoft.{name}": rule for name, rule in MICROSOFT.items()},
    # ONNX Runtime puts this one into ONNX's own domain
    "SimplifiedLayerNormalization": rms,
    "GroupNormalization": like(),
    "MeanVarianceNormalization": like(),
    # ONNX says of this one no more than that it is a function
    "CastLike": cast_like,
}

STANDARD: Mapping[str, str] = {
    "com.microsoft.FusedConv": "Conv",
    "com.microsoft.FusedGemm": "Gemm",
    "com.microsoft.Trilu": "Trilu",
    "com.microsoft.GridSample": "GridSample",
}
"""Operators with the shapes of a standard one."""
