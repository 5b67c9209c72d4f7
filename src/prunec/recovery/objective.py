"""What training makes small: a weighted sum of losses, and the check that they can be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.recovery.losses import forward_kl, next_token, relative_error, top_kl
from prunec.recovery.teacher import TOKENS, Batch, Outputs, Teacher, run_model

__all__ = ["Objective", "mean_of", "settle_losses"]

MASK, DECODED = "attention_mask", "decoder_input_ids"

COMPARED: dict[str, tuple[Callable[[Outputs], Tensor | None], str, str, str]] = {
    "kl": (lambda said: said.logits, "divergence needs logits for every token",
           "tokens in the vocabulary", "output"),
    "hidden": (lambda said: said.hidden[-1] if said.hidden else None,
               "the model does not give the states of its layers",
               "features in hidden states", "output"),
    "output": (lambda said: said.first, "the model gives no tensor",
               "features in the output", "kl"),
}  # fmt: skip
"""What of the outputs a loss compares, what is wrong where they lack it, what it counts, and the
loss to use then."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses by name (see `options.LOSSES`)."""

    weights: Mapping[str, float]
    teacher: Teacher | None = None

    @property
    def hidden(self) -> bool:
        return "hidden" in self.weights

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """The loss of a model on a batch."""
        parts = self.parts(model, batch)
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        assert isinstance(total, Tensor)
        return total

    def parts(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean of each loss over the positions that are not padding."""
        own = run_model(model, batch, hidden=self.hidden)
        wanted = None if self.teacher is None else self.teacher(batch)
        return {
            name: mean_of(name, _loss(name, own, wanted, batch), batch) for name in self.weights
        }


def settle_losses(
    asked: Mapping[str, float], own: Outputs, wanted: Outputs | None, *, writes: bool
) -> dict[str, float]:
    """The losses that were asked for, or what fits the models: divergence of logits, else of the
    first output; without a teacher cross-entropy. `own` and `wanted` are what student and teacher
    say on the same inputs, `writes` whether the student predicts the next token.

    Raises P872 when a loss cannot be computed and P873 when student and teacher do not compare.
    """
    chosen = dict(asked) or {_fitting(own, wanted): 1.0}
    problems = [problem for name in chosen for problem in _unfit(name, own, wanted, writes)]
    if problems:
        raise PrunecError([d for p in problems for d in p.diagnostics], Exit.USAGE)
    return chosen


def _fitting(own: Outputs, wanted: Outputs | None) -> str:
    if wanted is None:
        return "ce"
    return "output" if own.logits is None or wanted.logits is None else "kl"


def _unfit(name: str, own: Outputs, wanted: Outputs | None, writes: bool) -> Iterator[PrunecError]:
    if name == "ce":
        if own.logits is None or not writes:
            yield _impossible("cross-entropy needs a model that predicts the next token", "kl")
        return
    assert wanted is not None, "options are settled"
    compared, lacks, what, other = COMPARED[name]
    pair = compared(own), compared(wanted)
    if pair[0] is None or pair[1] is None:
        yield _impossible(lacks, other)
    elif pair[0].shape[-1] != pair[1].shape[-1]:
        yield _apart(what, pair[0], pair[1])


def _impossible(fact: str, other: str) -> PrunecError:
    return fail("P872", fact, where="--loss", help=f"use another loss, such as {other}")


def _apart(what: str, own: Tensor, wanted: Tensor) -> PrunecError:
    remedy = "give the dense model that this one was pruned from"
    if what.startswith("features"):
        remedy += "; where their width was pruned only the logits compare: --loss kl"
    return fail(
        "P873",
        f"teacher and student differ in {what}: {wanted.shape[-1]} and {own.shape[-1]}",
        where="--teacher",
        help=remedy,
    )


def _loss(name: str, own: Outputs, wanted: Outputs | None, batch: Batch) -> Tensor:
    if name == "ce":
        assert own.logits is not None, "losses are settled"
        return next_token(own.logits, batch.get(DECODED, batch[TOKENS]))
    assert wanted is not None, "losses are settled"
    match name:
        case "kl":
            assert own.logits is not None, "losses are settled"
            if wanted.top is not None:
                return top_kl(own.logits, wanted.top)
            assert wanted.logits is not None, "losses are settled"
            return forward_kl(own.logits, wanted.logits)
        case "hidden":
            return relative_error(own.hidden[1:], _paired(wanted.hidden, len(own.hidden)))
        case "output":
            assert own.first is not None, "losses are settled"
            assert wanted.first is not None, "losses are settled"
            return relative_error((own.first,), (wanted.first,))
    raise AssertionError(name)


def _paired(states: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The teacher's state for each of the student's `count` - 1 layers: at the same share of the
    depth, the last with the last."""
    layers, own = len(states) - 1, count - 1
    return tuple(states[round(i * layers / own)] for i in range(1, count))


def mean_of(name: str, values: Tensor, batch: Batch) -> Tensor:
    """The mean of a loss over the positions that are not padding."""
    mask = batch.get(MASK)
    if name == "ce" and mask is not None:
        mask = mask[:, 1:]
    if mask is None or mask.shape != values.shape:
        return values.mean()
    weights = mask.to(values.dtype)
    return torch.sum(values * weights) / weights.sum().clamp_min(1)
