"""Experts: where a program routes tokens to them, and what the routing says of each.

An expert is an index that the program itself chooses for a token (`chosen` in the types). The
values by which it then selects whole matrices say which experts a token goes to, and the value in
which their output meets the weight of the route says what each of them contributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Atom
from prunec.ir.graph import Graph, Op, Ref
from prunec.passes.coupling import Coupling, Group
from prunec.passes.score import Scores

__all__ = ["EXPERTS", "Routed", "Router", "expert_scores", "find_routers", "routes", "shares"]

EXPERTS = ("reap", "frequency", "weights")
"""By what experts are judged. `reap`: the mean, over the tokens that an expert gets, of the weight
of its route times the norm of its output (Lasby et al., REAP the Experts, 2025, eq. 9);
`frequency`: how many tokens it gets (the baseline there); `weights`: the method's own criterion,
which needs no data where it is one of weights."""


@dataclass(frozen=True)
class Router:
    """Where tokens meet the experts of a group: `chosen` holds the expert of every token and
    route, `contributed` what came of it, with the features last."""

    group: str
    size: int
    chosen: str
    contributed: str


@dataclass(frozen=True)
class Routed:
    """Over all tokens, by expert: how many it got, and the sum of the norms of what it gave."""

    tokens: npt.NDArray[np.float64]
    norms: npt.NDArray[np.float64]

    def __add__(self, other: Routed) -> Routed:
        return Routed(self.tokens + other.tokens, self.norms + other.norms)


def expert_scores(name: str, routed: Routed) -> Scores:
    """Scores by one of `EXPERTS` that look at routes; an expert that gets no token has none."""
    if name == "frequency":
        return routed.tokens
    scores: Scores = routed.norms / np.maximum(routed.tokens, 1)
    return scores


def routes(coupling: Coupling, group: Group) -> bool:
    """Whether the program itself chooses among the indices of a group."""
    return any(_is_position(coupling.positions, name, group) for name in coupling.positions)


def shares(coupling: Coupling, group: Group) -> tuple[str, int] | None:
    """The value from which the routes of a token take their weights, and its dimension of experts:
    what the program chooses from, or reads where it has chosen; None where neither is found."""
    found: tuple[str, int] | None = None
    for op in coupling.graph.ops:
        names = [*op.results, *op.operands]
        if not any(_is_position(coupling.positions, name, group) for name in names):
            continue
        for name in op.operands:
            axes = () if name.startswith("@") else coupling.graph.types[name].axes
            dims = [i for i, a in enumerate(axes) if isinstance(a, Atom) and a.name == group.name]
            if dims:
                found = name, dims[0]
    return found


def find_routers(coupling: Coupling, groups: Sequence[Group]) -> list[Router]:
    """The routers of the groups that have one which can be read, in the order of the program."""
    found = (_router(coupling, group) for group in groups if group.role == "expert")
    return [router for router in found if router is not None]


def _router(coupling: Coupling, group: Group) -> Router | None:
    graph = coupling.graph
    picked = dict(_picked(coupling, group))
    if not picked:
        return None
    layers = [c.op for c in coupling.contractions if _reads(graph, c.op, picked)]
    chosen = next(reversed(picked.values()))
    if not layers:
        return None
    weighted = _weighted(coupling, group, layers[-1])
    return None if weighted is None else Router(group.name, group.size, chosen, weighted)


def _picked(coupling: Coupling, group: Group) -> Iterator[tuple[str, str]]:
    """Matrices that are selected from stacks by expert, and the values that select them."""
    graph = coupling.graph
    stacks = {
        "@" + p.parameter for p in group.places if len(graph.types["@" + p.parameter].shape) > 2
    }
    for op in graph.ops:
        source = op.args[0] if op.args else None
        if not isinstance(source, Ref) or source.name not in stacks:
            continue
        by = [n for n in op.operands if _is_position(coupling.positions, n, group)]
        if by:
            yield op.result, by[0]


def _is_position(positions: Mapping[str, object], name: str, group: Group) -> bool:
    axis = positions.get(name)
    return isinstance(axis, Atom) and axis.name == group.name


def _reads(graph: Graph, op: str, picked: Mapping[str, str]) -> bool:
    """Whether a layer reads one of the selected matrices, perhaps transposed."""
    return any(_origin(graph, name) in picked for name in graph.ops[graph.producers[op]].operands)


def _origin(graph: Graph, name: str) -> str:
    """The value of which another is but the layout."""
    while name in graph.producers:
        op = graph.ops[graph.producers[name]]
        operands = list(dict.fromkeys(n for n in op.operands if graph.types[n].dtype != "index"))
        if op.pointwise or len(operands) != 1 or op.name.startswith("aten.index"):
            return name
        name = operands[0]
    return name


def _weighted(coupling: Coupling, group: Group, last: str) -> str | None:
    """The first value in which what the last layer of the experts made meets the routes."""
    graph = coupling.graph
    made, routes = {last}, set[str]()
    for op in graph.ops:
        if any(_is_position(coupling.positions, name, group) for name in op.results):
            if _chooses(op):
                routes.add(op.results[0])
            continue
        operands = set(op.operands)
        if operands & made and operands & routes:
            return op.result
        if operands & made:
            made.update(op.results)
        elif operands & routes:
            routes.update(op.results)
    return None


def _chooses(op: Op) -> bool:
    """Whether an operation gives values with their positions."""
    return len(op.results) == 2
