"""What the loss would feel if values were zero, to first order, from one backward pass a sequence.

Zeroing a value v changes the loss by -v . g, where g is the gradient there: the gate of Michel et
al., NeurIPS 2019 (eq. 2), token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunec.backends.heap import BUDGET
from prunec.backends.torch_backward import Backward
from prunec.ir.graph import Graph

__all__ = ["Gate", "first_order"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gate:
    """A value, or the indices `gone` of one dimension of it, that would be zero."""

    value: str
    dim: int
    gone: npt.NDArray[np.int64] | None = None


def first_order(
    graph: Graph,
    weights: Mapping[str, npt.NDArray[Any]],
    windows: Sequence[Mapping[str, Any]],
    gates: Mapping[str, Sequence[Gate]],
    budget: int = BUDGET,
    told: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """By name, the sum over tokens of the size of the change when all its gates close at once.

    The loss is a mean over the tokens of a sequence (see `objective`); the result is a mean over
    the sequences.
    """
    by_value: dict[str, list[tuple[str, Gate]]] = {}
    for name, own in gates.items():
        for gate in own:
            by_value.setdefault(gate.value, []).append((name, gate))
    found: dict[str, list[Floats | None]] = {}
    passes = Backward(graph, weights, windows, results=by_value, budget=budget, told=told)
    for stretch in passes:
        for number, gradients in enumerate(stretch.backward()):
            for value, gradient in gradients.items():
                change = stretch.values[value] * gradient
                for name, gate in by_value[value]:
                    rows = found.setdefault(name, [None] * len(passes.sequences))
                    own_change, before = _per_token(change, gate), rows[number]
                    rows[number] = own_change if before is None else before + own_change
    return {
        name: float(np.mean([0.0 if row is None else np.abs(row).sum() for row in rows]))
        for name, rows in found.items()
    } | {name: 0.0 for name in gates if name not in found}


def _per_token(change: torch.Tensor, gate: Gate) -> Floats:
    """The change that each token brings, shape (positions,)."""
    moved = change.movedim(gate.dim, -1)
    if gate.gone is not None:
        moved = moved[..., torch.from_numpy(gate.gone)]
    return moved.sum(-1, dtype=torch.float64).reshape(-1).numpy()
