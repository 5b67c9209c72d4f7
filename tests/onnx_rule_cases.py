"""For each rule of the onnx dialect a small model around the operation, weights on both sides.

A case is the text of a graph's body in ONNX's own notation, the shapes of its weights, and the
sizes of all groups that must be found: a rule that pins too much is as wrong as one that couples
too little. Where a rule only pins, there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "Case"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    body: str
    weights: Shapes
    groups: tuple[int, ...]
    inputs: str = "float[batch, time, 6] x"
    opset: int = 20


UP, DOWN = {"u": (6, 12)}, {"d": (12, 5)}
BOTH: Shapes = {**UP, **DOWN}
IMAGE = "float[batch, 3, 8, 8] x"
CONVS: Shapes = {"u": (12, 3, 1, 1), "d": (5, 12, 1, 1)}


def middle(text: str, weights: Shapes | None = None, groups: tuple[int, ...] = (12,)) -> Case:
    """`h` of 12 channels last, an operation that makes `k` of it, and what consumes that."""
    body = f"h = MatMul(x, u)\n{text}\ny = MatMul(k, d)"
    return Case(body, {**BOTH, **(weights or {})}, groups)


def image(text: str, weights: Shapes | None = None, groups: tuple[int, ...] = (12,)) -> Case:
    """The same with channels second."""
    body = f"h = Conv(x, u)\n{text}\ny = Conv(k, d)"
    return Case(body, {**CONVS, **(weights or {})}, groups, IMAGE)


HEADS = """
q0 = MatMul(x, wq)
k0 = MatMul(x, wk)
v0 = MatMul(x, wv)
shape = Constant<value_ints = [0, 0, 3, 4]>()
back = Constant<value_ints = [0, 0, -1]>()
"""
QKV: Shapes = {"wq": (6, 12), "wk": (6, 12), "wv": (6, 12), "wo": (12, 5)}
GQA: Shapes = {"wq": (6, 24), "wk": (6, 12), "wv": (6, 12), "wo": (24, 5)}

CASES: dict[str, Case] = {
    # contractions
    "MatMul": middle("k = Relu(h)"),
    "Gemm": Case(
        "h = Gemm<transB = 1>(x, u, b)\nk = Relu(h)\ny = Gemm<transA = 0>(k, d)",
        {"u": (12, 6), "b": (12,), "d": (12, 5)},
        (12,),
        "float[batch, 6] x",
    ),
    "MatMulInteger": Case(
        "q, s, z = DynamicQuantizeLinear(x)\nh = MatMulInteger(q, i8, z)\n"
        "k = Cast<to = 1>(h)\ny = MatMul(k, d)",
        {"i8": (6, 12), "d": (12, 5)},
        (12,),
    ),
    "Conv": image("k = Relu(h)"),
    "Conv in groups": Case(
        "h = Conv(x, u)\nk = Conv<group = 2, pads = [1, 1, 1, 1]>(h, m, b)\ny = Conv(k, d)",
        {"u": (12, 3, 1, 1), "m": (8, 6, 3, 3), "b": (8,), "d": (5, 8, 1, 1)},
        (2, 4, 6),
        IMAGE,
    ),
    "Conv depthwise": image("k = Conv<group = 12>(h, m)", {"m": (12, 1, 3, 3)}),
    "ConvTranspose": Case(
        "h = Conv(x, u)\nk = ConvTranspose<strides = [2, 2]>(h, m, b)\ny = Conv(k, d)",
        {"u": (12, 3, 1, 1), "m": (12, 8, 2, 2), "b": (8,), "d": (5, 8, 1, 1)},
        (8, 12),
        IMAGE,
    ),
    "Einsum": Case(
        """h = Einsum<equation = "bti,io->bto">(x, u)
        k = Relu(h)
        y = Einsum<equation = "bto,oj->btj">(k, d)""",
        BOTH,
        (12,),
    ),
    "attention by hand": Case(
        HEADS
        + """
        q1 = Reshape(q0, shape)
        k1 = Reshape(k0, shape)
        v1 = Reshape(v0, shape)
        q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k = Transpose<perm = [0, 2, 3, 1]>(k1)
        v = Transpose<perm = [0, 2, 1, 3]>(v1)
        s = MatMul(q, k)
        p = Softmax<axis = -1>(s)
        a = MatMul(p, v)
        a1 = Transpose<perm = [0, 2, 1, 3]>(a)
        a2 = Reshape(a1, back)
        y = MatMul(a2, wo)""",
        QKV,
        (3, 4, 4),
    ),
    "Attention": Case(
        HEADS + "a, pk, pv = Attention<q_num_heads = 3, kv_num_heads = 3>(q0, k0, v0)\n"
        "y = MatMul(a, wo)",
        QKV,
        (3, 4),
        opset=23,
    ),
    "Attention shared": Case(
        "q0 = MatMul(x, wq)\nk0 = MatMul(x, wk)\nv0 = MatMul(x, wv)\n"
        "a, pk, pv = Attention<q_num_heads = 6, kv_num_heads = 3, scale = 0.5>(q0, k0, v0)\n"
        "y = MatMul(a, wo)",
        GQA,
        (2, 3, 4, 4),
        opset=23,
    ),
    "RotaryEmbedding": Case(
        "q0 = MatMul(x, wq)\nk0 = MatMul(x, wk)\n"
        "q = RotaryEmbedding<num_heads = 3>(q0, cos, sin)\n"
        "k = RotaryEmbedding<num_heads = 3>(k0, cos, sin)\n"
        "v0 = MatMul(x, wv)\n"
        "a, pk, pv = Attention<q_num_heads = 3, kv_num_heads = 3, scale = 0.5>(q, k, v0)\n"
        "y = MatMul(a, wo)",
        {**QKV, "cos": (2, 7, 2), "sin": (2, 7, 2)},
        (2, 3, 4),
        "float[2, 7, 6] x",
        23,
    ),
    # layout
    "Reshape": middle(
        "s = Constant<value_ints = [0, 0, 3, 4]>()\nr = Reshape(h, s)\n"
        "t = Constant<value_ints = [0, 0, 12]>()\nk = Reshape(r, t)",
        groups=(3, 4),
    ),
    "Reshape at run time": middle(
        "n = Shape<end = 2>(x)\nt = Constant<value_ints = [3, 4]>()\n"
        "s = Concat<axis = 0>(n, t)\nr = Reshape(h, s)\nw = Constant<value_ints = [-1]>()\n"
        "z = Concat<axis = 0>(n, w)\nk = Reshape(r, z)",
        groups=(3, 4),
    ),
    "Flatten": Case(
        "h = MatMul(x, u)\nk = Flatten<axis = 2>(h)\ny = MatMul(k, d)",
        BOTH,
        (12,),
    ),
    "Transpose": middle("t = Transpose<perm = [0, 2, 1]>(h)\nk = Transpose<perm = [0, 2, 1]>(t)"),
    "Unsqueeze": middle("a = Constant<value_ints = [1]>()\nv = Unsqueeze(h, a)\nk = Squeeze(v, a)"),
    "Squeeze": middle("a = Constant<value_ints = [1]>()\nv = Unsqueeze(h, a)\nk = Squeeze(v, a)"),
    "Expand": Case(
        "h = MatMul(x, u)\na = Constant<value_ints = [2]>()\nv = Unsqueeze(h, a)\n"
        "s = Constant<value_ints = [1, 1, 4, 12]>()\ne = Expand(v, s)\n"
        "r = Constant<value_ints = [0, 0, 48]>()\nk = Reshape(e, r)\ny = MatMul(k, d)",
        {"u": (6, 12), "d": (48, 5)},
        (4, 12),
    ),
    "Tile": Case(
        "h = MatMul(x, u)\nr = Constant<value_ints = [1, 1, 4]>()\nk = Tile(h, r)\n"
        "y = MatMul(k, d)",
        {"u": (6, 12), "d": (48, 5)},
        (4, 12),
    ),
    "DepthToSpace": Case(
        "h = Conv(x, u)\nk = DepthToSpace<blocksize = 2>(h)\ny = Conv(k, d)",
        {"u": (12, 3, 1, 1), "d": (5, 3, 1, 1)},
        (3,),
        IMAGE,
    ),
    "SpaceToDepth": Case(
        "h = Conv(x, u)\nk = SpaceToDepth<blocksize = 2>(h)\ny = Conv(k, d)",
        {"u": (12, 3, 1, 1), "d": (5, 48, 1, 1)},
        (12,),
        IMAGE,
    ),
    # parts
    "Concat": Case(
        "a = MatMul(x, u)\nb = MatMul(x, v)\nk = Concat<axis = -1>(a, b)\ny = MatMul(k, d)",
        {"u": (6, 12), "v": (6, 8), "d": (20, 5)},
        (8, 12),
    ),
    "Split": Case(
        "h = MatMul(x, u)\ns = Constant<value_ints = [5, 7]>()\n"
        "a, b = Split<axis = 2>(h, s)\np = MatMul(a, v)\nq = MatMul(b, d)\ny = Add(p, q)",
        {"u": (6, 12), "v": (5, 4), "d": (7, 4)},
        (5, 7),
    ),
    "Split evenly": Case(
        "h = MatMul(x, u)\na, b = Split<axis = 2, num_outputs = 2>(h)\nk = Mul(a, b)\n"
        "y = MatMul(k, d)",
        {"u": (6, 24), "d": (12, 5)},
        (12,),
    ),
    "Slice": Case(
        "h = MatMul(x, u)\nb = Constant<value_ints = [5]>()\ne = Constant<value_ints = [-2]>()\n"
        "a = Constant<value_ints = [2]>()\nk = Slice(h, b, e, a)\ny = MatMul(k, d)",
        {"u": (6, 12), "d": (5, 5)},
        (2, 5, 5),
    ),
    "Slice at half": Case(
        "h = MatMul(x, u)\nn = Shape<start = 2>(h)\ntwo = Constant<value_ints = [2]>()\n"
        "m = Div(n, two)\nz = Constant<value_ints = [0]>()\na = Constant<value_ints = [2]>()\n"
        "far = Constant<value_ints = [9223372036854775807]>()\n"
        "l = Slice(h, z, m, a)\nr = Slice(h, m, far, a)\nk = Mul(l, r)\ny = MatMul(k, d)",
        {"u": (6, 24), "d": (12, 5)},
        (12,),
    ),
    "Gather": Case(
        "h = Gather(u, x)\ny = MatMul(h, d)",
        {"u": (64, 12), "d": (12, 5)},
        (12,),
        "int64[batch, time] x",
    ),
    "GatherElements": middle("i = ArgMax<axis = 1>(h)\nk = GatherElements<axis = 1>(h, i)"),
    "GatherND": Case(
        "h = GatherND(u, x)\ny = MatMul(h, d)",
        {"u": (64, 12), "d": (12, 5)},
        (12,),
        "int64[batch, 1] x",
    ),
    "ScatterND": middle(
        "i = Constant<value = int64[1, 1] {0}>()\nz = Constant<value_ints = [0]>()\n"
        "f = Gather(h, z)\nk = ScatterND(h, i, f)"
    ),
    "ScatterElements": middle(
        "i = ArgMax<axis = 1>(h)\na = Constant<value_ints = [1]>()\nm = ReduceMax(h, a)\n"
        "k = ScatterElements<axis = 1>(h, i, m)"
    ),
    "Pad": image("p = Constant<value_ints = [0, 0, 1, 1, 0, 0, 1, 1]>()\nk = Pad(h, p)"),
    "Resize": image("e = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>()\nk = Resize(h, , e)"),
    "Resize to sizes": image(
        "n = Shape<end = 2>(h)\nt = Constant<value_ints = [16, 16]>()\n"
        "s = Concat<axis = 0>(n, t)\nk = Resize(h, , , s)"
    ),
    # entries
    "pointwise": middle("a = Sigmoid(h)\nm = Mul(h, a)\nk = Add(m, b)", {"b": (12,)}),
    "Where": middle("z = Constant<value_float = 0.0>()\nc = Greater(h, z)\nk = Where(c, h, z)"),
    "PRelu": middle("k = PRelu(h, s)", {"s": (12,)}),
    "Clip": middle("a = Constant<value_float = 0.0>()\nk = Clip(h, a)"),
    "CastLike": middle("k = CastLike(h, x)"),
    "Dropout": middle("k = Dropout(h)"),
    "LpNormalization": middle("k = LpNormalization<axis = -1>(h)"),
    "LRN": Case("h = Conv(x, u)\nk = LRN<size = 3>(h)\ny = Conv(k, d)", CONVS, (), IMAGE),
    "Softmax": middle("k = Softmax<axis = -1>(h)", groups=()),
    "LogSoftmax": middle("k = LogSoftmax<axis = 2>(h)", groups=()),
    "Hardmax": middle("k = Hardmax<axis = 2>(h)", groups=()),
    "CumSum": middle("a = Constant<value_int = 1>()\nk = CumSum(h, a)"),
    "Trilu": middle("k = Trilu(h)", groups=()),
    "TopK": Case(
        "h = MatMul(x, u)\nn = Constant<value_ints = [3]>()\nk, i = TopK<axis = 1>(h, n)\n"
        "y = MatMul(k, d)",
        BOTH,
        (12,),
        "float[batch, 7, 6] x",
    ),
    "OneHot": middle(
        "i = ArgMax<axis = -1, keepdims = 0>(h)\nn = Constant<value_int = 12>()\n"
        "v = Constant<value_floats = [0.0, 1.0]>()\nk = OneHot(i, n, v)",
        groups=(),
    ),
    "Range": middle(
        "z = Constant<value_int = 0>()\no = Constant<value_int = 1>()\n"
        "n = Constant<value_int = 12>()\nr = Range(z, n, o)\nf = Cast<to = 1>(r)\nk = Add(h, f)",
        groups=(),
    ),
    "ConstantOfShape": middle(
        "n = Shape(h)\nf = ConstantOfShape<value = float[1] {2.0}>(n)\nk = Mul(h, f)"
    ),
    "ReduceSum": middle("a = Constant<value_ints = [1]>()\nk = ReduceSum<keepdims = 0>(h, a)"),
    "ReduceMean": middle("a = Constant<value_ints = [-1]>()\nm = ReduceMean(h, a)\nk = Sub(h, m)"),
    "ReduceMax": middle(
        "a = Constant<value_ints = [-1]>()\nm = ReduceMax(h, a)\nk = Sub(h, m)",
        groups=(),
    ),
    "ReduceL2": middle("a = Constant<value_ints = [-1]>()\nm = ReduceL2(h, a)\nk = Mul(h, m)"),
    "LayerNormalization": middle("k = LayerNormalization(h, s, b)", {"s": (12,), "b": (12,)}),
    "RMSNormalization": Case(
        "h = MatMul(x, u)\nk = RMSNormalization(h, s)\ny = MatMul(k, d)",
        {**BOTH, "s": (12,)},
        (12,),
        opset=23,
    ),
    "BatchNormalization": image(
        "k = BatchNormalization(h, s, b, m, v)",
        {"s": (12,), "b": (12,), "m": (12,), "v": (12,)},
    ),
    "InstanceNormalization": image("k = InstanceNormalization(h, s, b)", {"s": (12,), "b": (12,)}),
    "GroupNormalization": Case(
        "h = Conv(x, u)\nk = GroupNormalization<num_groups = 3>(h, s, b)\ny = Conv(k, d)",
        {**CONVS, "s": (12,), "b": (12,)},
        (3, 4),
        IMAGE,
        21,
    ),
    "MaxPool": image("k = MaxPool<kernel_shape = [2, 2]>(h)"),
    "AveragePool": image("k = AveragePool<kernel_shape = [2, 2]>(h)"),
    "LpPool": image("k = LpPool<kernel_shape = [2, 2]>(h)"),
    "GlobalAveragePool": image("k = GlobalAveragePool(h)"),
    "GlobalMaxPool": image("k = GlobalMaxPool(h)"),
    "QuantizeLinear": middle(
        "s = Constant<value_float = 0.05>()\nq = QuantizeLinear(h, s)\nk = DequantizeLinear(q, s)"
    ),
    "DequantizeLinear": Case(
        "w = DequantizeLinear<axis = 1>(u8, s)\nh = MatMul(x, w)\ny = MatMul(h, d)",
        {"u8": (6, 12), "s": (12,), "d": (12, 5)},
        (12,),
    ),
    "LSTM": Case(
        "h = MatMul(x, u)\na, b, c = LSTM<hidden_size = 3>(h, w, r)\ny = Identity(a)",
        {"u": (6, 12), "w": (1, 12, 12), "r": (1, 12, 3)},
        (),
        "float[7, 2, 6] x",
    ),
}

MS = "com.microsoft."

CASES |= {
    MS + "BiasGelu": middle("k = com.microsoft.BiasGelu(h, b)", {"b": (12,)}),
    MS + "FastGelu": middle("k = com.microsoft.FastGelu(h, b)", {"b": (12,)}),
    MS + "FusedMatMul": Case(
        "h = com.microsoft.FusedMatMul<transB = 1>(x, u)\nk = Relu(h)\ny = MatMul(k, d)",
        {"u": (12, 6), "d": (12, 5)},
        (12,),
    ),
    MS + "SkipLayerNormalization": middle(
        "g = MatMul(x, v)\nk = com.microsoft.SkipLayerNormalization(h, g, s, b)",
        {"v": (6, 12), "s": (12,), "b": (12,)},
    ),
    MS + "SkipSimplifiedLayerNormalization": middle(
        "g = MatMul(x, v)\nk = com.microsoft.SkipSimplifiedLayerNormalization(h, g, s)",
        {"v": (6, 12), "s": (12,)},
    ),
    MS + "Attention": Case(
        "a = com.microsoft.Attention<num_heads = 3>(x, w, b)\ny = MatMul(a, wo)",
        {"w": (6, 36), "b": (36,), "wo": (12, 5)},
        (3,),
    ),
    MS + "MultiHeadAttention": Case(
        "q = MatMul(x, wq)\nk = MatMul(x, wk)\nv = MatMul(x, wv)\n"
        "a = com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v, b)\ny = MatMul(a, wo)",
        {**QKV, "b": (36,)},
        (3, 4),
    ),
    MS + "GroupQueryAttention": Case(
        "q = MatMul(x, wq)\nk = MatMul(x, wk)\nv = MatMul(x, wv)\n"
        "l = Constant<value = int32[2] {6, 6}>()\nn = Constant<value = int32[1] {7}>()\n"
        "a, p, r = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 3>"
        "(q, k, v, , , l, n)\ny = MatMul(a, wo)",
        {"wq": (6, 48), "wk": (6, 24), "wv": (6, 24), "wo": (48, 5)},
        (2, 3),
        "float[2, 7, 6] x",
    ),
    MS + "FusedConv": image(
        'g = Conv(x, m)\nk = com.microsoft.FusedConv<activation = "Relu">(h, e, b, g)',
        {"m": (12, 3, 1, 1), "e": (12, 12, 1, 1), "b": (12,)},
        (12, 12),
    ),
    MS + "FusedGemm": Case(
        'h = com.microsoft.FusedGemm<activation = "Relu">(x, u, b)\ny = MatMul(h, d)',
        {"u": (6, 12), "b": (12,), "d": (12, 5)},
        (12,),
        "float[batch, 6] x",
    ),
    MS + "EmbedLayerNormalization": Case(
        "e, i = com.microsoft.EmbedLayerNormalization(x, , w, p, , s, b)\ny = MatMul(e, d)",
        {"w": (64, 12), "p": (16, 12), "s": (12,), "b": (12,), "d": (12, 5)},
        (12,),
        "int32[batch, time] x",
    ),
    MS + "MatMulNBits": Case(
        "g = MatMul(x, u)\n"
        "h = com.microsoft.MatMulNBits<K = 64, N = 12, bits = 4, block_size = 16>(g, b8, s)\n"
        "y = MatMul(h, d)",
        {"u": (6, 64), "b8": (12, 4, 8), "s": (48,), "d": (12, 5)},
        (4, 12),
    ),
    "QLinearMatMul": Case(
        "s = Constant<value_float = 0.02>()\nz = Constant<value = int8 {0}>()\n"
        "q = QuantizeLinear(x, s, z)\nh = QLinearMatMul(q, s, z, i8, s, z, s, z)\n"
        "k = DequantizeLinear(h, s, z)\ny = MatMul(k, d)",
        {"i8": (6, 12), "d": (12, 5)},
        (12,),
        "float[batch, 6] x",
    ),
    "QLinearConv": Case(
        "s = Constant<value_float = 0.02>()\nz = Constant<value = int8 {0}>()\n"
        "q = QuantizeLinear(x, s, z)\nh = QLinearConv(q, s, z, i8, ws, wz8, s, z)\n"
        "k = DequantizeLinear(h, s, z)\ny = Conv(k, d)",
        {"i8": (12, 3, 1, 1), "ws": (12,), "wz8": (12,), "d": (5, 12, 1, 1)},
        (12,),
        IMAGE,
    ),
    "QLinearConv with a bias": Case(
        "s = Constant<value_float = 0.02>()\nz = Constant<value = int8 {0}>()\n"
        "q = QuantizeLinear(x, s, z)\nh = QLinearConv(q, s, z, i8, ws, wz8, s, z, b32)\n"
        "k = DequantizeLinear(h, s, z)\ny = Conv(k, d)",
        {"i8": (12, 3, 1, 1), "ws": (12,), "wz8": (12,), "b32": (12,), "d": (5, 12, 1, 1)},
        (12,),
        IMAGE,
    ),
    "DequantizeLinear of a weight and a bias": Case(
        "w = DequantizeLinear<axis = 0>(i8, ws, wz8)\nb = DequantizeLinear<axis = 0>(b32, ws)\n"
        "h = Conv(x, w, b)\nk = Relu(h)\ny = Conv(k, d)",
        {"i8": (12, 3, 1, 1), "ws": (12,), "wz8": (12,), "b32": (12,), "d": (5, 12, 1, 1)},
        (12,),
        IMAGE,
    ),
}
"""By the operator they are about (`MatMul`, `com.microsoft.Attention`), and a word where one
operator has several."""
