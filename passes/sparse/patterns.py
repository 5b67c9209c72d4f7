"""Patterns of zeros: a share of the entries, or so many of each group along the inputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = ["NofM", "Pattern", "Share", "count_of", "parse_pattern", "smallest", "violations"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Share:
    """A share of the entries is zero, wherever they lie; more than none, less than all."""

    zeros: float

    def __str__(self) -> str:
        return f"{100 * self.zeros:g}%"


@dataclass(frozen=True)
class NofM:
    """Of each `of` neighbours along the inputs at most `kept` are not zero (Mishra et al.,
    Accelerating Sparse Deep Neural Networks, arXiv 2104.08378: 2:4)."""

    kept: int
    of: int

    @property
    def zeros(self) -> float:
        return 1 - self.kept / self.of

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


Pattern = Share | NofM


def parse_pattern(text: str) -> Pattern:
    """`50%` or `0.5` of the entries, or `2:4`; raises PrunecError (P850, exit 2)."""
    text = text.strip()
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        kept, of = int(found[1]), int(found[2])
        if not 0 < kept < of:
            raise _refused(text, f"{kept} of {of} entries stay: nothing or everything would go")
        return NofM(kept, of)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text):
        zeros = float(found[1]) / (100 if found[2] else 1)
        if not 0 < zeros < 1:
            raise _refused(text, "it must lie between 0 and 100 %, both excluded")
        return Share(zeros)
    raise _refused(text, "it is neither a percentage nor N:M")


def _refused(text: str, reason: str) -> PrunecError:
    return fail(
        "P850",
        f"sparsity {text!r} cannot be asked for: {reason}",
        where="--sparsity",
        help="say how much becomes zero, such as 50%, or how many of each group stay, such as 2:4",
        exit_code=Exit.USAGE,
    )


def count_of(entries: int, share: float) -> int:
    """How many of so many entries a share is, rounded down. A share that was computed as
    count / entries gives the count back."""
    return int(entries * share + 1e-6)


def smallest(scores: npt.NDArray[Any], count: int) -> Mask:
    """True at the `count` least entries along the last dimension, ties by lower index: the first
    of a stable sort."""
    if count <= 0:
        return np.zeros(scores.shape, dtype=bool)
    if count >= scores.shape[-1]:
        return np.ones(scores.shape, dtype=bool)
    limit = np.partition(scores, count - 1, axis=-1)[..., count - 1 : count]
    found: Mask = scores < limit
    missing = count - found.sum(-1, keepdims=True)
    ties = scores == limit
    if (ties.sum(-1, keepdims=True) > missing).any():
        ties &= np.cumsum(ties, -1) <= missing
    found |= ties
    return found


def violations(weight: npt.NDArray[Any], dim: int, pattern: NofM) -> int:
    """Groups of neighbours along `dim` with too many entries that are not zero."""
    moved = np.moveaxis(weight, dim, -1) != 0
    groups = moved.reshape(*moved.shape[:-1], -1, pattern.of)
    return int(np.count_nonzero(groups.sum(-1) > pattern.kept))
