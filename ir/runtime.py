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

__all__ = ["Literal", "RuntimeSizes", "Size"]

OPAQUE = "a number is computed from its size"


@dataclass(frozen=True, slots=True)
class Literal:
    """A number inside a product, and the place where it stands."""

    op: int
    path: Path
    value: int


@dataclass(frozen=True, slots=True)
class Size:
    """An entry of a vector of sizes: a product of axes and literals, divided by `divisor`.

    `value` is what it is at the example sizes. When it is not `exact`, it depends on its factors
    in another way than as their product.
    """

    factors: tuple[AxisId | Literal, ...]
    value: int
    divisor: int = 1
    exact: bool = True


@dataclass
class RuntimeSizes:
    """What is known of each `index` value, and of each vector of sizes; `fixed` are literals that
    must stay as they are."""

    factors: dict[str, list[AxisId | Literal]] = field(default_factory=dict)
    vectors: dict[str, tuple[Size, ...]] = field(default_factory=dict)
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

    def made(self, t: Typing, arg: Ref) -> AxisId | None:
        """The axis of a new dimension whose size is a product of static and other sizes, such as
        `6 * batch`: nothing tells the order of its factors yet, and batches lie outermost."""
        factors = self.factors.get(arg.name, [])
        outer = [f for f in factors if isinstance(f, int) and at_run_time(t, f)]
        inner = []
        for factor in factors:
            if factor in outer:
                continue
            axis = t.axes.atom(factor.value) if isinstance(factor, Literal) else factor
            if isinstance(factor, Literal) and not self._link(t, factor, axis):
                return None
            inner.append(axis)
        return t.axes.product([*outer, *inner]) if outer and inner else None

    def argument(self, t: Typing, arg: Ref, axis: AxisId) -> None:
        """An operation is told by `arg` that `axis` has that size."""
        match self.factors.get(arg.name, []):
            case [int() as known] if t.axes.find(known) == t.axes.find(axis):
                return  # the most frequent case
            case factors:
                self.says(t, Size(tuple(factors), 0), axis)

    def says(self, t: Typing, size: Size, axis: AxisId) -> None:
        """An operation is told that `axis` has that size."""
        if _is(t, size, axis):
            return
        if not size.exact or size.divisor != 1:
            self.pin(t, size)
            t.pin([f for f in t.axes.factors(axis) if not at_run_time(t, f)], OPAQUE)
            return
        asked = [f for f in axes_of(t, size) if not at_run_time(t, f)]
        static = []
        for factor in t.axes.factors(axis):
            if factor in asked:
                asked.remove(factor)
            elif not at_run_time(t, factor):
                static.append(factor)
        literals = literals_of(size)
        wanted, given = t.axes.product(static), t.axes.product(asked)
        if len(literals) == 1 and not asked and self._link(t, literals[0], wanted):
            return
        if not literals and t.axes.size(wanted) == t.axes.size(given):
            t.axes.unify(wanted, given)
            return
        self.pin(t, size)
        t.pin([*static, *asked], "its size is computed at run time")

    def _link(self, t: Typing, literal: Literal, axis: AxisId) -> bool:
        """Let a literal follow an axis."""
        place = (literal.op, literal.path)
        frozen = t.graph.ops[literal.op].kwarg("frozen")
        if literal.value != t.axes.size(axis) or place in self.fixed or frozen:
            return False
        for known in t.literals.setdefault(place, (axis,)):
            t.axes.unify(known, axis)
        return True

    def opaque(self, t: Typing, name: str) -> None:
        """A size is used in a way that is not understood: nothing that it depends on may change."""
        self.pin(t, Size(tuple(self.factors.get(name, ())), 0))
        for size in self.vectors.get(name, ()):
            self.pin(t, size)

    def pin(self, t: Typing, size: Size) -> None:
        """Nothing that a size depends on may change."""
        t.pin([a for a in axes_of(t, size) if not at_run_time(t, a)], OPAQUE)
        for literal in literals_of(size):
            place = (literal.op, literal.path)
            self.fixed.add(place)
            t.pin(t.literals.get(place, ()), OPAQUE)

    def _axes(self, t: Typing, name: str) -> list[AxisId]:
        return axes_of(t, Size(tuple(self.factors.get(name, ())), 0))

    def _literals(self, name: str) -> list[Literal]:
        return literals_of(Size(tuple(self.factors.get(name, ())), 0))


def _is(t: Typing, size: Size, axis: AxisId) -> bool:
    """Whether a size is that of the axis itself: the most frequent case, and nothing to say."""
    if not size.exact or size.divisor != 1 or len(size.factors) != 1:
        return False
    (factor,) = size.factors
    return isinstance(factor, int) and t.axes.find(factor) == t.axes.find(axis)


def axes_of(t: Typing, size: Size) -> list[AxisId]:
    """The axes that a size is a product of, products opened."""
    return [part for f in size.factors if isinstance(f, int) for part in t.axes.factors(f)]


def literals_of(size: Size) -> list[Literal]:
    return [f for f in size.factors if isinstance(f, Literal)]


def at_run_time(t: Typing, axis: AxisId) -> bool:
    """Whether all of an axis has a size that is known at run time only."""
    leaves = list(t.axes.leaves(axis))
    return bool(leaves) and all(
        any(mark.kind == "runtime" for mark in t.axes.marks(leaf)) for leaf in leaves
    )
