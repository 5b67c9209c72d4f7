"""How far the outputs of one ONNX model are from those of another."""

from __future__ import annotations

import math

import numpy as np

from prunec.backends.ort_program import Array, Env

__all__ = ["Distance"]


class Distance:
    """How far outputs are from the dense ones: the mean divergence of distributions where there
    are logits, else the squared difference over the squares."""

    def __init__(self, logits: bool) -> None:
        self.logits, self.total, self.count = logits, 0.0, 0.0

    def add(self, dense: Env, small: Env) -> None:
        if self.logits:
            wanted, found = (_log_softmax(outputs["logits"]) for outputs in (dense, small))
            parts = (np.exp(wanted) * (wanted - found)).sum(-1)
            self.total += float(parts.sum(dtype=np.float64))
            self.count += parts.size
            return
        for name, value in dense.items():
            if value.dtype.kind != "f":
                continue
            wanted, found = value.astype(np.float64), small[name].astype(np.float64)
            self.total += float(np.square(found - wanted).sum())
            self.count += float(np.square(wanted).sum())

    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan


def _log_softmax(x: Array) -> Array:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    found: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return found
