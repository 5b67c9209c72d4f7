"""Rules of aten operations that sum over an axis shared by two operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from prunec.ir.dialects.aten_args import argument, path_of
from prunec.ir.graph import Arg, Op
from prunec.ir.infer import Dims, Path, Typing

__all__ = [
    "attention",
    "contracted",
    "convolution",
    "convolved",
    "einsum",
    "matmul",
    "transposed_convolution",
]


def addmm(t: Typing, op: Op) -> list[Dims] | None:
    """A product of matrices, or of stacks of them, to which the first operand is added."""
    batch = "b " if op.name.startswith("aten.baddbmm") else ""
    found = t.apply(f"{batch}n i, {batch}i o -> {batch}n o", op.args[1:3])
    return found and [t.unify(found[0], t.of(op.args[0]))]


def matmul(t: Typing, op: Op) -> list[Dims] | None:
    a, b = len(t.of(op.args[0])), len(t.of(op.args[1]))
    left = "i" if a == 1 else "... n i"
    right = "i" if b == 1 else "... i o"
    result = " ".join(["..."] + ["n"] * (a > 1) + ["o"] * (b > 1))
    return t.apply(f"{left}, {right} -> {result}", op.args)


def einsum(t: Typing, op: Op) -> list[Dims] | None:
    return contracted(t, cast(str, op.args[0]), cast(tuple[Arg, ...], op.args[1]))


def contracted(t: Typing, equation: str, operands: tuple[Arg, ...]) -> list[Dims] | None:
    """By an equation such as `bhsd,bhtd->bhst`; None when it does not say its result."""
    text = equation.replace(" ", "")
    if "->" not in text:
        return None

    def spaced(part: str) -> str:
        return " ".join(part.replace("...", "*").replace("*", "~")).replace("~", "...")

    left, right = text.split("->")
    signature = ", ".join(map(spaced, left.split(","))) + " -> " + spaced(right)
    return t.apply(signature, operands)


def attention(t: Typing, op: Op) -> list[Dims] | None:
    """Fused attention. With `enable_gqa` the kernel shares each key head among query heads, and
    each value head; there may be more of the one than of the other."""
    operands = [*op.args[:3], argument(op, 3, "attn_mask")]
    fact = " | pin t: a softmax runs over it"
    if not argument(op, 7, "enable_gqa", False):
        plain = "... h s d, ... h t d, ... h t e, ... h s t -> ... h s e"
        return t.apply(plain + fact, operands)
    key, value = (t.axes.size(t.of(operand)[-3]) for operand in op.args[1:3])
    few, many = sorted((key, value))
    if many % few:
        return None
    k, v = ("k" if heads == few else "(k h)" for heads in (key, value))
    query = "(k g)" if few == many else "(k h g)"
    shared = f"... {query} s d, ... {k} t d, ... {v} t e, ... {query} s t -> ... {query} s e"
    return t.apply(shared + fact, operands, sizes={"k": few, "h": many // few})


def _groups_at(op: Op) -> int:
    return 8 if op.name == "aten.convolution.default" else 6


def _spatial(t: Typing, op: Op) -> tuple[int, int]:
    """Number of spatial dimensions, and of groups."""
    groups = argument(op, _groups_at(op), "groups", 1)
    return len(t.of(op.args[1])) - 2, cast(int, groups)


def convolution(t: Typing, op: Op) -> list[Dims] | None:
    if op.name == "aten.convolution.default" and op.args[6]:
        return transposed_convolution(t, op)
    rank, groups = _spatial(t, op)
    return convolved(t, op.args[:3], rank, groups, path_of(op, _groups_at(op), "groups"))


def transposed_convolution(t: Typing, op: Op) -> list[Dims] | None:
    rank, groups = _spatial(t, op)
    path = path_of(op, _groups_at(op), "groups")
    return convolved(t, op.args[:3], rank, groups, path, transposed=True)


def convolved(
    t: Typing,
    operands: Sequence[Arg],
    rank: int,
    groups: int,
    path: Path,
    *,
    transposed: bool = False,
) -> list[Dims] | None:
    """Input, weight, and any number of vectors by output channel; `path` is where the number of
    groups stands."""
    space = "_ " * rank
    vectors = len(operands) - 2
    if groups == 1:
        weight = "i o" if transposed else "o i"
        return t.apply(
            f"... i {space}, {weight} {space}" + ", o" * vectors + f" -> ... o {space}", operands
        )
    weight = "(g i) o" if transposed else "(g o) i"
    return t.apply(
        f"... (g i) {space}, {weight} {space}" + ", (g o)" * vectors + f" -> ... (g o) {space}",
        operands,
        sizes={"g": groups},
        literals={"g": path},
    )
