"""Rules of aten operations on complex numbers: as pairs of real ones, and Fourier transforms."""

from __future__ import annotations

from prunec.ir.dialects.aten_args import argument, dim_of, dims_of
from prunec.ir.graph import Op
from prunec.ir.infer import Dims, Typing

__all__ = ["fourier", "fourier_of_many", "view_as_complex", "view_as_real"]

PARTS = "its two indices are a real and an imaginary part"


def view_as_complex(t: Typing, op: Op) -> list[Dims]:
    """The last dimension holds real and imaginary part."""
    x = t.of(op.args[0])
    t.axes.pin(x[-1], PARTS)
    return [x[:-1]]


def view_as_real(t: Typing, op: Op) -> list[Dims]:
    return [[*t.of(op.args[0]), *t.fresh([2], PARTS)]]


def fourier(t: Typing, op: Op) -> list[Dims]:
    """A transform along one dimension mixes all its indices."""
    rank = len(t.of(op.args[0]))
    return _transformed(t, op, [dim_of(argument(op, 2, "dim", -1), rank)])


def fourier_of_many(t: Typing, op: Op) -> list[Dims]:
    rank = len(t.of(op.args[0]))
    where = argument(op, 2, "dim")
    two = where is None and op.name.endswith("2.default")
    return _transformed(t, op, [rank - 2, rank - 1] if two else dims_of(where, rank))


def _transformed(t: Typing, op: Op, over: list[int]) -> list[Dims]:
    x = list(t.of(op.args[0]))
    for d in over:
        reason = f"`{op.name}` mixes its indices"
        t.axes.pin(x[d], reason)
        x[d] = t.fresh(op.types[0].shape[d : d + 1], reason)[0]
    return [x]
