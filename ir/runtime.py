"""Sizes computed at run time: of which axes and literals they are products.

In `reshape(x, [batch * 3, time])` the literal 3 stands in another operation than the size that
it makes. Where a size is understood, its literals follow the axes; where it is not, the axes that
it depends on are pinned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from prunec.ir.graph import Op, Ref
from prunec.ir.unify import AxisId

if TYPE_CHECKING:
    from prunec.ir.infer import Path, Typing

__all__ = ["RuntimeSizes"]

OPAQUE = "a number is computed from its size"


@dataclass(frozen=True, slots=True)
class Literal:
    """A number inside a product, and the place where it stands."""

    op: int
    path: Path
    value: int


@dataclass
class RuntimeSizes:
    """What is known of each `index` value; `fixed` are literals that must stay as they are."""

    factors: dict[str, list[AxisId | Literal]] = field(default_factory=dict)
    fixed: set[tuple[int, Path]] = field(default_factory=set)

    def step(self, t: Typing, index: int, op: Op) -> None:
        """An operation that computes a size."""
        if op.name == "aten.sym_size.int":
            self.factors[op.result] = [t.of(op.args[0])[cast(int, op.args[1])]]
            return
        found = None
        if op.name == "py.mul":
            found = self._product(index, op)
        elif op.name == "py.floordiv":
            found = self._quotient(t, index, op)
        if found is not None:
            self.factors[op.result] = found
            return
        for name in op.operands:
            self.opaque(t, name)

    def _product(self, index: int, op: Op) -> list[AxisId | Literal] | None:
        found: list[AxisId | Literal] = []
        for i, arg in enumerate(op.args):
            if isinstance(arg, int):
                found.append(Literal(index, (i,), arg))
            elif isinstance(arg, Ref) and arg.name in self.factors:
                found += self.factors[arg.name]
            else:
                return None
        return found

    def _quotient(self, t: Typing, index: int, op: Op) -> list[AxisId | Literal] | None:
        """A product divided by all that is static in it, as in `(batch * heads) // heads`."""
        whole, divisor = op.args
        if not isinstance(whole, Ref) or not isinstance(divisor, int):
            return None
        axes = self._axes(t, whole.name)
        static = [axis for axis in axes if not at_run_time(t, axis)]
        product = t.axes.product(static)
        if self._literals(whole.name) or not static or t.axes.size(product) != divisor:
            return None
        t.literals[index, (1,)] = (product,)
        return [axis for axis in axes if axis not in static]

    def argument(self, t: Typing, arg: Ref, axis: AxisId) -> None:
        """An operation is told by `arg` that `axis` has that size."""
        asked = [f for f in self._axes(t, arg.name) if not at_run_time(t, f)]
        static = []
        for factor in t.axes.factors(axis):
            if factor in asked:
                asked.remove(factor)
            elif not at_run_time(t, factor):
                static.append(factor)
        literals = self._literals(arg.name)
        wanted, given = t.axes.product(static), t.axes.product(asked)
        if len(literals) == 1 and not asked and self._link(t, literals[0], wanted):
            return
        if not literals and t.axes.size(wanted) == t.axes.size(given):
            t.axes.unify(wanted, given)
            return
        t.pin([*static, *asked], "its size is computed at run time")

    def _link(self, t: Typing, literal: Literal, axis: AxisId) -> bool:
        """Let a literal follow an axis."""
        place = (literal.op, literal.path)
        if literal.value != t.axes.size(axis) or place in self.fixed:
            return False
        for known in t.literals.setdefault(place, (axis,)):
            t.axes.unify(known, axis)
        return True

    def opaque(self, t: Typing, name: str) -> None:
        """A size is used in a way that is not understood: nothing that it depends on may change."""
        t.pin([a for a in self._axes(t, name) if not at_run_time(t, a)], OPAQUE)
        for literal in self._literals(name):
            place = (literal.op, literal.path)
            self.fixed.add(place)
            t.pin(t.literals.get(place, ()), OPAQUE)

    def _axes(self, t: Typing, name: str) -> list[AxisId]:
        found = self.factors.get(name, ())
        return [part for f in found if isinstance(f, int) for part in t.axes.factors(f)]

    def _literals(self, name: str) -> list[Literal]:
        return [f for f in self.factors.get(name, ()) if isinstance(f, Literal)]


def at_run_time(t: Typing, axis: AxisId) -> bool:
    """Whether all of an axis has a size that is known at run time only."""
    leaves = list(t.axes.leaves(axis))
    return bool(leaves) and all(
        any(mark.kind == "runtime" for mark in t.axes.marks(leaf)) for leaf in leaves
    )
