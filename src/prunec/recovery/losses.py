"""Losses of a student against text and against its teacher, with little memory beside the logits.

Vocabularies are large: whatever is as wide as the vocabulary is made `CHUNK` entries at a time,
forward and backward, so that a loss keeps no copy of the logits beside the gradient itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Top", "forward_kl", "logsumexp", "next_token", "relative_error", "top_kl", "top_of"]

CHUNK = 8192
"""Entries of the vocabulary at a time."""

SMALLEST = 1e-6
"""Probability below which everything outside the top counts as this much: float32 sums of
thousands of terms know no less."""


@dataclass(frozen=True)
class Top:
    """The most likely tokens of a distribution at each position: log-probabilities and ids, both
    of shape (..., k)."""

    logs: Tensor
    ids: Tensor


class _Logsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        total = torch.full(logits.shape[:-1], -torch.inf, device=logits.device)
        for (part,) in _chunks(logits):
            total = torch.logaddexp(total, part.float().logsumexp(-1))
        ctx.save_for_backward(logits, total)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        logits, total = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for part, into in _chunks(logits, gradient):
            into.copy_((part.float() - total[..., None]).exp_().mul_(slopes[0][..., None]))
        return gradient


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        totals = [logsumexp(logits)[..., None] for logits in (student, teacher)]
        found = torch.zeros(student.shape[:-1], device=student.device)
        for own, wanted in _chunks(student, teacher):
            log_q, log_p = own.float() - totals[0], wanted.float() - totals[1]
            found += (log_p.exp() * (log_p - log_q)).sum(-1)
        ctx.save_for_backward(student, teacher, *totals)
        return found

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        student, teacher, *totals = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for own, wanted, into in _chunks(student, teacher, gradient):
            found = (own.float() - totals[0]).exp_() - (wanted.float() - totals[1]).exp_()
            into.copy_(found.mul_(slopes[0][..., None]))
        return gradient, None


def logsumexp(logits: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials over the last dimension, in float32."""
    found: Tensor = _Logsumexp.apply(logits)  # type: ignore[no-untyped-call]
    return found


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) at each position of two logits (..., vocabulary), in nats, shape
    (...); gradients reach the student alone."""
    found: Tensor = _ForwardKL.apply(student, teacher)  # type: ignore[no-untyped-call]
    return found


def top_of(logits: Tensor, k: int) -> Top:
    """The k most likely tokens of each position of logits (..., vocabulary)."""
    values, ids = logits.topk(min(k, logits.shape[-1]), -1)
    return Top(values.float() - logsumexp(logits)[..., None], ids)


def top_kl(student: Tensor, top: Top) -> Tensor:
    """KL(teacher || student) at each position where all tokens outside the teacher's top count as
    one: at most the divergence over the whole vocabulary, and zero only where the student agrees
    on every token of the top."""
    logs = student.gather(-1, top.ids).float() - logsumexp(student)[..., None]
    inside = (top.logs.exp() * (top.logs - logs)).sum(-1)
    rest, own = ((1 - each.exp().sum(-1)).clamp_min(SMALLEST) for each in (top.logs, logs))
    return inside + rest * (rest.log() - own.log())


def next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of each token but the first, in nats: logits (batch, length,
    vocabulary) and tokens (batch, length) to (batch, length - 1)."""
    ahead = logits[:, :-1]
    chosen = ahead.gather(-1, tokens[:, 1:, None])[..., 0].float()
    return logsumexp(ahead) - chosen


def relative_error(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """|s - t|^2 / |t|^2 of vectors (..., features), averaged over several of each: 1 where the
    student says nothing. Each vector counts alike: a few tokens of language models are a thousand
    times larger than the others."""
    total = student[0].new_zeros(student[0].shape[:-1], dtype=torch.float32)
    for own, wanted in zip(student, teacher, strict=True):
        size = wanted.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        total = total + (own.float() - wanted.float()).square().sum(-1) / size
    return total / len(student)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    for start in range(0, tensors[0].shape[-1], CHUNK):
        yield tuple(tensor[..., start : start + CHUNK] for tensor in tensors)
