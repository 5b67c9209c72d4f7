"""Remove regions: replace each exit by its entry and drop what no output needs any more.

Types are not inferred anew. What stays keeps its axes, and groups keep their names: a plan for the
smaller program names them as a plan for the whole one does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from prunec.ir.graph import Graph, Op, renamed
from prunec.passes.coupling import Coupling, Group, Place
from prunec.passes.dce import dce
from prunec.passes.regions import Region
from prunec.passes.residual import ADDITIONS

__all__ = ["bypassed", "remove"]


def remove(coupling: Coupling, regions: Sequence[Region]) -> Coupling:
    """The coupling of the program without the regions, in any order and however they overlap."""
    if not regions:
        return coupling
    graph, stand_ins = bypassed(coupling.graph, regions)
    gone = {pair for region in regions for pair in region.caches}
    return _restricted(coupling, _uncached(graph, gone), stand_ins)


def bypassed(graph: Graph, regions: Iterable[Region]) -> tuple[Graph, dict[str, str]]:
    """The program with every exit replaced by its entry, dead code and all; and by the name of
    each exit what is read in its place."""
    stand_ins: dict[str, str] = {}
    for region in regions:
        for old, new in _bypass(graph, region):
            new = stand_ins.get(new, new)
            if old == new or old in stand_ins:
                continue
            graph = _replaced(graph, old, new)
            stand_ins = {k: new if v == old else v for k, v in stand_ins.items()} | {old: new}
    return graph, stand_ins


def _uncached(graph: Graph, gone: Collection[tuple[str, str]]) -> Graph:
    """Without dead code and without these caches. Where the rest asks one for its size only,
    another input of the same shape answers; without any such it stays."""
    grown = {after for _, after in gone}
    outputs = tuple((name, value) for name, value in graph.outputs if value not in grown)
    graph = dce(replace(graph, outputs=outputs))
    leaving = dict.fromkeys(
        value.name for value in graph.inputs if value.name in {b for b, _ in gone}
    )
    others = [value for value in graph.inputs if value.name not in leaving]
    for name in leaving:
        shape = graph.types[name].shape
        other = next((value.name for value in others if value.type.shape == shape), None)
        readers = [graph.ops[i] for i in graph.uses.get(name, ())]
        if readers and not (all(op.measures for op in readers) and other):
            continue
        if readers and other:
            graph = _replaced(graph, name, other)
        graph = replace(graph, inputs=tuple(v for v in graph.inputs if v.name != name))
    return graph


def _bypass(graph: Graph, region: Region) -> Iterable[tuple[str, str]]:
    """What is replaced by what: the exit, or each addition of the branch by what else it adds."""
    if region.branch is None:
        return [(region.exit, region.entry)]
    ops = [graph.ops[i] for i in graph.uses.get(region.branch, ())]
    sums = [op for op in ops if op.name in ADDITIONS and len(set(op.operands)) == 2]
    return [(op.result, next(n for n in op.operands if n != region.branch)) for op in sums]


def _replaced(graph: Graph, old: str, new: str) -> Graph:
    """Everything that read `old` reads `new`; what made it stays, for dead-code elimination."""

    def name(value: str) -> str:
        return new if value == old else value

    def op(found: Op) -> Op:
        return replace(renamed(found, name), results=found.results)

    reading = set(graph.uses.get(old, ()))
    ops = tuple(op(found) if i in reading else found for i, found in enumerate(graph.ops))
    outputs = tuple((public, name(value)) for public, value in graph.outputs)
    return replace(graph, ops=ops, outputs=outputs)


def _restricted(coupling: Coupling, graph: Graph, stand_ins: Mapping[str, str]) -> Coupling:
    """What was found, as far as it is about what the smaller program still has."""
    live = set(graph.producers)
    groups = (_group(group, graph, stand_ins) for group in coupling.groups)
    kept = tuple(group for group in groups if _learned(group, graph))
    names = {group.name for group in kept}
    pinned = (replace(pin, places=_places(pin.places, graph)) for pin in coupling.pinned)
    return replace(
        coupling,
        graph=graph,
        groups=tuple(replace(g, parent=g.parent if g.parent in names else None) for g in kept),
        pinned=tuple(pin for pin in pinned if pin.places),
        literals={name: found for name, found in coupling.literals.items() if name in live},
        contractions=tuple(c for c in coupling.contractions if c.op in live),
        normed={name: axes for name, axes in coupling.normed.items() if name in live},
        caches=tuple((a, b) for a, b in coupling.caches if a in graph.types and b in live),
    )


def _places(places: Iterable[Place], graph: Graph) -> tuple[Place, ...]:
    return tuple(place for place in places if place.parameter in graph.parameters)


def _group(group: Group, graph: Graph, stand_ins: Mapping[str, str]) -> Group:
    live = graph.producers
    return replace(
        group,
        places=_places(group.places, graph),
        producers=tuple(name for name in group.producers if name in live),
        consumers=tuple(
            replace(c, input=stand_ins.get(c.input, c.input))
            for c in group.consumers
            if c.op in live
        ),
    )


def _learned(group: Group, graph: Graph) -> bool:
    """Whether a weight is left among the places, and not only stored data."""
    return any(graph.parameters[place.parameter].kind == "parameter" for place in group.places)
