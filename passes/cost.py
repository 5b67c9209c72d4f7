"""Costs as polynomials of axis sizes: parameters, FLOPs, key-value cache, activations.

Because every size is a polynomial of the atoms' sizes, so is every cost, and no model needs a
cost model of its own. Evaluate with the counts that a plan leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from prunec.ir.axes import Atom, Axis, Product, Sum, atoms
from prunec.passes.coupling import Contracted, Coupling
from prunec.passes.roles import convolves

__all__ = ["Cost", "Polynomial", "itemsize"]

_ITEMSIZE = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "c64": 8, "f16": 2, "bf16": 2, "i16": 2}


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return _ITEMSIZE.get(dtype, 1)


@dataclass(frozen=True)
class Polynomial:
    """Sum of monomials; each is the sorted tuple of its atoms' names, with repeats."""

    terms: Mapping[tuple[str, ...], int]

    @staticmethod
    def constant(value: int) -> Polynomial:
        return Polynomial({(): value} if value else {})

    @staticmethod
    def of(axis: Axis) -> Polynomial:
        """The size of an axis."""
        match axis:
            case Atom(name, size):
                return Polynomial.constant(1) if size == 1 else Polynomial({(name,): 1})
            case Product(factors):
                return Polynomial.product(map(Polynomial.of, factors))
            case Sum(terms):
                return Polynomial.sum(map(Polynomial.of, terms))

    @staticmethod
    def product(parts: Iterable[Polynomial]) -> Polynomial:
        result: dict[tuple[str, ...], int] = {(): 1}
        for part in parts:
            step: dict[tuple[str, ...], int] = {}
            for left, a in result.items():
                for right, b in part.terms.items():
                    key = tuple(sorted(left + right))
                    step[key] = step.get(key, 0) + a * b
            result = step
        return Polynomial(result)

    @staticmethod
    def sum(parts: Iterable[Polynomial]) -> Polynomial:
        result: dict[tuple[str, ...], int] = {}
        for part in parts:
            for key, a in part.terms.items():
                result[key] = result.get(key, 0) + a
        return Polynomial(result)

    def __call__(self, sizes: Mapping[str, int]) -> int:
        """The value at the given atom sizes."""
        return sum(a * math.prod(sizes[name] for name in key) for key, a in self.terms.items())

    def __str__(self) -> str:
        shown = (
            " ".join(map(str, ([a] if a != 1 or not key else []) + list(key)))
            for key, a in self.terms.items()
        )
        return " + ".join(shown) or "0"


@dataclass(frozen=True)
class Cost:
    """The cost polynomials of a coupled program.

    Atom sizes that are not given in `counts` are those of the program; `batch` and `sequence`
    are atoms too, named after the graph's symbols.
    """

    coupling: Coupling

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of every atom in the program."""
        found: dict[str, int] = {}
        for type_ in self.coupling.graph.types.values():
            for axis in type_.axes:
                found |= {atom.name: atom.size for atom in atoms(axis)}
        return found

    def _at(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {**self.sizes, **counts}

    @cached_property
    def outer(self) -> frozenset[str]:
        """Parameters outside the blocks: tables that data select from, and output heads."""
        graph = self.coupling.graph
        pinned = {pin.axis for pin in self.coupling.pinned if pin.role in ("vocab", "output")}
        return frozenset(
            name
            for name, p in graph.parameters.items()
            if any(a.name in pinned for axis in p.type.axes for a in atoms(axis))
        )

    @cached_property
    def parameters(self) -> Polynomial:
        """Every distinct parameter once."""
        return self._count(lambda name: True)

    @cached_property
    def blocks(self) -> Polynomial:
        """Parameters outside the embeddings and the output head."""
        return self._count(lambda name: name not in self.outer)

    def _count(self, chosen) -> Polynomial:  # type: ignore[no-untyped-def]
        return Polynomial.sum(
            Polynomial.product(map(Polynomial.of, p.type.axes))
            for name, p in self.coupling.graph.parameters.items()
            if p.kind == "parameter" and chosen(name)
        )

    @cached_property
    def flops(self) -> Polynomial:
        """Two a multiply-add, over all contractions (a convolution counts its window)."""
        return Polynomial.sum(self._flops(c) for c in self.coupling.contractions)

    def _flops(self, contracted: Contracted) -> Polynomial:
        types = self.coupling.graph.types
        result = types[contracted.op].axes
        factors = [Polynomial.of(axis) for axis in result]
        window = [Polynomial.constant(n) for n in self._window(contracted.op)]
        two = Polynomial.constant(2)
        if len(contracted.steps) == 1:
            inner = map(Polynomial.of, contracted.steps[0])
            return Polynomial.product([two, *factors, *window, *inner])
        # attention: scores [.., s, t] over the inside of a head, then values over the keys t
        inside, keys = (
            Polynomial.product(map(Polynomial.of, step)) for step in contracted.steps[:2]
        )
        scores = Polynomial.product([two, *factors[:-1], keys, inside])
        return Polynomial.sum([scores, Polynomial.product([two, *factors, keys])])

    def _window(self, op: str) -> list[int]:
        """Kernel sizes of a convolution, which belong to the weight alone."""
        graph = self.coupling.graph
        node = graph.ops[graph.producers[op]]
        if not convolves(node):
            return []
        weight = graph.types[list(node.operands)[1]]
        return [d for d in weight.shape[2:] if isinstance(d, int)]

    @cached_property
    def cache(self) -> Polynomial:
        """Key-value cache elements for one position of one sequence."""
        return Polynomial.sum(
            Polynomial.product(map(Polynomial.of, axes))
            for c in self.coupling.contractions
            if c.attention
            for axes in c.cached
        )

    def activation_bytes(self, counts: Mapping[str, int]) -> int:
        """Peak bytes of values alive at once in one forward pass."""
        graph, sizes = self.coupling.graph, self._at(counts)
        last = {name: where[-1] for name, where in graph.uses.items()}
        last |= {value: len(graph.ops) for _, value in graph.outputs}
        alive: dict[str, int] = {}
        peak = 0
        for i, op in enumerate(graph.ops):
            for name, type_ in zip(op.results, op.types, strict=True):
                dims = [Polynomial.of(axis)(sizes) for axis in type_.axes]
                alive[name] = itemsize(type_.dtype) * math.prod(dims)
            peak = max(peak, sum(alive.values()))
            for name in [*op.results, *op.operands]:
                if last.get(name, i) <= i:
                    alive.pop(name, None)
        return peak

    def evaluate(self, polynomial: Polynomial, counts: Mapping[str, int]) -> int:
        """A cost once each atom in `counts` has that many indices left."""
        return polynomial(self._at(counts))
