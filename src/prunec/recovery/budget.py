"""Gates under a budget: the augmented Lagrangian that leads a model to the size asked for.

Wang, Wohlwend, Lei: Structured Pruning of Large Language Models (EMNLP 2020), section 3.3. To the
loss come l1 (s - t) + l2 (s - t)^2, where s is the size that is expected of the gates and t the
one that is wanted, which falls to the target in steady steps. Training makes this small in the
gates and large in l1 and l2, so that it ends where s is t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunec.recovery.gates import open_probability
from prunec.recovery.objective import Objective
from prunec.recovery.pairs import Pair
from prunec.recovery.teacher import Batch

__all__ = ["Budget", "Budgeted"]


PENALTY = 300.0
"""Where l2 starts, as augmented Lagrangians do: from 0 a short training ends beside the target."""


class Budget(nn.Module):
    """Sizes are shares of `dense` numbers. `target` is reached after `steps`, then held."""

    step: Tensor

    def __init__(self, pairs: Sequence[Pair], dense: int, target: float, steps: int) -> None:
        super().__init__()
        self.pairs = tuple(pairs)  # no submodules: they are the model's
        self.dense, self.target, self.steps = dense, target, steps
        self.multipliers = nn.Parameter(torch.tensor([0.0, PENALTY]))
        self.register_buffer("step", torch.zeros(()))
        self.start = float(self.expected().detach())

    def expected(self) -> Tensor:
        """How large the factors are expected to be."""
        sizes = [p.each * open_probability(p.log_alpha).sum() for p in self.pairs]  # type: ignore[arg-type]
        return torch.stack(sizes).sum() / self.dense

    @property
    def wanted(self) -> float:
        """How large they are to be at this step."""
        share = min(1.0, float(self.step) / self.steps)
        return self.start + share * (self.target - self.start)

    def forward(self) -> Tensor:
        """What comes to the loss; every call is a step."""
        excess = self.expected() - self.wanted
        self.step += 1
        return self.multipliers[0] * excess + self.multipliers[1] * excess.square()


@dataclass(frozen=True)
class Budgeted:
    """An objective, and in training the budget."""

    objective: Objective
    budget: Budget

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        loss = self.objective(model, batch)
        return loss + self.budget() if model.training else loss
