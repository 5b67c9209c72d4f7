"""Rules of ONNX operations that attend or rotate as a whole."""

from __future__ import annotations

from prunec.ir.dialects.onnx_args import given, integer, integers
from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Typing
from prunec.ir.unify import AxisId

__all__ = [
    "attention",
    "embedded",
    "fused_attention",
    "grouped_query",
    "multi_head",
    "rotary",
    "rotary_fused",
]

IMPLICIT = "the scale of attention follows from its size"


def _attended(
    t: Typing, op: Op, q: Dims, k: Dims, v: Dims, heads: int, shared: int = 0
) -> Dims | None:
    """Queries [b, h, s, d], keys [b, h, t, d], values [b, h, t, e]: what attention gives.

    With `shared` the keys have so many heads, each of them for several of the `heads` queries.
    """
    operands = [t.define("query", q), t.define("key", k), t.define("value", v)]
    if not op.kwarg("scale"):
        t.axes.pin(q[3], IMPLICIT)
    if shared in (0, heads):
        found = t.apply("b h s d, b h t d, b h t e -> b h s e", operands)
    else:
        signature = "b (k g) s d, b k t d, b k t e -> b (k g) s e"
        found = t.apply(signature, operands, sizes={"k": shared})
    return None if found is None else found[0]


def _headed(t: Typing, width: AxisId, heads: int) -> tuple[AxisId, AxisId] | None:
    """A width as heads and their insides."""
    return t.axes.split(width, heads) if heads > 1 else (t.axes.UNIT, width)


def _others(t: Typing, op: Op, *reasoned: Arg) -> None:
    """Masks, biases of scores and caches are not told apart further: what they hold stays."""
    for arg in reasoned:
        if isinstance(arg, Ref):
            t.pin(t.of(arg), f"a mask, bias or cache of `{op.name}`")


def _results(t: Typing, op: Op, first: Dims, *more: Dims) -> list[Dims]:
    found = [first, *more]
    return [
        found[i] if i < len(found) else t.fresh(type_.shape, f"a further result of `{op.name}`")
        for i, type_ in enumerate(op.types)
    ]


def fused_attention(t: Typing, op: Op) -> list[Dims] | None:
    """Projections of queries, keys and values in one matrix, then attention."""
    x, weight, heads = t.of(op.args[0]), t.of(op.args[1]), integer(op, "num_heads")
    if len(x) != 3 or integer(op, "do_rotary"):
        return None
    sizes = integers(op, "qkv_hidden_sizes")
    width = t.axes.size(weight[1])
    widths = list(sizes) if sizes is not None else [width // 3] * 3
    rest, parts = weight[1], []
    for size in widths[:2]:
        pair = t.axes.cut(rest, size)
        if pair is None:
            return None
        parts.append(pair[0])
        rest = pair[1]
    pairs = [_headed(t, part, heads) for part in (*parts, rest)]
    if any(pair is None for pair in pairs):
        return None
    (n, d), (nk, dk), (nv, e) = [pair for pair in pairs if pair is not None]
    for other in (nk, nv):
        t.axes.unify(n, other)
    t.axes.unify(d, dk)
    if sizes is None:
        t.axes.unify(d, e)
    t.literal(("num_heads",), n)
    for i, part in enumerate((*parts, rest) if sizes is not None else ()):
        t.literal(("qkv_hidden_sizes", i), part)
    _others(t, op, *op.args[3:])
    projected = t.apply("... i, i o, o -> ... o", op.args[:3])
    found = _attended(t, op, [x[0], n, x[1], d], [x[0], n, x[1], d], [x[0], n, x[1], e], heads)
    if found is None or projected is None:
        return None
    return _results(t, op, [x[0], x[1], t.axes.product([n, e])])


def multi_head(t: Typing, op: Op) -> list[Dims] | None:
    """Queries, keys and values [b, s, (n d)] (or keys and values as a cache holds them), and one
    bias for the three side by side."""
    if given(op, 1) is None or given(op, 2) is None:
        return None
    q, k, v = (t.of(arg) for arg in op.args[:3])
    heads = integer(op, "num_heads")
    if len(q) != 3 or (len(k), len(v)) not in ((3, 3), (4, 4)):
        return None
    if isinstance(bias := given(op, 3), Ref):
        t.axes.unify(t.of(bias)[0], t.axes.sum([q[2], *([k[2], v[2]] if len(k) == 3 else [])]))
    pair = _headed(t, q[2], heads)
    if pair is None:
        return None
    n, d = pair
    keys, values = _unpacked(t, k, heads), _unpacked(t, v, heads)
    if keys is None or values is None:
        return None
    for other in (keys[1], values[1]):
        t.axes.unify(n, other)
    _others(t, op, *op.args[4:6])
    for arg, like in ((given(op, 6), keys), (given(op, 7), values)):
        _cache(t, arg, like)
    t.literal(("num_heads",), n)
    found = _attended(t, op, [q[0], n, q[1], d], keys, values, heads)
    if found is None:
        return None
    _others(t, op, *op.args[8:])
    result = [q[0], q[1], t.axes.product([n, values[3]])]
    return _results(t, op, result, *_caches(t, op, keys, values))


def _unpacked(t: Typing, x: Dims, heads: int) -> Dims | None:
    """[b, n, t, d] of [b, t, (n d)] or of itself."""
    if len(x) == 4:
        return x
    pair = _headed(t, x[2], heads)
    return None if pair is None else [x[0], pair[0], x[1], pair[1]]


def _cache(t: Typing, arg: Arg, like: Dims) -> None:
    """A cache [b, n, past, d] has the heads and insides of what is appended to it."""
    if not isinstance(arg, Ref):
        return
    own = t.of(arg)
    if len(own) != 4:
        t.pin(own, "a cache")
        return
    t.axes.unify(own[1], like[1])
    t.axes.unify(own[3], like[3])


def _caches(t: Typing, op: Op, keys: Dims, values: Dims) -> list[Dims]:
    found = []
    for like, type_ in zip((keys, values), op.types[1:3], strict=False):
        if len(type_.shape) == 4:
            grown = t.fresh(type_.shape[2:3])
            found.append([like[0], like[1], *grown, like[3]])
        else:
            found.append(t.fresh(type_.shape))
    return found


def grouped_query(t: Typing, op: Op) -> list[Dims] | None:
    """Queries [b, s, (k g d)], keys and values [b, t, (k d)]; or all three side by side."""
    q, heads, kv = t.of(op.args[0]), integer(op, "num_heads"), integer(op, "kv_num_heads")
    if given(op, 1) is None:
        parts = _side_by_side(t, q[2], heads, kv)
        if parts is None:
            return None
        queries, keys, values = parts
    else:
        queries, keys, values = q[2], t.of(op.args[1])[-1], t.of(op.args[2])[-1]
    length = q[1] if given(op, 1) is None else t.of(op.args[1])[1]
    pairs = [_headed(t, width, n) for width, n in ((queries, heads), (keys, kv), (values, kv))]
    if any(pair is None for pair in pairs):
        return None
    (n, d), (k, dk), (kval, e) = [pair for pair in pairs if pair is not None]
    t.axes.unify(k, kval)
    t.axes.unify(d, dk)
    t.axes.unify(d, e)
    if integer(op, "do_rotary"):
        t.axes.pin(d, "it is rotated in pairs")
    if heads != kv:
        shared = t.axes.atom(heads // kv)
        t.axes.unify(n, t.axes.product([k, shared]))
    else:
        t.axes.unify(n, k)
    t.literal(("num_heads",), n)
    t.literal(("kv_num_heads",), k)
    key, value = [q[0], k, length, d], [q[0], k, length, e]
    _cache(t, given(op, 3), key)
    _cache(t, given(op, 4), value)
    _others(t, op, *op.args[5:])
    found = _attended(t, op, [q[0], n, q[1], d], key, value, heads, kv)
    if found is None:
        return None
    result = [q[0], q[1], t.axes.product([n, e])]
    return _results(t, op, result, *_caches(t, op, key, value))


def _side_by_side(t: Typing, width: AxisId, heads: int, kv: int) -> Dims | None:
    inside = t.axes.size(width) // (heads + 2 * kv)
    first = t.axes.cut(width, heads * inside)
    second = t.axes.cut(first[1], kv * inside) if first is not None else None
    return None if first is None or second is None else [first[0], *second]


def attention(t: Typing, op: Op) -> list[Dims] | None:
    """ONNX's own: [b, h, s, d], or [b, s, (h d)] with the numbers of heads among the attributes."""
    q, k, v = (t.of(arg) for arg in op.args[:3])
    flat = len(q) == 3
    heads = integer(op, "q_num_heads") if flat else t.axes.size(q[1])
    kv = integer(op, "kv_num_heads") if flat else t.axes.size(k[1])
    unpacked = [_unpacked(t, x, n) for x, n in ((q, heads), (k, kv), (v, kv))]
    if any(x is None for x in unpacked):
        return None
    queries, keys, values = [x for x in unpacked if x is not None]
    if flat:
        t.literal(("q_num_heads",), queries[1])
        t.literal(("kv_num_heads",), keys[1])
    if isinstance(mask := given(op, 3), Ref):
        dims = t.of(mask)
        if len(dims) > 2 and t.axes.size(dims[-3]) > 1:
            t.axes.unify(dims[-3], queries[1])
        t.pin(dims[-2:], f"a mask of `{op.name}`")
    _cache(t, given(op, 4), keys)
    _cache(t, given(op, 5), values)
    found = _attended(t, op, queries, keys, values, heads, kv)
    if found is None:
        return None
    h, e = found[1], found[3]
    result = [q[0], q[1], t.axes.product([h, e])] if flat else [q[0], h, q[2], e]
    return _results(t, op, result, *_caches(t, op, keys, values))


def rotary(t: Typing, op: Op) -> list[Dims] | None:
    """Input, cosines, sines, positions."""
    return _rotated(t, op, op.args[1], op.args[2], given(op, 3))


def rotary_fused(t: Typing, op: Op) -> list[Dims] | None:
    """ONNX Runtime's own has the positions second."""
    return _rotated(t, op, op.args[2], op.args[3], op.args[1])


def _rotated(t: Typing, op: Op, cos: Arg, sin: Arg, positions: Arg) -> list[Dims] | None:
    """A pair of entries is turned by one angle: it leaves whole. The pair are neighbours when
    interleaved, else they lie in the two halves of the part that is rotated."""
    x = t.of(op.args[0])
    heads = integer(op, "num_heads")
    if len(x) == 3 and not heads:
        return None
    n, d = (x[1], x[3]) if len(x) == 4 else _headed(t, x[2], heads) or (None, None)
    if n is None or d is None:
        return None
    if len(x) == 3:
        t.literal(("num_heads",), n)
    turned = _turned(t, op, d)
    if turned is None:
        return None
    angles = t.of(cos)[-1]
    t.axes.unify(angles, t.of(sin)[-1])
    if integer(op, "interleaved"):
        two = t.fresh([2], "a pair turned by one angle")
        t.axes.unify(turned, t.axes.product([angles, *two]))
    else:
        t.axes.unify(turned, t.axes.sum([angles, angles]))
    for table in (t.of(cos), t.of(sin)):
        if isinstance(positions, Ref):
            t.of(positions)
            for axis in table[:-1]:
                t.axes.mark(axis, "index", "positions select from it")
        else:
            t.unify(table[:-1], [x[0], x[-2]])
    return [x]


def _turned(t: Typing, op: Op, d: AxisId) -> AxisId | None:
    """The part of a head that is rotated: its first entries, or all."""
    part = integer(op, "rotary_embedding_dim")
    if not part:
        return d
    pair = t.axes.cut(d, part) if part != t.axes.size(d) else (d, d)
    if pair is None:
        return None
    t.literal(("rotary_embedding_dim",), pair[0])
    return pair[0]


def embedded(t: Typing, op: Op) -> list[Dims]:
    """Embeddings of words, positions and segments, added and normed: results, a mask index, the
    sum."""
    ids = t.of(op.args[0])
    tables = [t.of(arg) for arg in op.args[2:5] if isinstance(arg, Ref)]
    hidden = tables[0][1]
    for table in tables:
        t.axes.mark(table[0], "index", "data select from it")
        t.axes.unify(hidden, table[1])
    for arg in op.args[5:7]:
        if isinstance(arg, Ref):
            t.axes.unify(hidden, t.of(arg)[0])
    t.norm(hidden)
    found = [*ids, hidden]
    return [
        list(found) if len(type_.shape) == len(found) else t.fresh(type_.shape)
        for type_ in op.types
    ]
