"""Losses of recovery against what torch computes without regard to memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunec.recovery import losses
from prunec.recovery.losses import (
    forward_kl,
    logsumexp,
    next_token,
    relative_error,
    top_kl,
    top_of,
)

VOCABULARY = 23
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # a few float32 roundings of sums of 23 terms


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven does not divide the vocabulary: the last chunk is short."""
    monkeypatch.setattr(losses, "CHUNK", 7)


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, 5, VOCABULARY, generator=generator)


def plain_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def alike(found: Callable[[Tensor], Tensor], wanted: Callable[[Tensor], Tensor]) -> None:
    """The same values and, against random slopes, the same gradients."""
    results = []
    for run in (found, wanted):
        own = logits(0).requires_grad_()
        value = run(own)
        slopes = torch.linspace(-1, 2, value.numel()).reshape(value.shape)
        value.backward(slopes)
        results.append((value.detach(), own.grad))
    torch.testing.assert_close(results[0], results[1], **TOLERANCE)


def test_logsumexp() -> None:
    alike(logsumexp, lambda own: own.logsumexp(-1))


def test_forward_kl() -> None:
    teacher = logits(1)
    alike(lambda own: forward_kl(own, teacher), lambda own: plain_kl(own, teacher))


def test_next_token() -> None:
    tokens = torch.randint(VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(2))

    def wanted(own: Tensor) -> Tensor:
        flat = torch.nn.functional.cross_entropy(
            own[:, :-1].reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1), reduction="none"
        )
        return flat.reshape(2, 4)

    alike(lambda own: next_token(own, tokens), wanted)


def test_the_top_of_the_whole_vocabulary_is_the_divergence() -> None:
    teacher = logits(1)
    top = top_of(teacher, VOCABULARY + 5)
    alike(lambda own: top_kl(own, top), lambda own: plain_kl(own, teacher))


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_top_counts_the_rest_as_one_token(k: int) -> None:
    teacher = logits(1)

    def merged(own: Tensor) -> Tensor:
        ids = teacher.topk(k).indices
        p, q = teacher.softmax(-1), own.softmax(-1)
        parts = []
        for each in (p, q):
            inside = each.gather(-1, ids)
            parts.append(torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1))
        return (parts[0] * (parts[0].log() - parts[1].log())).sum(-1)

    alike(lambda own: top_kl(own, top_of(teacher, k)), merged)
    assert (top_kl(logits(0), top_of(teacher, k)) <= plain_kl(logits(0), teacher) + 1e-5).all()


def test_a_student_that_agrees_has_no_loss() -> None:
    top = top_of(logits(1), 4)
    torch.testing.assert_close(top_kl(logits(1), top), torch.zeros(2, 5), rtol=0, atol=1e-6)


def test_the_top_is_sorted_and_normalised() -> None:
    top = top_of(logits(1), 3)
    wanted = logits(1).log_softmax(-1).sort(-1, descending=True)
    torch.testing.assert_close(top.logs, wanted.values[..., :3])
    assert torch.equal(top.ids, wanted.indices[..., :3])


def test_every_vector_counts_alike() -> None:
    teacher = torch.tensor([[1.0, 0.0], [1000.0, 0.0]])
    student = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    found = relative_error((student, student), (teacher, 2 * teacher))
    torch.testing.assert_close(found, torch.tensor([(0.25 + 0.5625) / 2, 1.0]))
