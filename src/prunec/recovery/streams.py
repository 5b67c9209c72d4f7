"""The states between the blocks of a model, on disk: one file for each way through and block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["Streams"]

States = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Streams:
    """States in float32, one row a window in the first dimension, mapped and not read."""

    folder: Path

    def path(self, way: str, block: int) -> Path:
        """The file of what reaches a block."""
        return self.folder / f"{way}-{block}.npy"

    def open(self, way: str, block: int) -> States:
        found: States = np.load(self.path(way, block), mmap_mode="r")
        return found

    def write(self, way: str, block: int, windows: int, parts: Iterable[Tensor]) -> None:
        """Keep states, given some windows at a time; they are there wholly or not at all."""
        partial = self.folder / f"{way}.partial"
        kept: Any = None
        at = 0
        for part in parts:
            if kept is None:
                shape = (windows, *part.shape[1:])
                kept = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            kept[at : at + len(part)] = part.float().cpu().numpy()
            at += len(part)
        assert at == windows, "every window has a state"
        kept.flush()
        del kept
        partial.rename(self.path(way, block))

    def forget(self, way: str, before: int) -> None:
        """Let go of what reached the blocks before one."""
        for path in self.folder.glob(f"{way}-*.npy"):
            if int(path.stem.rpartition("-")[2]) < before:
                path.unlink()
