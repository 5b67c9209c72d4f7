"""Roles of axes, from structure alone.

An axis contracted between two computed values is a `head_dim`, one that both share beside it a
head; one that data select from is a `vocab`; one that a weight shares with its input as a batch,
or of which the program chooses indices, an `expert`; one of these that a softmax runs over a
`position`; one that only leaves the graph an `output`; one around which a residual connection
leads is `hidden`; any other between two linear layers is a `neuron`, between convolutions a
`channel`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from prunec.ir.graph import Graph, Op, Ref
from prunec.ir.infer import Contraction, Typing
from prunec.ir.unify import AxisId
from prunec.passes.residual import adds

__all__ = ["Evidence", "convolves", "gather", "role_of"]


def convolves(op: Op) -> bool:
    """Whether an operation is a convolution, in whatever vocabulary."""
    return "conv" in op.name.lower()


def dequantizes(op: Op) -> bool:
    """Whether an operation gives its first operand, stored with scales, as numbers."""
    return op.name.endswith(".DequantizeLinear")


@dataclass
class Evidence:
    """What the contractions say of each atom (by representative); `attention` holds the heads of
    those contractions, by their number, that are one."""

    produced: dict[AxisId, list[int]] = field(default_factory=lambda: defaultdict(list))
    consumed: dict[AxisId, list[tuple[int, str, int, str, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    votes: dict[AxisId, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    residual: set[AxisId] = field(default_factory=set)
    convolved: Counter[AxisId] = field(default_factory=Counter)
    attention: dict[int, tuple[int, ...]] = field(default_factory=dict)


SEVERAL = ""
"""Stands for a weight that is computed from several parameters."""


def sources(graph: Graph, contracting: Collection[int] = ()) -> dict[str, str | None]:
    """For values computed from one parameter alone: that parameter; for those from inputs: None.

    Several parameters make a weight as well (a direction and its length), unless a layer lies
    between them: what a layer makes of stored vectors is computed. `contracting` are the positions
    of the operations that multiply matrices.

    Whole matrices that data choose out of a stack, such as the weights of experts, count as the
    parameter; rows, such as embedded tokens, do not.
    """
    found: dict[str, str | None] = {p.ref: p.name for p in graph.parameters.values()}
    found |= {value.name: None for value in graph.inputs}
    for op in graph.ops:
        operands = _chosen_from(graph, op) or op.operands
        behind = list(dict.fromkeys(found.get(name) for name in operands if name in found))
        alone = len(behind) == 1 or (dequantizes(op) and None not in behind[:1])
        origin = behind[0] if alone else None
        found |= dict.fromkeys(op.results, origin)
    return found


def _chosen_from(graph: Graph, op: Op) -> tuple[str, ...]:
    """The stack out of which an operation chooses matrices, if it does that."""
    source = op.args[0] if op.args else None
    if not op.name.startswith(("aten.index.", "aten.index_select.")) or not isinstance(source, Ref):
        return ()
    indexed = [i for i in op.args[1] if i is not None] if isinstance(op.args[1], tuple) else [0]
    return (source.name,) if len(graph.types[source.name].shape) - len(indexed) >= 2 else ()


def gather(typing: Typing) -> Evidence:
    """Collect the evidence of all contractions and residual connections."""
    evidence = Evidence()
    origin = sources(typing.graph, {contraction.op for contraction in typing.contractions})
    for number, contraction in enumerate(typing.contractions):
        inner = [typing.inner.get(name, name) for name in contraction.operands]
        weights = [origin.get(name) for name in inner]
        computed = [i for i, weight in enumerate(weights) if weight is None]
        shared = [holders for _, places in contraction.contracted for holders, _ in places]
        if sum(i in computed for i in set(shared)) >= 2:
            _attention(typing, number, contraction, evidence)
        else:
            _layer(typing, contraction, weights, evidence)
    _residuals(typing, evidence)
    return evidence


def _leaves(typing: Typing, axis: AxisId) -> Iterable[AxisId]:
    return dict.fromkeys(typing.axes.leaves(axis))


def _attention(typing: Typing, number: int, contraction: Contraction, evidence: Evidence) -> None:
    """Two computed values meet: what is summed is a head's inside, what is shared the heads."""
    shared = {place for _, places in contraction.batch for place in places}
    # a kernel that shares key heads itself: one operand has the product of both kinds of heads
    beside = [item for item in contraction.free if not shared.isdisjoint(item[1])]
    inside = [item for item in contraction.free if shared.isdisjoint(item[1])]
    heads = [axis for axis, _ in (*contraction.batch, *beside)]
    evidence.attention[number] = tuple(heads)
    for axis, _ in (*contraction.contracted, *inside):
        for leaf in _leaves(typing, axis):
            evidence.votes[leaf]["head_dim"] += 1
    for axis in heads:
        for leaf in _leaves(typing, axis):
            evidence.votes[leaf]["head"] += 1


def _layer(
    typing: Typing, contraction: Contraction, weights: list[str | None], evidence: Evidence
) -> None:
    """A weight meets a computed value: a layer that consumes one axis and produces another."""
    convolution = convolves(typing.graph.ops[contraction.op])
    holders = [i for i, weight in enumerate(weights) if weight is not None]
    for axis, places in contraction.contracted:
        weight = next(((i, d) for i, d in places if weights[i] is not None), None)
        value = next(((i, d) for i, d in places if weights[i] is None), None)
        if weight is None or value is None:
            continue
        name = weights[weight[0]]
        place = (contraction.operands[value[0]], value[1])
        read = [(contraction.op, name, weight[1], *place)] if name else []
        for leaf in _leaves(typing, axis):
            evidence.consumed[leaf] += read
            evidence.convolved[leaf] += 1 if convolution else -1
    for axis, places in contraction.free:
        if any(i in holders for i, _ in places):
            _produced(typing, contraction.op, axis, convolution, evidence)
    for axis, places in contraction.batch:
        held = {i for i, _ in places}
        # a bias shares the output axis with the weight: that is no batch
        if held <= set(holders):
            _produced(typing, contraction.op, axis, convolution, evidence)
        elif held & set(holders):
            for leaf in _leaves(typing, axis):
                evidence.votes[leaf]["channel" if convolution else "expert"] += 1


def _produced(typing: Typing, op: int, axis: AxisId, convolution: bool, evidence: Evidence) -> None:
    for leaf in _leaves(typing, axis):
        evidence.produced[leaf].append(op)
        evidence.convolved[leaf] += 1 if convolution else -1


def _residuals(typing: Typing, evidence: Evidence) -> None:
    """Mark axes of sums in which one operand was computed from the other by a layer."""
    graph = typing.graph
    layers = {contraction.op for contraction in typing.contractions}
    for op in graph.ops:
        names = [name for name in dict.fromkeys(op.operands) if name.startswith("%")]
        if len(names) < 2 or not adds(op):
            continue
        names = names[:2]
        starts = [graph.producers.get(name, -1) for name in names]
        early, late = sorted(zip(starts, names, strict=True))
        if not _through_layer(graph, late[0], early[0], early[1], layers):
            continue
        for axis in typing.dims[names[0]]:
            evidence.residual.update(typing.axes.leaves(axis))


def _through_layer(graph: Graph, start: int, stop: int, target: str, layers: set[int]) -> bool:
    """Does the value made at `start` come from `target` by a path that contains a layer?"""
    pending, seen = [(start, False)], set[tuple[int, bool]]()
    while pending:
        at, layered = pending.pop()
        if (at <= stop and at != start) or (at, layered) in seen:
            continue
        seen.add((at, layered))
        layered = layered or at in layers
        for name in graph.ops[at].operands:
            if name == target and layered:
                return True
            producer = graph.producers.get(name)
            if producer is not None and producer > stop:
                pending.append((producer, layered))
    return False


def role_of(typing: Typing, evidence: Evidence, leaf: AxisId) -> str:
    """The role of an atom; `head` is settled by the caller, who knows its neighbours."""
    marks = typing.axes.marks(leaf)
    votes = evidence.votes.get(leaf, Counter())
    if any(mark.kind == "index" for mark in marks) and not votes:
        return "vocab"
    if any(mark.kind == "chosen" for mark in marks):
        return "expert"
    if any(mark.reason.startswith("graph output") for mark in marks) and not evidence.consumed.get(
        leaf
    ):
        return "output"
    if votes and any("softmax" in mark.reason for mark in marks):
        return "position"
    for role in ("head", "head_dim", "expert"):
        if votes[role]:
            return role
    if votes["channel"] or evidence.convolved[leaf] > 0:
        return "channel"
    if leaf in evidence.residual:
        return "hidden"
    if evidence.consumed.get(leaf) and evidence.produced.get(leaf):
        return "neuron"
    return "feature"
