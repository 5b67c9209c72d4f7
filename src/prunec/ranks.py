"""The processes of one run: one by default, several under `torchrun` or `accelerate launch`.

The launcher says in the environment which of how many a process is. Every process computes the same
from sums over all of them; the first alone writes and talks.
"""

from __future__ import annotations

import os

__all__ = ["is_first", "rank", "world_size"]


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0
