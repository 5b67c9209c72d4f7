"""Training rows: which window is read at which step, decided by the seed alone.

One pass over `Rows` is the whole training. The order is written down before it starts, so that a
run that goes on from a checkpoint reads what the uninterrupted one would have read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ROW", "Inputs", "Rows", "as_batch", "batches"]

Inputs = Mapping[str, npt.NDArray[Any]]
"""Inputs of a model by name, one row a window in the first dimension."""

ROW = "prunec_row"
"""In a batch, which windows its rows are."""


class Rows(Dataset[dict[str, Tensor]]):
    """`count` rows out of the first `windows` of `inputs`: each window once, in an order drawn
    anew for every time round."""

    def __init__(self, inputs: Inputs, windows: int, count: int, seed: int) -> None:
        self.inputs = inputs
        rng = np.random.default_rng(seed)
        rounds = [rng.permutation(windows) for _ in range(-(-count // windows))]
        self.order = np.concatenate(rounds)[:count]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = as_batch(self.inputs, [int(self.order[index])])
        return {name: tensor[0] for name, tensor in batch.items()}


def as_batch(
    inputs: Inputs, rows: Sequence[int], device: torch.device | None = None
) -> dict[str, Tensor]:
    """Some windows as a batch."""
    chosen = list(rows)
    batch = {name: torch.from_numpy(array[chosen]).to(device) for name, array in inputs.items()}
    return batch | {ROW: torch.tensor(chosen)}


def batches(
    inputs: Inputs, rows: Sequence[int], size: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Windows in batches of at most `size`, in order."""
    starts = range(0, len(rows), size)
    return [as_batch(inputs, rows[start : start + size], device) for start in starts]
