"""What costs are counted for: sequences at once, tokens in each, and the dtype of the weights."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DECODE", "DTYPES", "PHASES", "PREFILL", "STORED", "Workload", "one_run"]

STORED = "stored"
DTYPES = (STORED, "f32", "bf16", "f16")
"""What weights and cache may be counted in: the checkpoint's own dtypes, or one for all."""

PREFILL, DECODE = PHASES = ("prefill", "decode")
"""What is timed: reading all tokens at once, or the next one of each sequence after them."""


@dataclass(frozen=True)
class Workload:
    """`batch` sequences of `length` tokens; `dtype` is one of `DTYPES`."""

    batch: int = 1
    length: int = 512
    dtype: str = STORED


def one_run(phase: str, batch: int, length: int) -> str:
    """What is read while the time is taken."""
    return f"batch {batch}, {'one token after' if phase == DECODE else 'length'} {length}"
