"""Sums over the logits of some positions, looked at a few at a time so that they stay in the cache.

Where logits are a product of states and a stored weight, they are never held: the mean of logits
under the dense distributions p is the product of the states and of p times the weight, which is
known once for all that is compared with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from prunec.backends.forward import Factors, Result
from prunec.engines.masking import LOGITS

__all__ = ["Logits", "logits_of"]

Tensor = torch.Tensor

ROWS, SLICE = 512 << 10, 4 << 20
"""Bytes of logits at once: of whole positions, and of some tokens of all positions."""


class Logits(Protocol):
    """Logits z of some positions. `weigh`, given their own `norm`, gives what stands for their
    distributions, with which `mean` finds the mean of any other's logits."""

    def norm(self) -> Tensor:
        """log sum exp z, shape (positions,)."""

    def at(self, tokens: Tensor) -> Tensor:
        """The logits of one token each, for the first so many positions."""

    def likeliest(self) -> Tensor:
        """The token with the largest logit, shape (positions,)."""

    def weigh(self, norm: Tensor) -> Tensor: ...

    def mean(self, weight: Tensor) -> Tensor:
        """sum p z, shape (positions,)."""


def logits_of(result: Result) -> Iterator[Logits]:
    """What a model that writes text gives for one window, in the order of positions."""
    factors = result.factors()
    if factors is not None:
        yield Multiplied(factors)
        return
    for outputs in result.pieces():
        yield Held(outputs[LOGITS][0].float())


@dataclass(frozen=True)
class Held:
    """Logits that are there, shape (positions, tokens); they are weighed by probabilities."""

    logits: Tensor

    def norm(self) -> Tensor:
        return torch.cat([z.logsumexp(-1) for z in torch.split(self.logits, self._few)])

    def at(self, tokens: Tensor) -> Tensor:
        return self.logits[: len(tokens)].gather(-1, tokens[:, None])[:, 0]

    def likeliest(self) -> Tensor:
        return self.logits.argmax(-1)

    def weigh(self, norm: Tensor) -> Tensor:
        return (self.logits - norm[:, None]).exp()

    def mean(self, weight: Tensor) -> Tensor:
        rows = zip(*(torch.split(x, self._few) for x in (weight, self.logits)), strict=True)
        return torch.cat([torch.linalg.vecdot(p, z) for p, z in rows])

    @property
    def _few(self) -> int:
        return max(1, ROWS // (4 * self.logits.shape[-1]))


@dataclass(frozen=True)
class Multiplied:
    """Logits before they are multiplied; they are weighed by p times the weight, and the bias."""

    factors: Factors

    def norm(self) -> Tensor:
        parts = [z[0].float().logsumexp(-1) for _, z in self.factors.slices(SLICE)]
        return torch.stack(parts).logsumexp(0)

    def at(self, tokens: Tensor) -> Tensor:
        factors = self.factors
        found: Tensor = torch.linalg.vecdot(
            self._states[: len(tokens)], factors.weight[tokens].float()
        )
        return found if factors.bias is None else found + factors.bias[tokens].float()

    def likeliest(self) -> Tensor:
        parts = [(some.start, z[0].float().max(-1)) for some, z in self.factors.slices(SLICE)]
        best = torch.stack([most.values for _, most in parts]).argmax(0, keepdim=True)
        places = torch.stack([most.indices + start for start, most in parts])
        return places.gather(0, best)[0]

    def weigh(self, norm: Tensor) -> Tensor:
        """Shape (positions, features + 1): the last column is the mean of the bias."""
        factors = self.factors
        found = torch.zeros(len(norm), self._states.shape[-1] + 1)
        for some, z in factors.slices(SLICE):
            likely = (z[0].float() - norm[:, None]).exp()
            found[:, :-1] += likely @ factors.weight[some].float()
            if factors.bias is not None:
                found[:, -1] += likely @ factors.bias[some].float()
        return found

    def mean(self, weight: Tensor) -> Tensor:
        inner: Tensor = torch.linalg.vecdot(self._states, weight[:, :-1])
        return inner + weight[:, -1]

    @property
    def _states(self) -> Tensor:
        return self.factors.states[0].float()
