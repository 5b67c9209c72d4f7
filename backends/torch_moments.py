"""Moments of what a layer reads, summed over batches, with one matrix of their size in memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from prunec.backends.parked import parked
from prunec.passes.paged import blocks
from prunec.passes.profile import Array, Moments, Sample

__all__ = ["Sums", "parked_sample", "together"]

PART = 8 << 20
"""Bytes of a product that are computed at a time."""


class Sums:
    """Sums over tokens, in float64 of the float32 sums of each call: those hold a few thousand
    tokens well. `needs` as in `prunec.passes.profile.Stream`."""

    def __init__(self, features: int, needs: frozenset[str]) -> None:
        self.tokens = 0
        self.squares, self.sums = (torch.zeros(features, dtype=torch.float64) for _ in range(2))
        self.gram = (
            torch.zeros(features, features, dtype=torch.float64) if "gram" in needs else None
        )
        self.absolute = torch.zeros(features, dtype=torch.float64) if "absolute" in needs else None

    def add(self, x: torch.Tensor) -> None:
        """Some tokens, shape (T, n), in float32."""
        self.tokens += len(x)
        self.sums += x.sum(0)
        step = max(1, PART // (4 * x.shape[1]))
        for start in range(0, x.shape[1], step):
            some = slice(start, start + step)
            columns = x[:, some]
            if self.absolute is not None:
                self.absolute[some] += columns.abs().sum(0)
            if self.gram is None:
                self.squares[some] += (columns * columns).sum(0)
                continue
            product = columns.T @ x
            self.squares[some] += product.diagonal(start)
            self.gram[some] += product

    def moments(self) -> Moments:
        gram, absolute = (None if v is None else v.numpy() for v in (self.gram, self.absolute))
        return Moments(self.tokens, self.squares.numpy(), self.sums.numpy(), gram, absolute)


def parked_sample(sample: Sample) -> Sample:
    """The same with its Gram matrix in a file."""
    gram = sample.moments.gram
    return sample if gram is None else _with(sample, parked(gram))


def together(fit: Sample, held: Sample) -> tuple[Sample, Sample]:
    """The second, and the two added up, with their Gram matrices in files as that of the first is;
    that of the second is lost."""
    gram = held.moments.gram
    if gram is None or fit.moments.gram is None:
        return held, fit + held
    apart = _with(held, parked(gram))
    for rows, block in blocks(fit.moments.gram):
        gram[rows] += block
    return apart, _with(_with(fit, None) + _with(held, None), parked(gram))


def _with(sample: Sample, gram: Array | None) -> Sample:
    return replace(sample, moments=replace(sample.moments, gram=gram))
