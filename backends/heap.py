"""How much memory activations may take, and giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["BUDGET", "trim"]

BUDGET = 256 << 20
"""Bytes of live values kept in memory by default."""


def trim() -> None:
    """Return free pages, which glibc keeps among those in use; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
