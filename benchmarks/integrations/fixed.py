"""The first output of a model for token ids and a mask of fixed sizes, as phones run it."""

from __future__ import annotations

import numpy as np
import torch
from steps import feeds

import prunec

LENGTH = 32


class Fixed(torch.nn.Module):
    """Takes its inputs by position, gives one tensor."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module.float().eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = self.module(ids, attention_mask=mask, use_cache=False)[0]
        return first


def pair(model: object) -> dict[str, Fixed]:
    """A model dense and pruned by magnitude to 85 % of its parameters."""
    from transformers import AutoModel

    dense = AutoModel.from_pretrained(model, attn_implementation="eager")
    options = {"target": "params=85%", "method": "magnitude", "calibration": "none"}
    small = prunec.load(dense).prune(**options).module
    small.set_attn_implementation("eager")
    return {"dense": Fixed(dense), "pruned": Fixed(small)}


def inputs() -> dict[str, np.ndarray]:
    """One sequence; the last eight tokens are padding."""
    found = feeds(["input_ids", "attention_mask"], 1, LENGTH)
    found["attention_mask"][:, -8:] = 0
    return found


def exported(module: Fixed, given: dict[str, np.ndarray]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        tensors = tuple(torch.from_numpy(x) for x in given.values())
        return torch.export.export(module, tensors, strict=False)
