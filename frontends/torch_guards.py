"""At which sizes a trace holds: what the exporter had to assume of them while it went along.

Sizes that only the data decide must often add up: the parts of a sequence have its length. And a
loop that goes round once for each block of a sequence is traced with as many blocks as the
example has. The exporter then notes that the number of blocks, an expression in the sizes, equals
that number; unlike a bound of one size, this appears nowhere in what it exports.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.symbol import SymT, symbol_is_type

__all__ = ["Solved", "agreeing_sizes", "agreements", "held_sizes"]

_TORCH = str(Path(torch.__file__).parent)
_DRAWN = ((5, 7, 11, 13, 17, 19), (2, 3, 5), (2, 3))
"""Examples of parts whose whole is known: large ones first."""
FURTHEST = 1021
"""How much larger than the example the size is that ought to do as well."""


def held_sizes(
    program: ExportedProgram, sizes: Mapping[sympy.Symbol, int]
) -> frozenset[sympy.Symbol]:
    """The symbols that cannot vary freely. `sizes` are those of the example.

    One symbol is varied at a time; an assumption that holds at a much larger size too is taken for
    one that always does.
    """
    counts = set(_counts(program, sizes))
    found = set()
    for symbol, size in sizes.items():
        tried = {s: sympy.Integer(n) for s, n in {**sizes, symbol: size + FURTHEST}.items()}
        if any(count.xreplace(tried) == sympy.false for count in counts):
            found.add(symbol)
    return frozenset(found)


def _counts(program: ExportedProgram, sizes: Mapping[sympy.Symbol, int]) -> Iterator[sympy.Expr]:
    """Assumptions that an expression in known sizes equals a number. Those that something is one or
    nothing count where the model's own code makes them; torch does for the sake of strides."""
    env = _environment(program)
    for guard in env.guards if env else ():
        expr = guard.expr
        if not isinstance(expr, sympy.Eq) or not expr.free_symbols <= set(sizes):
            continue
        number = next((side for side in expr.args if side.is_Integer), None)
        if number is not None and (number >= 2 or not _is_of_torch(guard.sloc.framework_loc)):
            yield expr


def _is_of_torch(frame: Any) -> bool:
    return str(getattr(frame, "filename", "")).startswith(_TORCH)


Solved = dict[sympy.Symbol, sympy.Expr]


def agreements(program: ExportedProgram) -> Solved:
    """What the program asserts of sizes that only the data decide, solved for one of them each:
    `{u1: 48 - u0}` where two parts make up a sequence of 48. Only what is linear is solved."""
    env = _environment(program)
    asserted = env.deferred_runtime_asserts.values() if env else ()
    found: Solved = {}
    for expr in dict.fromkeys(item.expr for some in asserted for item in some):
        if not isinstance(expr, sympy.Eq):
            continue
        rest = sympy.expand((expr.lhs - expr.rhs).xreplace(found))
        for symbol in sorted(rest.free_symbols, key=str, reverse=True):
            slope = rest.diff(symbol)
            if symbol_is_type(symbol, SymT.UNBACKED_INT) and slope in (1, -1):
                solved = {symbol: sympy.expand(symbol - rest / slope)}
                found = {s: sympy.expand(e.xreplace(solved)) for s, e in found.items()} | solved
                break
    return found


def agreeing_sizes(solved: Solved, sizes: Mapping[sympy.Symbol, int]) -> dict[sympy.Symbol, int]:
    """Positive example values for which the agreements are true; empty where none are found.
    `sizes` are those that are known."""
    inside = {s for expr in solved.values() for s in expr.free_symbols}
    free = sorted(inside - set(sizes), key=str)
    for primes in _DRAWN:
        drawn = {**sizes, **dict(zip(free, itertools.cycle(primes), strict=False))}
        numbers = {symbol: sympy.Integer(size) for symbol, size in drawn.items()}
        found = {symbol: expr.xreplace(numbers) for symbol, expr in solved.items()}
        if all(value.is_Integer and value > 0 for value in found.values()):
            return {symbol: int(value) for symbol, value in (numbers | found).items()}
    return {}


def _environment(program: ExportedProgram) -> ShapeEnv | None:
    values = (node.meta.get("val") for node in program.graph.nodes)
    modes = (getattr(value, "fake_mode", None) for value in values)
    return next((mode.shape_env for mode in modes if mode is not None), None)
