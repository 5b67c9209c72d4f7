"""Arguments of aten operations: by position or keyword, dimensions counted from 0."""

from __future__ import annotations

from typing import cast

from prunec.ir.graph import Arg, Op
from prunec.ir.infer import Path

__all__ = ["FAR", "argument", "dim_of", "dims_of", "path_of"]

FAR = 1 << 62
"""Bounds from here on mean the end of the dimension."""


def argument(op: Op, position: int, name: str, default: Arg = None) -> Arg:
    """An argument given by position or by keyword."""
    return op.args[position] if len(op.args) > position else op.kwarg(name, default)


def path_of(op: Op, position: int, name: str) -> Path:
    return (position,) if len(op.args) > position else (name,)


def dim_of(arg: Arg, rank: int) -> int:
    return int(cast(int, arg)) % max(rank, 1)


def dims_of(arg: Arg, rank: int) -> list[int]:
    if arg is None or arg == ():
        return list(range(rank))
    found = arg if isinstance(arg, tuple) else (arg,)
    return [dim_of(d, rank) for d in found]
