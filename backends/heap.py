"""Give memory that was freed back to the system."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["trim"]


def trim() -> None:
    """Return free pages, which glibc keeps among those in use; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
