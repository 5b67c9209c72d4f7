"""Which module of the exported model a node comes from, as its exporter has left word of it."""

from __future__ import annotations

import ast
from collections.abc import Container

from prunec.frontends.onnx_flat import Step
from prunec.ir.graph import Loc

__all__ = ["place_of"]

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of torch's exporter: the modules around a node, outermost first, and the node."""


def place_of(step: Step, stored: Container[str]) -> Loc:
    """The module by its path with dots, and the node by its name.

    The path is told by metadata, by a name like `/layers.0/mlp/MatMul`, or by that of the weight
    which the node reads; empty where nothing tells it.
    """
    name = step.node.name or step.call.name or ""
    module = _scope(step.node.metadata_props.get(SCOPES, ""))
    if not module and "/" in name:
        module = ".".join(filter(None, name.split("/")[:-1]))
    if not module:
        weights = (n for n in step.inputs if n in stored and "." in n)
        module = next(weights, "").rpartition(".")[0]
    return Loc(module, name)


def _scope(told: str) -> str:
    try:
        scopes = ast.literal_eval(told) if told else []
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # whatever a file may hold
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2:
        return ""
    return str(scopes[-2])
