"""Couple dimensions: type the graph, and gather what must leave together into groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunec.ir.axes import Axis
from prunec.ir.graph import Graph, Op, TensorType
from prunec.ir.infer import Caches, Contraction, Dialect, Typing, infer
from prunec.ir.unify import AxisId
from prunec.passes.coupling import Consumer, Contracted, Coupling, Group, Pinned, Place
from prunec.passes.roles import Evidence, gather, role_of

__all__ = ["couple"]


def couple(graph: Graph, dialect: Dialect, *, caches: Caches = False) -> Coupling:
    """Type a graph and find its groups.

    Never fails: a dimension that cannot be pruned is listed in `pinned` with its reason. With
    `caches` a program may read and give a smaller cache of keys and values: any that is found to
    grow, or these inputs with the outputs that they become.
    """
    typing = infer(graph, dialect, caches=caches)
    return _Coupler(typing, gather(typing)).run()


@dataclass
class _Atom:
    """An atom that occurs in parameters."""

    leaf: AxisId
    places: list[Place]
    role: str = ""
    parent: AxisId | None = None
    name: str = ""


class _Coupler:
    def __init__(self, typing: Typing, evidence: Evidence) -> None:
        self.typing, self.evidence = typing, evidence
        self.graph = typing.graph
        self.atoms = self._stored_atoms()
        self.names: dict[AxisId, str] = {}
        self.carriers = self._carriers()
        self.counted = self._counted()

    def run(self) -> Coupling:
        for atom in self.atoms.values():
            atom.role = role_of(self.typing, self.evidence, atom.leaf)
        self._heads()
        self._name()
        graph = self._typed_graph()
        groups, pinned = self._sorted()
        return Coupling(
            graph,
            groups,
            pinned,
            self._literals(),
            tuple(self._contracted(i, c) for i, c in enumerate(self.typing.contractions)),
            {
                self.graph.ops[i].result: tuple(self._term(a) for a in axes)
                for i, axes in self.typing.normed.items()
            },
            self.typing.without_rule,
            self._reads(),
            {name: self._term(axis) for name, axis in self.typing.positions.items()},
            tuple(self.typing.grown),
        )

    # -- atoms --------------------------------------------------------------------------

    def _stored_atoms(self) -> dict[AxisId, _Atom]:
        found: dict[AxisId, _Atom] = {}
        for parameter in self.graph.parameters.values():
            for dim, axis in enumerate(self.typing.dims[parameter.ref]):
                for leaf in dict.fromkeys(self.typing.axes.leaves(axis)):
                    atom = found.setdefault(leaf, _Atom(leaf, []))
                    atom.places.append(Place(parameter.name, dim))
        return found

    def _carriers(self) -> dict[AxisId, list[frozenset[AxisId]]]:
        """For each atom the sets of atoms that it shares a value with."""
        found: dict[AxisId, set[frozenset[AxisId]]] = defaultdict(set)
        for dims in self.typing.dims.values():
            leaves = frozenset(leaf for axis in dims for leaf in self.typing.axes.leaves(axis))
            for leaf in leaves:
                found[leaf].add(leaves)
        return {leaf: list(sets) for leaf, sets in found.items()}

    def _counted(self) -> list[AxisId]:
        """All dimensions of values that operations read or make which count indices."""
        ops, dims = self.graph.ops, self.typing.dims
        names = {n for i in self.typing.normed for n in (*ops[i].operands, *ops[i].results)}
        axes = [axis for name in sorted(names & dims.keys()) for axis in dims[name]]
        return list(dict.fromkeys(map(self.typing.axes.find, axes)))

    def _heads(self) -> None:
        """Tell KV heads from the query heads that share them."""
        for axes in self.evidence.attention.values():
            leaves = [leaf for axis in axes for leaf in self.typing.axes.leaves(axis)]
            heads = [self.atoms[leaf] for leaf in dict.fromkeys(leaves) if leaf in self.atoms]
            for atom in heads:
                atom.parent = next(
                    (p.leaf for p in heads if p is not atom and self._serves(p, atom)), None
                )
                if atom.role == "head":
                    atom.role = "query_head"
            for atom in heads:
                if any(other.parent == atom.leaf for other in heads):
                    atom.role = "kv_head"

    def _serves(self, parent: _Atom, child: _Atom) -> bool:
        """Every place and value of the child lies inside the parent, which has more.

        Where indices are counted, in the same dimension: an operation that leaves the others of a
        dimension out must know which, whatever index of the parent stands in another dimension.
        """
        if not set(child.places) <= set(parent.places):
            return False
        if any(parent.leaf not in leaves for leaves in self.carriers[child.leaf]):
            return False
        dims = [self.typing.dims["@" + p.parameter][p.dim] for p in parent.places]
        counts = [self._occurrences(axis, parent.leaf, child.leaf) for axis in dims]
        counted = [self._occurrences(axis, parent.leaf, child.leaf) for axis in self.counted]
        return all(inside == total for _, total, inside in (*counts, *counted)) and any(
            outer > total for outer, total, _ in counts
        )

    def _occurrences(self, axis: AxisId, parent: AxisId, child: AxisId) -> tuple[int, int, int]:
        """How often the parent occurs, the child, and the child with the parent outside it."""
        axes = self.typing.axes
        kind = axes.kind(axis)
        if kind == "atom":
            return int(axes.find(axis) == parent), int(axes.find(axis) == child), 0
        parts = axes.factors(axis) if kind == "product" else axes.terms(axis)
        counts = [self._occurrences(part, parent, child) for part in parts]
        inside = sum(count[2] for count in counts)
        if kind == "product":
            outside = next((i for i, count in enumerate(counts) if count[0]), len(counts))
            inside += sum(count[1] - count[2] for count in counts[outside + 1 :])
        return sum(c[0] for c in counts), sum(c[1] for c in counts), inside

    # -- names --------------------------------------------------------------------------

    def _name(self) -> None:
        for symbol, axis in self.typing._symbols.items():
            self.names[self.typing.axes.find(axis)] = symbol
        taken = set(self.names.values())
        for atom in self.atoms.values():
            base = "/".join(filter(None, (_common([p.parameter for p in atom.places]), atom.role)))
            name, copy = base, 2
            while name in taken:
                name, copy = f"{base}#{copy}", copy + 1
            taken.add(name)
            self.names.setdefault(atom.leaf, name)
            atom.name = self.names[atom.leaf]
        for dims in self.typing.dims.values():
            for axis in dims:
                for leaf in self.typing.axes.leaves(axis):
                    self.names.setdefault(leaf, f"d{len(self.names)}")

    def _term(self, axis: AxisId) -> Axis:
        return self.typing.term(axis, self.names)

    # -- the result ---------------------------------------------------------------------

    def _typed_graph(self) -> Graph:
        terms: dict[AxisId, Axis] = {}

        def typed(name: str, type_: TensorType) -> TensorType:
            dims = self.typing.dims.get(name)
            if dims is None:
                return type_
            axes = []
            for axis in map(self.typing.axes.find, dims):
                if axis not in terms:
                    terms[axis] = self._term(axis)
                axes.append(terms[axis])
            return replace(type_, axes=tuple(axes))

        def typed_op(op: Op) -> Op:
            types = tuple(typed(n, t) for n, t in zip(op.results, op.types, strict=True))
            return replace(op, types=types)

        graph = self.graph
        return replace(
            graph,
            inputs=tuple(replace(v, type=typed(v.name, v.type)) for v in graph.inputs),
            parameters={
                name: replace(p, type=typed(p.ref, p.type)) for name, p in graph.parameters.items()
            },
            ops=tuple(typed_op(op) for op in graph.ops),
        )

    def _sorted(self) -> tuple[tuple[Group, ...], tuple[Pinned, ...]]:
        groups, pinned = [], []
        for atom in self.atoms.values():
            marks = self.typing.axes.marks(atom.leaf)
            stops = [m for m in marks if m.kind in ("pin", "index")]
            size = self.typing.axes.size(atom.leaf)
            places = tuple(atom.places)
            if stops:
                reason, where = stops[0].reason, _told(stops[0].where)
                pinned.append(Pinned(atom.name, atom.role, size, places, reason, where))
            elif self._only_data(atom):
                reason = "it occurs in stored data only, not in a weight"
                pinned.append(Pinned(atom.name, atom.role, size, places, reason))
            else:
                groups.append(self._group(atom, size))
        return tuple(groups), tuple(pinned)

    def _only_data(self, atom: _Atom) -> bool:
        parameters = self.graph.parameters
        return all(parameters[p.parameter].kind != "parameter" for p in atom.places)

    def _group(self, atom: _Atom, size: int) -> Group:
        ops = self.graph.ops
        consumers = tuple(
            Consumer(ops[i].result, Place(name, dim), value, value_dim)
            for i, name, dim, value, value_dim in self.evidence.consumed.get(atom.leaf, [])
        )
        producers = dict.fromkeys(ops[i].result for i in self.evidence.produced.get(atom.leaf, []))
        parent = None if atom.parent is None else self.atoms[atom.parent].name
        normed = any(m.kind == "norm" for m in self.typing.axes.marks(atom.leaf))
        chosen = [
            count
            for axis, count in self.typing.choices
            if atom.leaf in self.typing.axes.leaves(axis)
        ]
        return Group(
            atom.name, atom.role, size, tuple(atom.places), tuple(producers), consumers,
            parent, normed, max(chosen, default=1),
        )  # fmt: skip

    def _reads(self) -> tuple[Consumer, ...]:
        found = {entry for entries in self.evidence.consumed.values() for entry in entries}
        return tuple(
            Consumer(self.graph.ops[i].result, Place(name, dim), value, value_dim)
            for i, name, dim, value, value_dim in sorted(found)
        )

    def _literals(self) -> dict[str, dict[tuple[int | str, ...], tuple[Axis, ...]]]:
        found: dict[str, dict[tuple[int | str, ...], tuple[Axis, ...]]] = {}
        for (index, path), axes in self.typing.literals.items():
            terms = tuple(self._term(axis) for axis in axes)
            found.setdefault(self.graph.ops[index].result, {})[path] = terms
        return found

    def _contracted(self, number: int, contraction: Contraction) -> Contracted:
        """Resolve a contraction; attention multiplies twice, over the inside and the keys."""
        pairs: dict[tuple[int, ...], list[AxisId]] = defaultdict(list)
        for axis, places in contraction.contracted:
            pairs[tuple(sorted({i for i, _ in places}))].append(axis)
        steps = tuple(tuple(self._term(a) for a in axes) for axes in pairs.values())
        op = self.graph.ops[contraction.op].result
        if number not in self.evidence.attention:
            return Contracted(op, steps)
        values = contraction.operands[1:3]
        cached = tuple(self._cached(value) for value in values)
        return Contracted(op, steps, attention=True, cached=cached)

    def _cached(self, value: str) -> tuple[Axis, ...]:
        """The stored axes of a key or value tensor: what a cache holds for each position."""
        served = {a.leaf for a in self.atoms.values() if a.parent is not None}
        factors = [f for axis in self.typing.dims[value] for f in self.typing.axes.factors(axis)]
        return tuple(
            self._term(factor)
            for factor in factors
            if factor not in served
            and any(x in self.atoms for x in self.typing.axes.leaves(factor))
        )


def _told(where: object) -> str:
    """An operation as a reader finds it: its result, its name and its place in the model."""
    if not isinstance(where, Op):
        return str(where)
    return f"{where.result} = {where.name}" + (f"   {where.loc}" if str(where.loc) else "")


def _common(names: Sequence[str]) -> str:
    """The longest module path that all parameters share."""
    paths = [name.split(".")[:-1] if len(names) > 1 else name.split(".") for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
