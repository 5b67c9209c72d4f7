"""The `onnx` dialect: ONNX's operators and those that ONNX Runtime fuses them into.

To add a rule, put a line in `SIGNATURES` (einops notation, see `ir/signature.py`), a name in
`POINTWISE`, or, where the types depend on the attributes, a short function in one of the
`onnx_*.py`. What has no rule pins what it touches: so do `If`, `Loop` and `Scan`.
"""

from __future__ import annotations

from prunec.ir.dialects import onnx_attention as attention
from prunec.ir.dialects import onnx_contract as contract
from prunec.ir.dialects import onnx_entries as entries
from prunec.ir.dialects import onnx_parts as parts
from prunec.ir.dialects import onnx_shapes as shapes
from prunec.ir.dialects.aten_contract import matmul
from prunec.ir.dialects.onnx_sizes import SIZES, or_sizes, sizes_only
from prunec.ir.graph import Op
from prunec.ir.infer import Dialect, Dims, Rule, Typing

__all__ = ["DTYPES", "ONNX", "POINTWISE", "RULES", "SIGNATURES"]

DTYPES = {
    "FLOAT": "f32", "DOUBLE": "f64", "FLOAT16": "f16", "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "f8e4m3fn", "FLOAT8E4M3FNUZ": "f8e4m3fnuz", "FLOAT8E5M2": "f8e5m2",
    "FLOAT8E5M2FNUZ": "f8e5m2fnuz", "FLOAT8E8M0": "f8e8m0fnu", "FLOAT4E2M1": "f4e2m1",
    "INT64": "i64", "INT32": "i32", "INT16": "i16", "INT8": "i8", "INT4": "i4", "INT2": "i2",
    "UINT64": "u64", "UINT32": "u32", "UINT16": "u16", "UINT8": "u8", "UINT4": "u4",
    "UINT2": "u2", "BOOL": "bool", "COMPLEX64": "c64", "COMPLEX128": "c128", "STRING": "string",
}  # fmt: skip
"""What ONNX calls the dtypes."""

POINTWISE = frozenset(
    f"onnx.{name}"
    for name in (
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr "
        "BitwiseXor Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater "
        "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log "
        "Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid "
        "Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor "
        "StringConcat"
    ).split()
) | frozenset(
    f"com.microsoft.{name}"
    for name in "BiasAdd BiasGelu FastGelu Gelu QuickGelu BiasDropout".split()
)

SIGNATURES: dict[str, str] = {
    # spatial operations leave batch and channel alone
    "onnx.GridSample": "b c ..., b _ _ _ -> b c _ _",
}

RULES: dict[str, Rule] = {
    # contractions
    "onnx.Gemm": contract.gemm,
    "onnx.MatMul": matmul,
    "onnx.MatMulInteger": contract.matmul_integer,
    "onnx.QLinearMatMul": contract.qlinear_matmul,
    "onnx.Conv": contract.conv(),
    "onnx.ConvTranspose": contract.conv(transposed=True),
    "onnx.ConvInteger": contract.conv_integer,
    "onnx.QLinearConv": contract.qlinear_conv,
    "onnx.Einsum": contract.einsum,
    "onnx.Attention": attention.attention,
    "onnx.RotaryEmbedding": attention.rotary,
    # layout
    "onnx.Reshape": shapes.reshape,
    "onnx.Flatten": shapes.flatten,
    "onnx.Transpose": shapes.transpose,
    "onnx.Unsqueeze": shapes.unsqueeze,
    "onnx.Squeeze": shapes.squeeze,
    "onnx.Expand": shapes.expand,
    "onnx.Tile": shapes.tile,
    "onnx.DepthToSpace": shapes.depth_to_space,
    "onnx.SpaceToDepth": shapes.space_to_depth,
    # parts
    "onnx.Concat": parts.concat,
    "onnx.Split": parts.split,
    "onnx.Slice": parts.slice_,
    "onnx.Gather": parts.gather,
    "onnx.GatherElements": parts.gather_elements,
    "onnx.GatherND": parts.gather_nd,
    "onnx.ScatterND": parts.scatter_nd,
    **dict.fromkeys(("onnx.ScatterElements", "onnx.Scatter"), parts.scatter_elements),
    "onnx.Pad": parts.pad,
    **dict.fromkeys(("onnx.Resize", "onnx.Upsample"), parts.resize),
    # entries
    **dict.fromkeys(
        (
            "onnx.Dropout onnx.LpNormalization onnx.DynamicQuantizeLinear "
            "onnx.RandomNormalLike onnx.RandomUniformLike onnx.Bernoulli"
        ).split(),
        entries.same,
    ),
    **dict.fromkeys(("onnx.Softmax", "onnx.LogSoftmax", "onnx.Hardmax"), entries.along),
    "onnx.CastLike": entries.cast_like,
    "onnx.LRN": entries.over_neighbours,
    "onnx.CumSum": entries.cumulated,
    "onnx.CumProd": entries.cumulated,
    "onnx.Trilu": entries.triangle,
    "onnx.TopK": entries.top,
    "onnx.OneHot": entries.one_hot,
    **dict.fromkeys(
        ("onnx.Range", "onnx.RandomNormal", "onnx.RandomUniform", "onnx.Constant"),
        entries.numbered,
    ),
    "onnx.ConstantOfShape": entries.filled,
    **dict.fromkeys(
        ("onnx.ReduceSum", "onnx.ReduceL1", "onnx.ReduceL2", "onnx.ReduceSumSquare"),
        entries.reduction(),
    ),
    "onnx.ReduceMean": entries.reduction("norm"),
    **dict.fromkeys(
        (
            "onnx.ReduceMax onnx.ReduceMin onnx.ReduceProd onnx.ReduceLogSum "
            "onnx.ReduceLogSumExp onnx.ArgMax onnx.ArgMin"
        ).split(),
        entries.reduction("pin"),
    ),
    **dict.fromkeys(
        (
            "onnx.LayerNormalization",
            "onnx.RMSNormalization",
            "onnx.SimplifiedLayerNormalization",
        ),
        entries.layer_norm,
    ),
    "onnx.BatchNormalization": entries.batch_norm,
    "onnx.InstanceNormalization": entries.instance_norm,
    "onnx.GroupNormalization": entries.group_norm,
    **dict.fromkeys(("onnx.MaxPool", "onnx.AveragePool", "onnx.LpPool"), entries.spatial),
    **dict.fromkeys(
        ("onnx.GlobalAveragePool", "onnx.GlobalMaxPool", "onnx.GlobalLpPool"),
        entries.spatial_globally,
    ),
    **dict.fromkeys(
        (
            "onnx.QuantizeLinear onnx.DequantizeLinear com.microsoft.QuantizeLinear "
            "com.microsoft.DequantizeLinear"
        ).split(),
        contract.dequantize,
    ),
    # ONNX Runtime's fusions
    "com.microsoft.Attention": attention.fused_attention,
    "com.microsoft.MultiHeadAttention": attention.multi_head,
    "com.microsoft.GroupQueryAttention": attention.grouped_query,
    "com.microsoft.RotaryEmbedding": attention.rotary_fused,
    "com.microsoft.EmbedLayerNormalization": attention.embedded,
    "com.microsoft.SkipLayerNormalization": entries.skip_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": entries.skip_rms_norm,
    "com.microsoft.FusedMatMul": contract.fused_matmul,
    "com.microsoft.TransposeMatMul": contract.fused_matmul,
    "com.microsoft.FusedGemm": contract.gemm,
    "com.microsoft.FusedConv": contract.fused_conv,
    "com.microsoft.MatMulNBits": contract.matmul_nbits,
    "com.microsoft.DynamicQuantizeMatMul": contract.product_of(0, 1, 2, 3, 4),
    "com.microsoft.MatMulIntegerToFloat": contract.product_of(0, 1, 3, 5, 6),
    "com.microsoft.Trilu": entries.triangle,
    **dict.fromkeys(
        ("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"), entries.quantized_pair
    ),
    **dict.fromkeys(
        ("com.microsoft.QLinearSigmoid", "com.microsoft.QLinearLeakyRelu"), entries.same
    ),
    "com.microsoft.QLinearGlobalAveragePool": entries.spatial_globally,
}

RULES |= dict.fromkeys(POINTWISE, entries.pointwise)
RULES |= {name: or_sizes(RULES[name]) if name in RULES else sizes_only for name in SIZES}


def guarded(rule: Rule) -> Rule:
    """Files come from anywhere: operands or attributes that an operator requires may lack, or be
    of another rank. Such a form is not covered, whatever a rule trips over. An
    operand that the rule has not looked at stays as it is."""

    def found(t: Typing, op: Op) -> list[Dims] | None:
        t.seen.clear()
        try:
            results = rule(t, op)
        except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError):
            return None
        for name in op.operands:
            if name in t.dims and name not in t.seen and name not in t.sizes.vectors:
                t.pin(t.dims[name], f"`{op.name}` reads it in a way that has no rule")
        return results

    return found


RULES = {name: guarded(rule) for name, rule in RULES.items()}

ONNX = Dialect(SIGNATURES, RULES, entries.pointwise)
