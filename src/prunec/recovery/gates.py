"""Gates that training opens and closes: the hard concrete distribution.

Louizos, Welling, Kingma: Learning Sparse Neural Networks through L0 Regularization (ICLR 2018),
section 2.3 and appendix B. A gate is in [0, 1] and exactly 0 or 1 with a probability of its own;
`log_alpha` (any shape) says how far it is open, and gradients reach it through every value.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

__all__ = ["OPEN", "open_probability", "sampled", "settled"]

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
"""beta, gamma and zeta of the paper, as it recommends them."""

OPEN = 2.5
"""A `log_alpha` whose settled gate is wholly open, and which samples rarely close."""


def sampled(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates drawn with numbers `uniform` in (0, 1) of the same shape: equations 10 and 11."""
    noise = uniform.log() - (-uniform).log1p()
    return _stretched(torch.sigmoid((noise + log_alpha) / TEMPERATURE))


def open_probability(log_alpha: Tensor) -> Tensor:
    """How likely a drawn gate is not 0: equation 12."""
    return torch.sigmoid(log_alpha - TEMPERATURE * log(-LOW / HIGH))


def settled(log_alpha: Tensor) -> Tensor:
    """The gates to compute with once training is over: equation 13."""
    return _stretched(torch.sigmoid(log_alpha))


def _stretched(share: Tensor) -> Tensor:
    return (share * (HIGH - LOW) + LOW).clamp(0, 1)
