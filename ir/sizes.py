"""Sizes of dimensions as text, such as `2*s0 + 1`, evaluated at the symbols' example values."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache, reduce
from typing import TypeVar

from prunec.ir.graph import Dim

__all__ = ["dim_size", "folded"]

Number = TypeVar("Number")

_OPERATORS: Mapping[type, str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "floordiv",
    ast.Div: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
}
_EXAMPLES: Mapping[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "max": max,
    "min": min,
}


def dim_size(dim: Dim, symbols: Mapping[str, int]) -> int:
    """Size of a dimension, symbolic ones at the symbols' example values."""
    if isinstance(dim, int):
        return dim
    if dim in symbols:
        return symbols[dim]
    return folded(dim, symbols.__getitem__, int, lambda name, a, b: _EXAMPLES[name](a, b))


def folded(
    text: str,
    symbol: Callable[[str], Number],
    number: Callable[[int], Number],
    apply: Callable[[str, Number, Number], Number],
) -> Number:
    """What a size comes to in whatever stands for numbers: `apply` is given `add`, `sub`, `mul`,
    `floordiv`, `mod`, `pow`, `max` or `min` and two of them. Raises ValueError."""

    def of(node: ast.expr) -> Number:
        match node:
            case ast.Constant(value=int(value)):
                return number(value)
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return apply("sub", number(0), of(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return apply(_OPERATORS[type(op)], of(left), of(right))
            case ast.Call(func=ast.Name(id="Max" | "Min" as name), args=args):
                return reduce(lambda a, b: apply(name.lower(), a, b), map(of, args))
            case _:
                raise ValueError(f"unknown size expression: {ast.unparse(node)}")

    return of(_parsed(text))


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body
