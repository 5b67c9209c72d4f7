"""Find the multiple of which widths must be for a runtime to run them well."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from prunec.passes.allocators.budget import WIDE
from prunec.timing.clock import Clock, Kind

__all__ = ["liked_multiple"]

STEPS = (1, 2, 4, 8, 16, 32)
SURE = 64
"""A multiple of it is taken to run as well as any width does."""

SLACK = 0.03
"""A width runs well when it takes no more than this share longer than its neighbours that are
multiples of `SURE` suggest: about what two measurements of one program differ by."""


def liked_multiple(clock: Clock, groups: Iterable[str]) -> int:
    """The least power of two, up to 32, whose multiples all run well; measured on the widest of
    the groups. 1 where no group is wide."""
    names = set(groups)
    places = [
        (kind.nodes[i][-1], kind, i)
        for kind, members in _kinds(clock)
        for i, name in enumerate(members)
        if name in names
    ]
    size, kind, place = max(places, key=lambda found: found[0], default=(0, None, 0))
    if kind is None or size < 4 * SURE:
        return 1
    base = (size * 3 // 4) // SURE * SURE
    ends = [_ratio(clock, kind, place, base), _ratio(clock, kind, place, base + SURE)]
    liked = 1
    for step in STEPS:
        expected = float(np.interp(step, [0, SURE], ends))
        if _ratio(clock, kind, place, base + step) > (1 + SLACK) * expected:
            liked = 2 * step
    return min(liked, max(1, size // WIDE))


def _kinds(clock: Clock) -> Iterable[tuple[Kind, tuple[str, ...]]]:
    return [(block.kind, block.groups) for block in clock.blocks if block.layer is not None]


def _ratio(clock: Clock, kind: Kind, place: int, count: int) -> float:
    counts = (*kind.dense[:place], count, *kind.dense[place + 1 :])
    return clock.ratio_at(kind, counts)
