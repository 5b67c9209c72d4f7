"""Readable names for the symbolic sizes of an exported program, and an example size for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from prunec.frontends.torch_guards import Solved, agreeing_sizes, agreements
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Dim

__all__ = ["Dynamic", "Symbols", "fixed_dimension", "input_dims", "name_symbols"]

Dynamic = Mapping[str, Mapping[int, str]]
"""Which dimensions of which inputs vary, and what they are called."""


class _Printer(PythonPrinter):
    """Expressions as the IR writes them."""

    def _print_Max(self, expr: sympy.Max) -> str:
        return f"Max({', '.join(self._print(arg) for arg in expr.args)})"

    def _print_Min(self, expr: sympy.Min) -> str:
        return f"Min({', '.join(self._print(arg) for arg in expr.args)})"


@dataclass
class Symbols:
    """Readable names for the exporter's symbols, and an example size for each."""

    sizes: Mapping[str, int]
    ranges: Mapping[sympy.Symbol, ValueRanges[Any]]
    names: dict[sympy.Symbol, str] = field(default_factory=dict)
    agreements: Solved = field(default_factory=dict)
    agreed: dict[sympy.Symbol, int] = field(default_factory=dict)

    def name(self, symbol: sympy.Symbol, wanted: str) -> str:
        return self.names.setdefault(symbol, wanted)

    def dim(self, size: Any) -> Dim:
        """A dimension as the IR writes it: an integer or the text of an expression."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expr = _within(size.node.expr, self.ranges)
        known = sympy.expand(expr.xreplace(self.agreements)) if self.agreements else expr
        if known.is_number:
            return int(known)
        readable = {
            s: sympy.Symbol(self.name(s, str(s)), integer=True, nonnegative=True)
            for s in sorted(expr.free_symbols, key=str)
        }
        return str(_Printer().doprint(expr.xreplace(readable)))

    def examples(self) -> dict[str, int]:
        """Sizes by name. One that only the data decide gets a prime of its own, unless the program
        asserts something of it."""
        found = {name: self.sizes[name] for name in self.names.values() if name in self.sizes}
        spare = max([*self.sizes.values(), 100])
        for symbol, name in self.names.items():
            if symbol in self.agreed:
                found[name] = self.agreed[symbol]
            elif name not in found:
                spare = int(sympy.nextprime(spare))
                found[name] = spare
        return found


def _within(expr: sympy.Expr, ranges: Mapping[sympy.Symbol, ValueRanges[Any]]) -> sympy.Expr:
    """The expression without each maximum or minimum that the ranges of its symbols decide."""
    for choice in expr.atoms(sympy.Max, sympy.Min):
        if len(choice.args) != 2:
            continue
        left, right = choice.args
        apart = bound_sympy(left - right, dict(ranges))
        if isinstance(choice, sympy.Min):
            left, right = right, left
        if apart.lower >= 0:
            return _within(expr.xreplace({choice: left}), ranges)
        if apart.upper <= 0:
            return _within(expr.xreplace({choice: right}), ranges)
    return expr


def _narrowed(within: ValueRanges[Any] | None) -> str | None:
    """What the trace assumes of a size beyond its being there at all: code that loops over blocks
    asks for a least size, and its trace has as many blocks as the example. An upper bound alone is
    what a table of positions leaves."""
    if within is None or within.lower <= 2:
        return None
    upper = "" if within.upper is int_oo else f" and at most {within.upper}"
    return f"at least {within.lower}{upper}"


def name_symbols(program: ExportedProgram, dynamic: Dynamic, symbols: Symbols) -> list[Diagnostic]:
    """Name the symbols of the input dimensions; report those that did not stay symbolic."""
    fixed = []
    varying = {}
    for key, dim, name, expr in input_dims(program, dynamic):
        if not isinstance(expr, sympy.Symbol):
            fixed.append(fixed_dimension(key, dim, name, str(expr)))
            continue
        symbols.name(expr, name)
        varying[expr] = symbols.sizes[name]
        limits = _narrowed(program.range_constraints.get(expr))
        if limits is not None:
            fixed.append(fixed_dimension(key, dim, name, limits))
    symbols.agreements = agreements(program)
    symbols.agreed = agreeing_sizes(symbols.agreements, varying)
    return fixed


def input_dims(
    program: ExportedProgram, dynamic: Dynamic
) -> Iterator[tuple[str, int, str, sympy.Expr]]:
    """Input, dimension, name and size of the dimensions that were asked to vary."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    for key, dims in dynamic.items():
        for dim, name in dims.items() if key in values else ():
            size = values[key].shape[dim]
            expr = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
            yield key, dim, name, expr


def fixed_dimension(key: str, dim: int, name: str, to: str) -> Diagnostic:
    return Diagnostic(
        "P131",
        f"the model fixes dimension {dim} of input {key} ({name}) to {to}",
        where=f"input {key}",
        help="the exported model will only accept that size; a batched call needs "
        "a model whose forward pass does not depend on it",
    )
