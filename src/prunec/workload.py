"""What costs are counted for: sequences at once, tokens in each, and the dtype of the weights."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DTYPES", "STORED", "Workload"]

STORED = "stored"
DTYPES = (STORED, "f32", "bf16", "f16")
"""What weights and cache may be counted in: the checkpoint's own dtypes, or one for all."""


@dataclass(frozen=True)
class Workload:
    """`batch` sequences of `length` tokens; `dtype` is one of `DTYPES`."""

    batch: int = 1
    length: int = 512
    dtype: str = STORED
