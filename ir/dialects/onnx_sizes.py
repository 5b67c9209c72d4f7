"""Rules of ONNX operations on vectors of sizes: `Reshape(x, Concat(Shape(x)[0:1], [12, 64]))`.

Each entry of such a vector is followed: of which axes it is the size, and where the literals in
it stand, so that they follow the axes that they turn out to mean. A rule gives None when its
operands are data, which another rule types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from prunec.ir.dialects.onnx_args import entries, integer
from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Rule, Typing
from prunec.ir.runtime import Literal, Size

__all__ = ["SIZES", "or_sizes", "sizes_only"]

LONGEST = 64
"""Entries of a vector: more than any tensor has dimensions."""

Vector = tuple[Size, ...]
Entries = Callable[[Typing, Op, Sequence[Vector]], Vector | None]


def or_sizes(rule: Rule) -> Rule:
    """A rule for data, behind the one for vectors of sizes."""

    def both(t: Typing, op: Op) -> list[Dims] | None:
        found = sizes_only(t, op)
        return rule(t, op) if found is None else found

    return both


def sizes_only(t: Typing, op: Op) -> list[Dims] | None:
    """Type an operation on vectors of sizes; None when it is none."""
    rule = SIZES[op.name]
    type_ = op.types[0]
    if type_.dtype not in ("i64", "i32", "bool") or len(type_.shape) > 1:
        return None
    if op.name in ("onnx.Shape", "onnx.Size"):
        vectors: list[Vector] = []
    else:
        found = [_vector(t, i, arg) for i, arg in enumerate(op.args)]
        if any(vector is None for vector in found):
            return None
        vectors = [vector for vector in found if vector is not None]
    result = rule(t, op, vectors)
    if result is None or len(result) != math.prod(d for d in type_.shape if isinstance(d, int)):
        return None
    for name in op.operands:
        t.understood(name)
    t.sizes.vectors[op.result] = result
    return [t.fresh(type_.shape)]


def _vector(t: Typing, position: int, arg: Arg) -> Vector | None:
    """An operand's entries; those of a literal stand at a place of their own."""
    if isinstance(arg, Ref):
        return t.sizes.vectors.get(arg.name)
    if isinstance(arg, bool):
        return None
    if isinstance(arg, int):
        return (_literal(t, (position,), arg),)
    if isinstance(arg, tuple):
        return tuple(_literal(t, (position, i), cast(int, n)) for i, n in enumerate(arg))
    return None


def _literal(t: Typing, path: tuple[int | str, ...], value: int) -> Size:
    return Size((Literal(t.index, path, value),) if value > 1 else (), value)


# What the entries of the result are


def shape(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    x = t.of(op.args[0])
    end = op.kwarg("end")
    chosen = x[integer(op, "start") : cast("int | None", end)]
    return tuple(Size((axis,), t.axes.size(axis)) for axis in chosen)


def count(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    x = t.of(op.args[0])
    return (Size(tuple(x), math.prod(map(t.axes.size, x))),)


def same(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    return vectors[0]


def gather(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector | None:
    x, at = vectors[0], [size.value for size in vectors[1]]
    return tuple(x[i] for i in at) if all(-len(x) <= i < len(x) for i in at) else None


def slice_(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector | None:
    if op.kwarg("starts") is not None:
        starts, ends = op.kwarg("starts"), op.kwarg("ends")
        return vectors[0][cast(tuple[int], starts)[0] : cast(tuple[int], ends)[0]]
    start, end = vectors[1][0].value, vectors[2][0].value
    step = entries(t, op, 4)
    return vectors[0][start : end : step[0].value if step else 1]


def concat(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    return tuple(size for vector in vectors for size in vector)


def where(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    condition, yes, no = _broadcast(vectors)
    return tuple(
        Size(a.factors + c.factors, (a if c.value else b).value, exact=False)
        if c.factors
        else (a if c.value else b)
        for c, a, b in zip(condition, yes, no, strict=True)
    )


def filled(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector | None:
    """Ones, or whatever number, as many as the operand says."""
    value = op.kwarg("value")
    number = 0 if value is None else cast("tuple[object, ...]", value)[0]
    count = vectors[0][0].value if len(vectors[0]) == 1 else -1
    if not isinstance(number, int) or not 0 <= count <= LONGEST:
        return None
    return (_constant(number),) * count


def _constant(value: int) -> Size:
    """A number that stands nowhere as a literal of its own."""
    return Size((), value, exact=value <= 1)


def compared(decide: Callable[[int, int], bool]) -> Entries:
    """A comparison. Sizes are positive, so with a number below 1 it is decided for good."""

    def rule(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
        return tuple(
            Size(
                () if min(a.value, b.value) < 1 else a.factors + b.factors,
                int(decide(a.value, b.value)),
                exact=False,
            )
            for a, b in zip(*_broadcast(vectors), strict=True)
        )

    return rule


def product(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    return tuple(_times(a, b) for a, b in zip(*_broadcast(vectors), strict=True))


def _times(a: Size, b: Size) -> Size:
    exact = a.exact and b.exact and min(a.value, b.value) >= 1
    return Size(a.factors + b.factors, a.value * b.value, a.divisor * b.divisor, exact)


def whole(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    """The product of all entries."""
    found = Size((), 1)
    for size in vectors[0]:
        found = _times(found, size)
    return (found,)


def quotient(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    return tuple(_divided(t, a, b) for a, b in zip(*_broadcast(vectors), strict=True))


def _divided(t: Typing, a: Size, b: Size) -> Size:
    """By a number: a part of the size. By axes that it is a product of: what these leave."""
    value = a.value // b.value if b.value else 0
    literals = [f for f in b.factors if isinstance(f, Literal)]
    rest = list(a.factors)
    for factor in b.factors:
        if factor in rest:
            rest.remove(factor)
    if len(rest) == len(a.factors) - len(b.factors):
        return Size(tuple(rest), value, a.divisor, a.exact and b.exact)
    if a.exact and len(literals) == len(b.factors) and b.value and not a.value % b.value:
        for literal in literals:
            t.sizes.fixed.add((literal.op, literal.path))
        return Size(a.factors, value, a.divisor * b.value)
    return Size(a.factors + b.factors, value, exact=False)


def mixed(compute: Callable[[int, int], int]) -> Entries:
    """Any other function of two sizes."""

    def rule(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
        return tuple(
            Size(a.factors + b.factors, compute(a.value, b.value), exact=False)
            for a, b in zip(*_broadcast(vectors), strict=True)
        )

    return rule


def negative(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    return tuple(Size(size.factors, -size.value, exact=False) for size in vectors[0])


def added(t: Typing, op: Op, vectors: Sequence[Vector]) -> Vector:
    """A sum; adding nothing changes nothing."""
    found = []
    for a, b in zip(*_broadcast(vectors), strict=True):
        if not b.value and not b.factors:
            found.append(a)
        else:
            found.append(Size(a.factors + b.factors, a.value + b.value, exact=False))
    return tuple(found)


def _broadcast(vectors: Sequence[Vector]) -> list[Vector]:
    width = max(len(vector) for vector in vectors)
    return [vector * width if len(vector) == 1 else vector for vector in vectors]


_SIZES: Mapping[str, Entries] = {
    "Shape": shape,
    "Size": count,
    **dict.fromkeys("Identity Cast Squeeze Unsqueeze Reshape Flatten Expand Abs".split(), same),
    "Gather": gather,
    "Slice": slice_,
    "Concat": concat,
    "Where": where,
    "ConstantOfShape": filled,
    "Equal": compared(lambda a, b: a == b),
    "Less": compared(lambda a, b: a < b),
    "Greater": compared(lambda a, b: a > b),
    "LessOrEqual": compared(lambda a, b: a <= b),
    "GreaterOrEqual": compared(lambda a, b: a >= b),
    "Mul": product,
    "Div": quotient,
    "ReduceProd": whole,
    "Add": added,
    "Sub": mixed(lambda a, b: a - b),
    "Max": mixed(max),
    "Min": mixed(min),
    "Mod": mixed(lambda a, b: a % b if b else 0),
    "Neg": negative,
}

SIZES: Mapping[str, Entries] = {f"onnx.{name}": rule for name, rule in _SIZES.items()}
"""Operations that graphs compute sizes with; `same` ones pass the entries of their operand on."""
