"""Weights of which some were replaced, such as those that were refitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from prunec.ir.axes import Indices
from prunec.passes.parted import Parted, is_parted
from prunec.passes.profile import Array, Weights

__all__ = ["Overlaid"]


class Overlaid(Mapping[str, Array]):
    """`changed` where it has a weight, else `base`."""

    def __init__(self, base: Weights, changed: Weights) -> None:
        self.base, self.changed = base, changed

    def __getitem__(self, name: str) -> Array:
        return self.changed[name] if name in self.changed else self.base[name]

    def parted(self, name: str) -> bool:
        return name not in self.changed and is_parted(self.base, name)

    def rows(self, name: str, where: slice | Indices) -> Array:
        if name in self.changed:
            return np.array(self.changed[name][where])
        assert isinstance(self.base, Parted)
        return self.base.rows(name, where)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
