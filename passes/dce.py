"""Dead-code elimination: drop operations and parameters that no output needs."""

from __future__ import annotations

from dataclasses import replace

from prunec.ir.graph import Graph

__all__ = ["dce"]


def dce(graph: Graph) -> Graph:
    """Remove what is unused; a graph without dead code is returned as it is."""
    live = {value for _, value in graph.outputs}
    kept = []
    for op in reversed(graph.ops):
        if live.isdisjoint(op.results):
            continue
        kept.append(op)
        live.update(op.operands)
    parameters = {name: p for name, p in graph.parameters.items() if p.ref in live}
    if len(kept) == len(graph.ops) and len(parameters) == len(graph.parameters):
        return graph
    return replace(graph, ops=tuple(reversed(kept)), parameters=parameters)
