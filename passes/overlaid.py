"""Weights of which some were replaced, such as those that were refitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunec.passes.profile import Array, Weights

__all__ = ["Overlaid"]


class Overlaid(Mapping[str, Array]):
    """`changed` where it has a weight, else `base`."""

    def __init__(self, base: Weights, changed: Weights) -> None:
        self.base, self.changed = base, changed

    def __getitem__(self, name: str) -> Array:
        return self.changed[name] if name in self.changed else self.base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
