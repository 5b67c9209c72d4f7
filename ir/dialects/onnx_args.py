"""Arguments of ONNX operations: operands and attributes, dimensions counted from 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from prunec.ir.graph import Arg, Op, Ref
from prunec.ir.infer import Dims, Path, Typing
from prunec.ir.runtime import Size
from prunec.ir.unify import AxisId

__all__ = [
    "dims_given",
    "entries",
    "given",
    "integer",
    "integers",
    "ranked",
    "say",
    "say_sizes",
]


def given(op: Op, position: int) -> Arg:
    """An operand, None when it is left out."""
    return op.args[position] if len(op.args) > position else None


def integer(op: Op, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return cast(int, op.kwarg(name, default))


def integers(op: Op, name: str) -> tuple[int, ...] | None:
    """A list of integers among the attributes."""
    return cast("tuple[int, ...] | None", op.kwarg(name))


def entries(t: Typing, op: Op, position: int) -> tuple[Size, ...] | None:
    """The entries of an operand that holds sizes or positions; None when data decide them.

    A literal stands as itself: the value follows no axis unless its reader says so.
    """
    arg = given(op, position)
    if isinstance(arg, Ref):
        return t.sizes.vectors.get(arg.name)
    if isinstance(arg, int):
        return (Size((), arg),)
    return tuple(Size((), cast(int, n)) for n in arg) if isinstance(arg, tuple) else None


def dims_given(op: Op, position: int, name: str, rank: int) -> list[int] | None:
    """Dimensions by attribute in older versions, by a literal operand in newer ones; all when
    neither is given, None when they are computed."""
    found = given(op, position)
    found = op.kwarg(name) if found is None else found
    if isinstance(found, Ref):
        return None
    if found is None or found == ():
        return list(range(rank))
    listed = found if isinstance(found, tuple) else (found,)
    return [cast(int, d) % max(rank, 1) for d in listed]


def say(t: Typing, op: Op, position: int, i: int, axis: AxisId) -> None:
    """Entry `i` of an operand tells the size of `axis`: it follows, wherever it is computed."""
    arg = given(op, position)
    if isinstance(arg, Ref):
        t.understood(arg.name)
        vector = t.sizes.vectors.get(arg.name)
        if vector is not None:
            t.sizes.says(t, vector[i], axis)
    elif isinstance(arg, tuple) and cast(int, arg[i]) > 1:
        t.literal((position, i), axis)
    elif isinstance(arg, int) and arg > 1:
        t.literal((position,), axis)


def say_sizes(t: Typing, path: Path, axes: Sequence[AxisId]) -> None:
    """A list of integers among the attributes tells the sizes of axes."""
    for i, axis in enumerate(axes):
        t.literal((*path, i), axis)


def ranked(t: Typing, *args: Arg) -> list[Arg]:
    """Operands as they are, those without a dimension of more than one index left out."""

    def held(arg: Arg) -> Arg:
        if not isinstance(arg, Ref):
            return None
        dims: Dims = t.of(arg)
        return arg if any(t.axes.size(axis) > 1 for axis in dims) else None

    return [held(arg) for arg in args]
