"""The processes of one run: one by default, several under `torchrun` or `accelerate launch`.

The launcher says in the environment which of how many a process is. Every process computes the same
from sums over all of them; the first alone writes and talks.
"""

from __future__ import annotations

import os

__all__ = ["is_first", "join", "meet", "rank", "world_size"]


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def join() -> None:
    """Be able to talk to the other processes."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        both = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo")


def meet() -> None:
    """Wait until every process is here."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    join()
    dist.barrier()
