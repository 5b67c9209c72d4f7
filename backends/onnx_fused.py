"""Norms that were fused with the addition before them in the file that was read, fused again.

Where a branch is gone, the norm behind it follows the addition before that branch, whose own norm
nothing reads any more.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["put_together"]


def put_together(model: ir.Model) -> None:
    """Change the main graph in place: additions and norms that were taken apart (`meta` has the
    `fused` node and how many `additions` it made) become such nodes where both are left."""
    for norm in list(model.graph):
        if "fused" in norm.meta and norm.op_type != "Add":
            sums = _additions(norm)
            if sums:
                _together(model.graph, norm, sums)


def _additions(norm: ir.Node) -> list[ir.Node]:
    """All those of one node that lead to a norm, the first one first; none where one is gone."""
    found: list[ir.Node] = []
    value = norm.inputs[0]
    kind = norm.meta["fused"].op_type
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Add" or "fused" not in node.meta:
            return []
        inner = bool(found) and (len(value.uses()) > 1 or value.is_graph_output())
        if inner or node.meta["fused"].op_type != kind:
            return []
        found.insert(0, node)
        if len(found) == node.meta["additions"]:
            return found if len({id(part.meta["fused"]) for part in found}) == 1 else []
        value = node.inputs[0]
    return []


def _together(graph: ir.Graph, norm: ir.Node, sums: list[ir.Node]) -> None:
    fused: ir.Node = norm.meta["fused"]
    total = sums[-1].outputs[0]
    inputs = [*sums[0].inputs, *norm.inputs[1:]]
    for bias in sums[1:]:
        last = len(bias.meta["fused"].inputs) - 1
        inputs += [None] * (last - len(inputs)) + [bias.inputs[1]]
    used = len(total.uses()) > 1 or total.is_graph_output()
    node = ir.Node(
        fused.domain, fused.op_type, inputs, list(fused.attributes.values()),
        num_outputs=max(len(fused.outputs), 4 * used), version=fused.version, name=fused.name,
        doc_string=fused.doc_string, metadata_props=dict(norm.metadata_props),
    )  # fmt: skip
    for value in node.outputs:
        value.name = ""
    for value, known in zip(node.outputs, fused.outputs, strict=False):
        value.name = known.name
    old, new = [norm.outputs[0]], [node.outputs[0]]
    if used:
        old, new = [*old, total], [*new, node.outputs[3]]
    ir.convenience.replace_nodes_and_values(graph, norm, [norm, *reversed(sums)], [node], old, new)
