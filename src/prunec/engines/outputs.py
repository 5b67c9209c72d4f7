"""How far the outputs of a smaller program are from the dense ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

__all__ = ["Outputs", "SquaredError"]

Outputs = Mapping[str, torch.Tensor]


class SquaredError:
    """Squared differences of all floating-point outputs over the squares of the dense ones."""

    def __init__(self) -> None:
        self.difference = self.norm = 0.0

    def add(self, dense: Outputs, small: Outputs) -> None:
        for name, value in dense.items():
            if not torch.is_floating_point(value):
                continue
            wanted, found = value.double(), small[name].double()
            self.difference += float((found - wanted).square().sum())
            self.norm += float(wanted.square().sum())

    def mean(self) -> float:
        """NaN when the dense outputs are all zero."""
        return self.difference / self.norm if self.norm else math.nan
