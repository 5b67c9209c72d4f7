"""Where the output of a layer joins a residual stream."""

from __future__ import annotations

from prunec.ir.graph import Graph, Op, Ref

__all__ = ["joined"]

RESHAPES = frozenset({"aten.reshape.default", "aten.view.default"})
ADDITIONS = frozenset({"aten.add.Tensor"})


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
