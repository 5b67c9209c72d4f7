"""Norms that were fused with the addition before them in the file that was read, fused again.

What is no longer both, because a branch is gone, stays a norm of its own.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["put_together"]


def put_together(model: ir.Model) -> None:
    """Change the main graph in place: a norm and the `additions` before it that have one node in
    `meta` become that node."""
    for norm in list(model.graph):
        if "additions" not in norm.meta:
            continue
        sums = _additions(norm)
        if len(sums) == norm.meta["additions"]:
            _together(model.graph, norm, sums)


def _additions(norm: ir.Node) -> list[ir.Node]:
    """Those that lead to a norm, the first one first, as far as they are those of its node."""
    fused = norm.meta["fused"]
    found: list[ir.Node] = []
    value = norm.inputs[0]
    while value is not None:
        node = value.producer()
        inner = bool(found) and (len(value.uses()) > 1 or value.is_graph_output())
        if node is None or inner or node.meta.get("fused") is not fused:
            break
        found.insert(0, node)
        value = node.inputs[0]
    return found


def _together(graph: ir.Graph, norm: ir.Node, sums: list[ir.Node]) -> None:
    fused: ir.Node = norm.meta["fused"]
    total = sums[-1].outputs[0]
    inputs = [*sums[0].inputs, *norm.inputs[1:]]
    for bias in sums[1:]:
        inputs += [None] * (len(fused.inputs) - 1 - len(inputs)) + [bias.inputs[1]]
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
