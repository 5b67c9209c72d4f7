"""Compute once what an exported program computes from nothing but numbers in the code.

ALiBi slopes, inverse frequencies and tables of relative positions start at an `arange`, whose
length is a number of the model. As values of a stored constant they are sliced with the axis that
they belong to; computed anew from a smaller length they would be other values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

__all__ = ["folded"]

NUMBERED = ("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices")
"""Operations whose result has a value of its own for each index."""
COPIES = ("lift_fresh_copy", "lift_fresh", "detach", "detach_", "alias", "clone")
"""What an imported graph does without: their operand stands for them."""
LARGEST = 1 << 16
"""Entries of a value that is computed once; larger ones are masks and the like."""


def folded(program: ExportedProgram) -> dict[fx.Node, torch.Tensor]:
    """The values of operations that follow from numbers in the code alone.

    Values that are the same for every index (`zeros`, `full`) are left as operations, since their
    sizes can follow the types.
    """
    known = _lifted(program)
    copies = set(known)
    uniform: dict[fx.Node, torch.Tensor] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not _pure(node):
            continue
        inputs = node.all_input_nodes
        if not all(source in known or source in uniform for source in inputs):
            continue
        values = {source: known.get(source, uniform.get(source)) for source in inputs}
        value = node.target(*_filled(node.args, values), **_filled(node.kwargs, values))
        if not isinstance(value, torch.Tensor):
            continue
        numbered = _name(node) in NUMBERED or any(source in known for source in inputs)
        (known if numbered else uniform)[node] = value
        if _name(node) in COPIES and inputs[0] in copies:
            copies.add(node)
    return {node: value for node, value in known.items() if node not in copies}


def _lifted(program: ExportedProgram) -> dict[fx.Node, torch.Tensor]:
    """The constants with more than one entry, whose values are known."""
    names = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    found = {}
    for node in program.graph.nodes:
        value = program.constants.get(names.get(node.name, ""))
        if not isinstance(value, torch.Tensor) or not value.dim():
            continue
        if not value.is_meta and not isinstance(value, torch._subclasses.FakeTensor):
            found[node] = value
    return found


def _pure(node: fx.Node) -> bool:
    """Whether the node always gives the same tensor, of a size that is small and known."""
    value = node.meta.get("val")
    target = node.target
    if not isinstance(value, torch.Tensor) or not isinstance(target, torch._ops.OpOverload):
        return False
    if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    sizes = list(value.shape)
    if any(isinstance(size, torch.SymInt) for size in sizes):
        return False
    return value.numel() <= LARGEST


def _name(node: fx.Node) -> str:
    assert isinstance(node.target, torch._ops.OpOverload)
    return str(node.target._schema.name).partition("::")[2]


def _filled(arg: Any, values: Mapping[fx.Node, Any]) -> Any:
    """Arguments with the values of nodes in their place."""
    return fx.map_arg(arg, lambda node: values[node])
