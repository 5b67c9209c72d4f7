"""Unification of axes with refinement, as in type inference.

Two dimensions said to be the same are made the same term: an atom that meets a product or a
sum becomes it, everywhere it occurs; products are aligned from the left into their common
refinement, sums segment by segment. What has no common refinement is pinned with the reason:
never a guess and never a crash. Axes of size 1 broadcast and are never unified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prunec.ir.axes import Atom, Axis, Product, Sum

__all__ = ["Axes", "AxisId", "Mark"]

AxisId = int


@dataclass(frozen=True, slots=True)
class Mark:
    """A fact about an atom. `pin` forbids pruning it, `norm` says that a statistic is taken
    over it, `index` that data select from it, `chosen` that the program itself chooses some of its
    indices, by which it then selects; `where` is the operation responsible, or a text."""

    kind: str
    reason: str
    where: object = ""


@dataclass(slots=True)
class _Node:
    size: int
    kind: str = "atom"  # atom | product | sum | link
    parts: tuple[AxisId, ...] = ()


class Axes:
    """A union-find store of axis terms.

    Everything is identified by an `AxisId`; `find` gives the representative. `where` is set by
    the caller before it unifies, and names the operation in the marks made meanwhile.
    """

    UNIT: AxisId = 0

    def __init__(self) -> None:
        self._nodes: list[_Node] = [_Node(1)]
        self._marks: dict[AxisId, dict[tuple[str, str], Mark]] = {}
        self.where: object = ""

    # -- making terms -------------------------------------------------------------------

    def atom(self, size: int) -> AxisId:
        """A new axis without structure."""
        return self.UNIT if size == 1 else self._add(_Node(size))

    def product(self, parts: Iterable[AxisId]) -> AxisId:
        """Row-major product; units vanish and nested products are flattened."""
        flat = [f for part in parts for f in self.factors(part)]
        if len(flat) < 2:
            return flat[0] if flat else self.UNIT
        return self._add(_Node(math.prod(self.sizes(flat)), "product", tuple(flat)))

    def sum(self, parts: Sequence[AxisId]) -> AxisId:
        """Concatenation; empty parts vanish. Segments of one index each are a fixed layout."""
        flat = [t for part in parts if self.size(part) for t in self.terms(part)]
        if len(flat) < 2:
            return flat[0] if flat else self._add(_Node(0))
        total = sum(map(self.size, flat))
        if all(self.size(t) == 1 for t in flat):
            fixed = self.atom(total)
            self.pin(fixed, "each index is a part of its own")
            return fixed
        return self._add(_Node(total, "sum", tuple(flat)))

    def _add(self, node: _Node) -> AxisId:
        self._nodes.append(node)
        return len(self._nodes) - 1

    # -- looking at terms ---------------------------------------------------------------

    def find(self, axis: AxisId) -> AxisId:
        """The representative of an axis."""
        nodes = self._nodes
        root = axis
        while nodes[root].kind == "link":
            root = nodes[root].parts[0]
        while axis != root:
            node = nodes[axis]
            axis = node.parts[0]
            node.parts = (root,)
        return root

    def size(self, axis: AxisId) -> int:
        return self._nodes[axis].size

    def sizes(self, dims: Sequence[AxisId]) -> list[int]:
        nodes = self._nodes
        return [nodes[axis].size for axis in dims]

    def kind(self, axis: AxisId) -> str:
        return self._nodes[self.find(axis)].kind

    def factors(self, axis: AxisId) -> list[AxisId]:
        """The factors of a product, flattened; the axis itself if none; nothing for a unit."""
        root = self.find(axis)
        node = self._nodes[root]
        if node.kind == "product":
            return [f for part in node.parts for f in self.factors(part)]
        return [] if node.size == 1 else [root]

    def terms(self, axis: AxisId) -> list[AxisId]:
        """The terms of a sum, flattened; the axis itself if it is none."""
        root = self.find(axis)
        node = self._nodes[root]
        if node.kind == "sum":
            return [t for part in node.parts for t in self.terms(part)]
        return [root]

    def leaves(self, axis: AxisId) -> Iterator[AxisId]:
        """The atoms of a term, left to right, with repeats; units left out."""
        pending = [axis]
        while pending:
            root = self.find(pending.pop())
            node = self._nodes[root]
            if node.kind != "atom":
                pending += reversed(node.parts)
            elif node.size != 1:
                yield root

    def resolve(self, axis: AxisId, names: dict[AxisId, str]) -> Axis:
        """The immutable term, its atoms named by `names` (keyed by representative)."""
        root = self.find(axis)
        node = self._nodes[root]
        if node.kind == "product":
            return Product(tuple(self.resolve(f, names) for f in self.factors(root)))
        if node.kind == "sum":
            return Sum(tuple(self.resolve(t, names) for t in self.terms(root)))
        return Atom(names.get(root, "1" if node.size == 1 else f"a{root}"), node.size)

    # -- marks --------------------------------------------------------------------------

    def mark(self, axis: AxisId, kind: str, reason: str) -> None:
        """Attach a fact to every atom of the axis, and to what those are refined into."""
        for leaf in self.leaves(axis):
            found = self._marks.setdefault(leaf, {})
            found.setdefault((kind, reason), Mark(kind, reason, self.where))

    def pin(self, axis: AxisId, reason: str) -> None:
        self.mark(axis, "pin", reason)

    def marks(self, axis: AxisId) -> tuple[Mark, ...]:
        return tuple(self._marks.get(self.find(axis), {}).values())

    def pinned(self, axis: AxisId) -> bool:
        return any(mark.kind == "pin" for leaf in self.leaves(axis) for mark in self.marks(leaf))

    # -- unification --------------------------------------------------------------------

    def unify(self, a: AxisId, b: AxisId) -> bool:
        """Make two axes the same; False when they were pinned instead."""
        a, b = self.find(a), self.find(b)
        one, other = self._nodes[a], self._nodes[b]
        if a == b or one.size == 1 or other.size == 1:
            return True
        if one.size != other.size:
            return self._conflict(a, b, f"sizes {one.size} and {other.size} differ")
        match one.kind, other.kind:
            case "atom", "atom":
                return self._bind(max(a, b), min(a, b))
            case "atom", _:
                return self._bind(a, b)
            case _, "atom":
                return self._bind(b, a)
            case "product", "product":
                return self._align(a, b, self.factors, self.split)
            case "sum", "sum":
                return self._align(a, b, self.terms, self.cut)
            case "product", _:
                return self._distribute(a, b)
            case _:
                return self._distribute(b, a)

    def _bind(self, atom: AxisId, term: AxisId) -> bool:
        """Replace an atom by a term wherever it occurs; its marks go to the term's atoms."""
        self._link(atom, term)
        inherited = self._marks.pop(atom, {})
        for leaf in self.leaves(term) if inherited else ():
            found = self._marks.setdefault(leaf, {})
            for key, mark in inherited.items():
                found.setdefault(key, mark)
        return True

    def _align(
        self,
        a: AxisId,
        b: AxisId,
        parts_of: Callable[[AxisId], list[AxisId]],
        divide: Callable[[AxisId, int], tuple[AxisId, AxisId] | None],
    ) -> bool:
        """Walk the parts of two products (or two sums) of equal size, dividing the larger."""
        left, right = list(parts_of(a)), list(parts_of(b))
        while left and right:
            unmatched = left[:], right[:]
            x, y = left.pop(0), right.pop(0)
            if self.size(x) > self.size(y):
                pair = divide(x, self.size(y))
                if pair is None:
                    return self._unaligned(*unmatched)
                x, rest = pair
                left[:0] = parts_of(rest)
            elif self.size(y) > self.size(x):
                pair = divide(y, self.size(x))
                if pair is None:
                    return self._unaligned(*unmatched)
                y, rest = pair
                right[:0] = parts_of(rest)
            if not self.unify(x, y):
                return False
        a, b = self.find(a), self.find(b)
        return self._link(b, a)

    def _unaligned(self, left: list[AxisId], right: list[AxisId]) -> bool:
        """What is left of two terms whose beginnings were the same: their ends still may be."""
        while len(left) > 1 and len(right) > 1 and self.size(left[-1]) == self.size(right[-1]):
            self.unify(left.pop(), right.pop())
        shown = [" ".join(map(self.show, parts)) for parts in (left, right)]
        for parts, one, other in ((left, shown[0], shown[1]), (right, shown[1], shown[0])):
            for part in parts:
                self.pin(part, f"({one}) meets ({other}): no common refinement")
        return False

    def _link(self, axis: AxisId, to: AxisId) -> bool:
        """Two terms shown to be equal share one node. No cycle can arise: a part is always
        smaller than the term that it is part of."""
        if axis != to:
            self._nodes[axis].kind, self._nodes[axis].parts = "link", (to,)
        return True

    def _distribute(self, product: AxisId, total: AxisId) -> bool:
        """A product met by a sum: the outer factor becomes the sum, the inner ones are shared."""
        outer, *rest = self.factors(product)
        inner = self.product(rest)
        terms = self.terms(total)
        if any(self.size(t) % self.size(inner) for t in terms):
            return self._conflict(product, total, "segments do not fit its inner size")
        heads = [self.atom(self.size(t) // self.size(inner)) for t in terms]
        for head, term in zip(heads, terms, strict=True):
            if not self.unify(term, self.product([head, inner])):
                return False
        if not self.unify(outer, self.sum(heads)):
            return False
        return self._link(self.find(total), self.find(product))

    def split(self, axis: AxisId, outer: int) -> tuple[AxisId, AxisId] | None:
        """See an axis as product(outer, rest); None when it has no such form."""
        axis = self.find(axis)
        if outer == 0 or self.size(axis) % outer:
            return None
        pair = self.atom(outer), self.atom(self.size(axis) // outer)
        if self._nodes[axis].kind == "product":
            first, *rest = self.factors(axis)
            if self.size(first) == outer:
                return first, self.product(rest)
        return pair if self.unify(axis, self.product(pair)) else None

    def cut(self, axis: AxisId, at: int) -> tuple[AxisId, AxisId] | None:
        """See an axis as sum(at, rest); None when it has no such form."""
        axis = self.find(axis)
        node = self._nodes[axis]
        if node.kind == "atom":
            if axis == self.UNIT:
                return None
            pair = self.atom(at), self.atom(node.size - at)
            return pair if self._bind(axis, self.sum(pair)) else None
        if node.kind == "sum":
            return self._cut_sum(self.terms(axis), at)
        outer, *rest = self.factors(axis)
        inner = self.product(rest)
        if at % self.size(inner):
            return None
        halves = self.cut(outer, at // self.size(inner))
        if halves is None:
            return None
        return self.product([halves[0], inner]), self.product([halves[1], inner])

    def _cut_sum(self, terms: list[AxisId], at: int) -> tuple[AxisId, AxisId] | None:
        before: list[AxisId] = []
        while terms and self.size(terms[0]) <= at:
            before.append(terms.pop(0))
            at -= self.size(before[-1])
        if not at:
            return self.sum(before), self.sum(terms)
        halves = self.cut(terms[0], at)
        if halves is None:
            return None
        return self.sum([*before, halves[0]]), self.sum([halves[1], *terms[1:]])

    def _conflict(self, a: AxisId, b: AxisId, why: str) -> bool:
        for axis, other in ((a, b), (b, a)):
            self.pin(axis, f"{self.show(axis)} meets {self.show(other)}: {why}")
        return False

    def show(self, axis: AxisId) -> str:
        """Sizes of a term, for messages: `(3 3 {32 + 32})`."""
        root = self.find(axis)
        match self._nodes[root].kind:
            case "product":
                return "(" + " ".join(map(self.show, self.factors(root))) + ")"
            case "sum":
                return "{" + " + ".join(map(self.show, self.terms(root))) + "}"
            case _:
                return str(self.size(root))
