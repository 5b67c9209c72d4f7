"""Cut blocks out of a program: small programs of their own that compute one region each.

What the region makes of its entry goes along, sizes and whatever parameters alone decide too. Other
values that it reads, such as masks and rotary tables, become inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prunec.ir.axes import atoms
from prunec.ir.graph import Graph, Op, Value, renamed
from prunec.passes.coupling import Coupling
from prunec.passes.regions import Region

__all__ = ["Cutout", "cut_out", "fingerprint", "groups_of", "leaves"]

OUTPUT = "output"


@dataclass(frozen=True)
class Cutout:
    """A block as a program. `layer` is the result of one of its layers with weights: the block is
    part of a smaller program as long as that is. `groups` are the names of those that it carries,
    in the order in which it meets them."""

    coupling: Coupling
    layer: str
    groups: tuple[str, ...]


def leaves(regions: Iterable[Region]) -> list[Region]:
    """The regions without parts: no two of them overlap."""
    return [region for region in regions if not region.parts]


def cut_out(coupling: Coupling, region: Region) -> Cutout:
    """The program of one region, from its entry to its exit or to the branch that goes."""
    graph = coupling.graph
    last = region.exit if region.branch is None else region.branch
    own = _own(graph, region.entry)
    ops: list[Op] = []
    wanted = {last}
    for op in reversed(graph.ops[: graph.producers[last] + 1]):
        if wanted.isdisjoint(op.results) or own.isdisjoint(op.results):
            continue
        ops.append(op)
        wanted.update(op.operands)
    made = {name for op in ops for name in op.results}
    # as the block meets them: where else they are made differs between layers that are alike
    read = dict.fromkeys([*(name for op in reversed(ops) for name in op.operands), last])
    outside = [name for name in read if name not in made and name.startswith("%")]
    small = replace(
        graph,
        inputs=tuple(Value(name, graph.types[name]) for name in outside),
        parameters={n: p for n, p in graph.parameters.items() if p.ref in wanted},
        ops=tuple(reversed(ops)),
        outputs=((OUTPUT, last),),
    )
    return Cutout(
        replace(
            coupling,
            graph=small,
            contractions=tuple(c for c in coupling.contractions if c.op in made),
        ),
        next(c.op for c in reversed(coupling.contractions) if c.op in made),
        groups_of(coupling, small),
    )


def groups_of(coupling: Coupling, graph: Graph) -> tuple[str, ...]:
    """The groups whose indices a program carries, in the order in which it meets them."""
    met = dict.fromkeys(
        atom.name for type_ in graph.types.values() for axis in type_.axes for atom in atoms(axis)
    )
    return tuple(name for name in met if name in coupling.by_name)


def _own(graph: Graph, entry: str) -> set[str]:
    """Values that belong to whatever block reads them from `entry` on: what is computed from it,
    sizes, and what parameters alone decide."""
    derived, fixed, sizes = {entry}, {p.ref for p in graph.parameters.values()}, set[str]()
    for op in graph.ops:
        operands = set(op.operands)
        if op.measures or (operands and operands <= sizes and _vector(op)):
            sizes.update(op.results)
        elif operands & derived:
            derived.update(op.results)
        elif operands and operands <= fixed:
            fixed.update(op.results)
    return (derived - {entry}) | fixed | sizes


def _vector(op: Op) -> bool:
    """Whether an operation makes no more than a few integers, as many whatever the input."""
    return all(
        type_.dtype.startswith("i")
        and len(type_.shape) <= 1
        and all(isinstance(n, int) for n in type_.shape)
        for type_ in op.types
    )


def fingerprint(graph: Graph) -> str:
    """Equal for programs that do the same at the same sizes, whatever their values are called."""
    numbers: dict[str, str] = {}

    def number(name: str) -> str:
        return numbers.setdefault(name, f"{name[0]}{len(numbers)}")

    said = [(number(v.name), v.type.dtype, v.type.shape) for v in graph.inputs]
    stored: Sequence[object] = [
        (number(p.ref), p.type.dtype, p.type.shape) for p in graph.parameters.values()
    ]
    done = [
        (op.name, named.args, named.kwargs, [(t.dtype, t.shape) for t in op.types])
        for op in graph.ops
        for named in [renamed(op, number)]
    ]
    text = repr((said, stored, done, [number(value) for _, value in graph.outputs]))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
