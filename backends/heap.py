"""How much memory activations may take, and giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["BUDGET", "frugal", "trim"]

BUDGET = 256 << 20
"""Bytes of live values kept in memory by default."""

MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8
"""Numbers of settings in glibc's malloc.h."""
OWN, TOP, ARENAS = 256 << 10, 1 << 20, 2


def frugal() -> None:
    """Have glibc give freed memory back at once: blocks from `OWN` bytes on are mapped on their
    own, which by default ends with the first large one that is freed (the threshold grows to 32 MB
    then), and values of batches leave holes that stay resident. Elsewhere nothing happens.

    Each such block is new to the process, so torch takes large ones in large pages, which cost less
    to fault in. For the command line alone, before torch is there: it holds for all of the process.
    """
    if sys.platform != "linux":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None:
        for setting, value in ((MMAP_THRESHOLD, OWN), (TRIM_THRESHOLD, TOP), (ARENA_MAX, ARENAS)):
            choose(setting, value)


def trim() -> None:
    """Return free pages, which glibc keeps among those in use; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
