"""Norms that ONNX Runtime fuses with the addition before them, taken apart into both.

A residual stream that ends in such a node cannot be told from its branch, and the norm cannot stay
when the branch goes. The parts remember their node: what is left of both when the model is written
becomes one again (`backends.onnx_fused`).
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["take_apart"]

NORMS = {
    "SkipLayerNormalization": ("LayerNormalization", 4),
    "SkipSimplifiedLayerNormalization": ("SimplifiedLayerNormalization", 3),
}
"""By fused operator of ONNX Runtime its norm, and the operand that is the branch's bias."""

EPSILON = 1e-12
"""Of a fused norm that states none."""


def take_apart(model: ir.Model) -> None:
    """Change the main graph in place; nodes whose statistics are read stay as they are."""
    graph = model.graph
    known = (*graph.inputs, *graph.initializers.values())
    known += tuple(value for node in graph for value in node.outputs)
    taken = {str(value.name) for value in known}
    for node in list(graph):
        if node.domain != "com.microsoft" or node.op_type not in NORMS:
            continue
        if not any(_read(value) for value in node.outputs[1:3]):
            _apart(graph, node, taken)


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _apart(graph: ir.Graph, node: ir.Node, taken: set[str]) -> None:
    norm, last = NORMS[node.op_type]
    addends = [node.inputs[1], *node.inputs[last : last + 1]]
    new: list[ir.Node] = []
    total = node.inputs[0]
    for i, addend in enumerate(value for value in addends if value is not None):
        label = f"{node.name}_Add{i or ''}" if node.name else None
        new.append(ir.Node("", "Add", [total, addend], name=label))
        total = new[-1].outputs[0]
        total.name = _unused(f"{node.outputs[0].name}/sum{i or ''}", taken)
        total.type, total.shape = node.outputs[0].type, node.outputs[0].shape
    epsilon = node.attributes.get_float("epsilon", EPSILON)
    new.append(
        ir.Node(
            "", norm, [total, *node.inputs[2:last]], [ir.AttrFloat32("epsilon", epsilon)],
            name=node.name, metadata_props=dict(node.metadata_props),
        )
    )  # fmt: skip
    for part in new:
        part.meta["fused"], part.meta["additions"] = node, len(new) - 1
    old = [node.outputs[0], *(value for value in node.outputs[3:] if value.name)]
    made = [part.outputs[0] for part in reversed(new)][: len(old)]
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, old, made)


def _unused(name: str, taken: set[str]) -> str:
    """The name, or a longer one that no value has; it is taken then."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
