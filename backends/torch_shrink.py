"""Give a copy of a module smaller tensors, so that its own forward pass computes a pruned program.

The class stays and so do the names of its state dict. Which of its integers must follow is found
as for checkpoints (see `hf_attributes`). Where no setting of them makes the class compute the
pruned program, the traced program itself becomes the module: the same names and values, in
evaluation mode, without what the trace does not hold (dropout, hooks, other methods).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prunec.backends import modeling_prunec
from prunec.backends.hf_attributes import Trace, attributes
from prunec.backends.hf_families import ParameterAxes
from prunec.backends.hf_fields import Family
from prunec.backends.torch_module import to_fx
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Graph

__all__ = ["shrunk", "traced_module"]

Tensors = Mapping[str, torch.Tensor]


def shrunk(
    module: nn.Module,
    skeleton: Callable[[], nn.Module],
    axes: ParameterAxes,
    counts: Mapping[str, int],
    wanted: Graph,
    trace: Trace,
    tensors: Tensors,
) -> nn.Module | list[Diagnostic]:
    """A smaller copy of `module`, or why its class cannot compute `wanted`.

    `skeleton` copies it onto the meta device, `trace` traces such a copy as `module` was traced,
    `counts` says how many indices are left of each axis that lost some, and `tensors` has every
    parameter and buffer of the result by name. The copy has been traced and found to compute
    `wanted`; training modes and `requires_grad` are those of `module`.
    """
    found = attributes(Family(None, lambda _: skeleton()), axes, counts, wanted, trace)
    if isinstance(found, list):
        return found
    made = skeleton()
    for path, values in found.items():
        modeling_prunec.set_integers(made.get_submodule(path), values)
    _fill(made, tensors)
    for path, original in module.named_modules():
        made.get_submodule(path).training = original.training
    return made


def traced_module(module: nn.Module, program: Graph, tensors: Tensors) -> nn.Module:
    """The pruned program as a module with the state dict's names of `module`."""
    made = to_fx(program, tensors)
    stored = module.state_dict().keys()
    trained = {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    for path, owner in made.named_modules():
        prefix = f"{path}." if path else ""
        owner._non_persistent_buffers_set |= {n for n in owner._buffers if prefix + n not in stored}
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                parameter.requires_grad_(prefix + name in trained)
    return made


def _fill(made: nn.Module, tensors: Tensors) -> None:
    """Put the tensors in place of those without storage; tied ones stay tied."""
    filled: dict[int, torch.Tensor] = {}
    for path, owner in made.named_modules():
        for table in (owner._parameters, owner._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in filled:
                    value = tensors[f"{path}.{name}" if path else name]
                    filled[id(old)] = _like(old, value)
                owner_table: dict[str, torch.Tensor | None] = table
                owner_table[name] = filled[id(old)]
        modeling_prunec.state_sizes(owner)


def _like(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if not isinstance(old, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=old.requires_grad)
