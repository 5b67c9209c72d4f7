"""What other sizes would cost: curves of every pruned group, and the front that they add up to.

Nothing is measured for it: the curves are errors or scores that the criterion has looked at anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prunec.passes.score import Scores
from prunec.planning.metering import Meter, per_index
from prunec.reports.data import CurveRow, FrontRow

if TYPE_CHECKING:
    from prunec.verbs.pipeline import Pruned

__all__ = ["curve_rows", "front_rows"]

POINTS = 17
"""Of a curve, at most."""

LEFT = tuple(tenths / 10 for tenths in range(10, 0, -1))
"""What stays of every group at the points of a front."""


def curve_rows(pruned: Pruned) -> tuple[CurveRow, ...]:
    """One row for each pruned group of which there are scores or errors."""
    rows = []
    for name, (kind, lost) in _curves(pruned).items():
        size = len(lost) - 1
        at = np.unique(np.linspace(0, size, min(POINTS, size + 1)).round().astype(int))
        values = tuple(round(float(lost[count]), 5) for count in at)
        rows.append(CurveRow(name, kind, tuple(map(int, at)), values))
    return tuple(rows)


def front_rows(
    pruned: Pruned, dense: Meter, meter: Meter, counts: Mapping[str, int]
) -> tuple[FrontRow, ...]:
    """Sizes at which every group keeps the same share, plans that were timed, and the one that was
    carried out, in this order. `dense` and `meter` are those of the whole and of the remaining
    model."""
    curves = {name: lost for name, (_, lost) in _curves(pruned).items()}
    if not curves:
        return ()
    sizes = {name: len(lost) - 1 for name, lost in curves.items()}
    costs = per_index(meter.loaded)
    weights = {name: sizes[name] * max(1, costs.get(name, 1)) for name in curves}
    whole = dense("params", {}), dense("flops", {})

    def row(
        left: Mapping[str, int], seconds: float | None = None, chosen: bool = False
    ) -> FrontRow:
        lost = sum(weights[n] * float(curve[left.get(n, sizes[n])]) for n, curve in curves.items())
        return FrontRow(
            params=round(meter("params", left) / whole[0], 5),
            flops=round(meter("flops", left) / whole[1], 5) if whole[1] else 1.0,
            lost=round(lost / sum(weights.values()), 5),
            seconds=seconds,
            chosen=chosen,
        )

    even = [{n: max(1, round(share * size)) for n, size in sizes.items()} for share in LEFT]
    clock = meter.loaded.clock
    races = [] if clock is None else clock.races
    timed = [row(race.counts, race.left) for race in races if race.counts is not None]
    last = races[-1].left if races else None
    return (*map(row, even), *timed, row(counts, last, chosen=True))


def _curves(pruned: Pruned) -> dict[str, tuple[str, Scores]]:
    """Kind and shares by group: what is lost when so many indices stay, 1 at none, 0 at all."""
    return {
        name: (lost.kind, lost.at / lost.at[0])
        for name, lost in pruned.compressed.lost.items()
        if np.isfinite(lost.at).all() and lost.at[0] > 0
    }
