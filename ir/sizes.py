"""Sizes of dimensions as text, such as `2*s0 + 1`, evaluated at the symbols' example values."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import cache
from typing import cast

from prunec.ir.graph import Dim

__all__ = ["dim_size"]

_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Div: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: cast(int, a**b),
}


def dim_size(dim: Dim, symbols: Mapping[str, int]) -> int:
    """Size of a dimension, symbolic ones at the symbols' example values."""
    if isinstance(dim, int):
        return dim
    if dim in symbols:
        return symbols[dim]
    return _evaluate(_parsed(dim), symbols)


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def _evaluate(node: ast.expr, symbols: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, symbols)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, symbols), _evaluate(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=args) if name in ("Max", "Min"):
            values = [_evaluate(arg, symbols) for arg in args]
            return max(values) if name == "Max" else min(values)
        case _:
            raise ValueError(f"unknown size expression: {ast.unparse(node)}")
