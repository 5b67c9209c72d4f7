"""What changes of a program do to its outputs, many variants beside one dense program.

A model that writes text is measured by the mean negative log-likelihood of the next token and by
the mean Kullback-Leibler divergence of the dense distributions from the others, any other model by
the squared difference of its outputs over their squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunec.backends.forward import Result
from prunec.engines.logits import Logits, logits_of
from prunec.engines.outputs import SquaredError
from prunec.measuring.breakdown import DECODED, counted, writes_text
from prunec.runs.calibrating import TOKENS
from prunec.runs.loading import Loaded

__all__ = ["Damage", "Found", "Sums", "Windows", "damage_of"]

Windows = Sequence[Mapping[str, Any]]
"""Inputs by name, each with a batch dimension of one."""


@dataclass(frozen=True)
class Found:
    """`loss` and `divergence` in nats a token, NaN where the model does not write text; `error`
    is the relative squared error of the outputs, NaN where it does."""

    loss: float = math.nan
    divergence: float = math.nan
    error: float = math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def worth(self) -> float:
        """What tells better from worse: the lower the better, infinite where it is not a number."""
        chosen = self.error if math.isnan(self.loss) else self.loss
        return chosen if math.isfinite(chosen) else math.inf


Sums = dict[tuple[str | None, int], tuple[float, float]]
"""By variant (None is the program itself) and window: negative log-likelihood and divergence, or
the squares of the difference and of the dense outputs."""


class Damage:
    """A `prunec.backends.torch_variants.Score` that keeps sums of every variant and window. Of text
    the loss alone is known without the `divergence`, and then the dense program is not run."""

    def __init__(self, windows: Windows, text: bool, divergence: bool = True) -> None:
        self.windows, self.text, self.divergence = windows, text, divergence
        self.sums: Sums = {}
        self.dense: list[Any] = []
        counts = [_tokens(window) for window in windows] if text else []
        self.tokens = sum(used for used, _ in counts)
        self.positions = sum(all_ for _, all_ in counts)

    @torch.no_grad()
    def __call__(self, name: str | None, window: int, result: Result) -> None:
        if name is None:
            self.dense = []
        add = self._text if self.text else self._any
        self.sums[name, window] = add(name, window, result)

    def knows(self, name: str, window: int) -> bool:
        return (name, window) in self.sums

    @property
    def compares(self) -> bool:
        return self.divergence or not self.text

    def found(self, name: str | None) -> Found:
        """What was measured of a variant, or of the program itself (None)."""
        parts = [self.sums[name, window] for window in range(len(self.windows))]
        first, second = (sum(column) for column in zip(*parts, strict=True))
        if self.text:
            return Found(first / self.tokens, second / self.positions)
        return Found(error=first / second if second else math.nan)

    def _text(self, name: str | None, window: int, result: Result) -> tuple[float, float]:
        inputs = self.windows[window]
        written = torch.from_numpy(_written(inputs))
        used = counted(inputs, written.numpy())
        at, loss, divergence = 0, 0.0, 0.0
        for place, logits in enumerate(logits_of(result)):
            norm = logits.norm()
            if self.divergence and name is None:
                self.dense.append(_Dense.of(logits, norm))
            if self.divergence:
                dense = self.dense[place]
                # sum p (log p - log q) = sum p log p + log Z - sum p z
                divergence += dense.own + float((norm - logits.mean(dense.weight)).double().sum())
            targets = written[at + 1 : at + 1 + len(norm)].long()
            lost = (norm[: len(targets)] - logits.at(targets)).double()
            loss += float(lost[used[at + 1 : at + 1 + len(norm)]].sum())
            at += len(norm)
        return loss, divergence

    def _any(self, name: str | None, window: int, result: Result) -> tuple[float, float]:
        error = SquaredError()
        for place, outputs in enumerate(result.pieces()):
            if name is None:
                self.dense.append(dict(outputs))
            error.add(self.dense[place], outputs)
        return error.difference, error.norm


@dataclass(frozen=True)
class _Dense:
    """What stands for the dense distributions p at some positions, and the sum of p log p."""

    weight: torch.Tensor
    own: float

    @classmethod
    def of(cls, logits: Logits, norm: torch.Tensor) -> _Dense:
        weight = logits.weigh(norm)
        return cls(weight, float((logits.mean(weight) - norm).double().sum()))


def damage_of(loaded: Loaded, windows: Windows, divergence: bool = True) -> Damage:
    """An empty score of the kind that suits the model."""
    return Damage(windows, writes_text(loaded), divergence)


def _written(window: Mapping[str, Any]) -> Any:
    return window[DECODED if DECODED in window else TOKENS][0]


def _tokens(window: Mapping[str, Any]) -> tuple[int, int]:
    """How many tokens of a window count, and how many there are."""
    written = _written(window)
    return int(counted(window, written)[1:].sum()), len(written)
