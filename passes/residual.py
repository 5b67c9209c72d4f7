"""Where the output of a layer joins a residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from prunec.ir.graph import Graph, Op, Ref

__all__ = ["Junction", "adds", "joined", "junction"]

RESHAPES = frozenset({"aten.reshape.default", "aten.view.default", "onnx.Reshape"})
ADDITIONS = frozenset({"aten.add.Tensor", "onnx.Add"})


def adds(op: Op) -> bool:
    """Whether an operation adds its first two operands, entry by entry."""
    return op.pointwise and ".add" in op.name.lower()


def joined(graph: Graph, result: str) -> str | None:
    """The value that `result` is added to, entry by entry, or None.

    The result may be reshaped on the way; what is added must have as many entries, and nothing
    else may read the result.
    """
    value = result
    while True:
        uses = graph.uses.get(value, ())
        if len(uses) != 1 or any(value == out for _, out in graph.outputs):
            return None
        op = graph.ops[uses[0]]
        if op.name not in RESHAPES:
            return _other(graph, op, value)
        value = op.result


def _other(graph: Graph, op: Op, value: str) -> str | None:
    if op.name not in ADDITIONS or op.kwargs or len(op.args) != 2:
        return None
    others = [a.name for a in op.args if isinstance(a, Ref) and a.name != value]
    if len(others) != 1 or not others[0].startswith("%"):
        return None
    same = graph.types[others[0]].shape == graph.types[value].shape
    return others[0] if same else None


@dataclass(frozen=True, slots=True)
class Junction:
    """Operation `first` adds `own`, what became of a layer's output, to other values; `last`, the
    same one unless more is added at once (parallel layers), gives the stream with all of it."""

    own: str
    first: int
    last: int


def junction(graph: Graph, result: str) -> Junction | None:
    """Where all that follows from `result` is added to a value that does not, or None.

    Unlike `joined` this looks past whatever is done to the output on its way (a norm, a gate, a
    further layer), for it asks where the stream changes and not by which matrix.
    """
    derived = {result}
    outputs = {value for _, value in graph.outputs}
    for i in range(graph.producers[result] + 1, len(graph.ops)):
        op = graph.ops[i]
        mine = derived.intersection(op.operands)
        if not mine:
            continue
        own = next(iter(mine))
        over = all(graph.uses.get(v, (i,))[-1] <= i and v not in outputs for v in derived)
        if len(mine) == 1 and over and _other(graph, op, own) is not None:
            return Junction(own, i, _end(graph, i))
        derived |= set(op.results)
    return None


def _end(graph: Graph, at: int) -> int:
    """The last of additions of which each one reads nothing but the sum before and one value."""
    while True:
        value = graph.ops[at].result
        uses = graph.uses.get(value, ())
        if len(uses) != 1 or _other(graph, graph.ops[uses[0]], value) is None:
            return at
        at = uses[0]
