"""What a teacher wants at a batch: computed on the fly, or stored once before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prunec.recovery.losses import Top, top_of
from prunec.recovery.rows import ROW, Inputs, as_batch
from prunec.resume.state import State

__all__ = ["Batch", "Live", "Outputs", "Stored", "Teacher", "run_model", "store"]

Batch = Mapping[str, Tensor]

TOKENS = "input_ids"
HIDDEN = ("hidden_states", "decoder_hidden_states")


@dataclass(frozen=True)
class Outputs:
    """What a model says: logits (batch, length, vocabulary), or the top of their distribution;
    hidden states (batch, length, features) by layer, the embeddings' first; its first output."""

    logits: Tensor | None = None
    top: Top | None = None
    hidden: tuple[Tensor, ...] = ()
    first: Tensor | None = None


class Teacher(Protocol):
    """Gives what the student is to say at a batch."""

    def __call__(self, batch: Batch) -> Outputs: ...


def run_model(model: Any, batch: Batch, *, hidden: bool = False) -> Outputs:
    """Run any module on the batch: a mapping of outputs, a tuple of them, or one tensor."""
    inputs = {name: x for name, x in batch.items() if name != ROW}
    said = model(**inputs, **({"output_hidden_states": True} if hidden else {}))
    if isinstance(said, Tensor):
        said = {"output": said}
    elif isinstance(said, tuple | list):
        said = dict(enumerate(said))
    states = next((said[name] for name in HIDDEN if said.get(name)), ())
    first = next((x for x in said.values() if isinstance(x, Tensor)), None)
    logits = said.get("logits")
    whole = logits is not None and TOKENS in inputs and logits.dim() == 3
    return Outputs(logits if whole else None, None, tuple(states), first)


@dataclass(frozen=True)
class Live:
    """Runs the dense model beside the student. `top` of 0 keeps all logits."""

    model: nn.Module
    top: int
    hidden: bool = False

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        said = run_model(self.model, batch, hidden=self.hidden)
        if said.logits is None or not self.top:
            return said
        return Outputs(None, top_of(said.logits, self.top), said.hidden, said.first)


@dataclass(frozen=True)
class Stored:
    """The top of the teacher's distributions, from the state folder of the run."""

    state: State
    device: torch.device

    def __call__(self, batch: Batch) -> Outputs:
        found = [self._window(int(row)) for row in batch[ROW]]
        logs, ids = (torch.stack(parts).to(self.device) for parts in zip(*found, strict=True))
        return Outputs(top=Top(logs, ids))

    def _window(self, row: int) -> tuple[Tensor, Tensor]:
        arrays = self.state.load(name_of(row))
        assert arrays is not None, "every window was stored before training"
        return torch.from_numpy(arrays["logs"]), torch.from_numpy(arrays["ids"].astype(np.int64))


def store(
    teacher: Live,
    inputs: Inputs,
    state: State,
    device: torch.device,
    advance: Callable[[int], None],
) -> Stored:
    """Run the teacher on every window that `state` does not hold yet."""
    for row in range(len(next(iter(inputs.values())))):
        if state.load(name_of(row)) is None:
            top = teacher(as_batch(inputs, [row], device)).top
            assert top is not None, "the teacher gives logits"
            ids = top.ids[0].to(torch.int32)
            state.save(name_of(row), {"logs": top.logs[0].cpu().numpy(), "ids": ids.cpu().numpy()})
        advance(1)
    return Stored(state, device)


def name_of(row: int) -> str:
    """The step of the state that holds a window."""
    return f"logits-{row}"
