"""Stand-ins for a module's tensors: fake tensors that have a shape, a dtype and no storage.

Fake tensors claim to be on the CPU, unlike meta tensors: a constant that the forward pass
creates `on the device of x` then keeps its value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = ["fake_inputs", "fake_mode", "faked"]


def fake_mode() -> FakeTensorMode:
    """A mode with its own symbolic shapes; real constants may mix with fake tensors."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def fake_inputs(example: Mapping[str, Any], mode: FakeTensorMode) -> dict[str, Any]:
    """Fake tensors of the same shapes and dtypes; anything else passes unchanged."""
    return {key: _fake(value, mode) for key, value in example.items()}


@contextmanager
def faked(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Within the block all parameters and buffers are fake and the module is in evaluation mode.

    Tied tensors stay tied. Everything is put back on the way out.
    """
    saved = [
        (owner, dict(owner._parameters), dict(owner._buffers), owner.training)
        for owner in module.modules()
    ]
    stray = [
        (owner, key, value)
        for owner in module.modules()
        for key, value in vars(owner).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]
    stand_ins: dict[int, torch.Tensor] = {}

    def swap(tensor: torch.Tensor | None) -> Any:
        if tensor is None:
            return None
        if id(tensor) not in stand_ins:
            stand_ins[id(tensor)] = _fake(tensor, mode)
        return stand_ins[id(tensor)]

    try:
        for owner, parameters, buffers, _ in saved:
            owner._parameters.update({k: swap(v) for k, v in parameters.items()})
            owner._buffers.update({k: swap(v) for k, v in buffers.items()})
            owner.training = False
        for owner, key, value in stray:
            setattr(owner, key, swap(value))
        yield
    finally:
        for owner, parameters, buffers, training in saved:
            owner._parameters.update(parameters)
            owner._buffers.update(buffers)
            owner.training = training
        for owner, key, value in stray:
            setattr(owner, key, value)


def _fake(value: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with mode:
        tensor = torch.empty(value.shape, dtype=value.dtype)
        return nn.Parameter(tensor, requires_grad=False) if _is_parameter(value) else tensor


def _is_parameter(value: torch.Tensor) -> bool:
    return isinstance(value, nn.Parameter)
