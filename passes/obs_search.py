"""Local search after a sweep: exchange a block that stays for one that is gone.

With K kept and P pruned, hold the tableau that the sweep operator makes of the normal equations
(Goodnight, The American Statistician 1979): T = [-H_KK^-1, Y; Y', H_PP - H_PK Y] with
Y = H_KK^-1 H_KP, and R = [W*, WH_P - W* H_KP]: the optimal weights of what stays, and for the rest
the slopes of the error. Taking a block J in or out is one and the same step,

    T <- T - T_:J (T_JJ)^-1 T_J:        R <- R - R_J (T_JJ)^-1 T_J:

and what it saves or costs is tr((T_JJ)^-1 R_J' R_J), up to the sign. Of R only R'R is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices
from prunec.passes.obs import Quadratic, arranged, inverted, traces
from prunec.passes.pending import Pending

__all__ = ["improve"]

Matrix = npt.NDArray[np.float64]

GAIN = 1e-9
"""An exchange must save this share of what it brings in, or rounding could go in circles."""


def improve(
    problems: Sequence[Quadratic], kept: Indices, swaps: int, rows: Indices | None = None
) -> Indices:
    """The kept blocks after at most `swaps` exchanges, ascending; never with a larger error.

    Each exchange takes in the block that saves the most and then takes out the one that costs the
    least, of the same row where `rows` (k,) are given; the search ends when that saves nothing.
    After OSSCAR, ICML 2024, section 3.3, which tries more pairs a round.
    """
    count = len(problems[0].blocks)
    inside = np.zeros(count, dtype=bool)
    inside[kept] = True
    if not swaps or inside.all() or not inside.any():
        return np.flatnonzero(inside)
    rows = np.zeros(count, dtype=np.int64) if rows is None else rows
    tableaus = [_Tableau(p, inside) for p in problems]
    open_rows = np.ones(count, dtype=bool)
    for _ in range(swaps):
        values = _values(tableaus)
        gains = np.where(~inside & open_rows, values, -np.inf)
        new = int(np.argmax(gains))
        if gains[new] == -np.inf:
            break
        _flip(tableaus, inside, new)
        costs = np.where(inside & (rows == rows[new]), _values(tableaus), np.inf)
        old = int(np.argmin(costs))
        _flip(tableaus, inside, old)
        if costs[old] >= gains[new] * (1 - GAIN):
            open_rows[rows == rows[new]] = False
            if old != new:  # no better: as it was
                _flip(tableaus, inside, old)
                _flip(tableaus, inside, new)
    return np.flatnonzero(inside)


def _values(tableaus: Sequence[_Tableau]) -> Matrix:
    found: Matrix = sum((t.values() for t in tableaus[1:]), start=tableaus[0].values())
    return found


def _flip(tableaus: Sequence[_Tableau], inside: npt.NDArray[np.bool_], block: int) -> None:
    for tableau in tableaus:
        tableau.pivot(block, bool(inside[block]))
    inside[block] = ~inside[block]


class _Tableau:
    """T and R'R of one problem."""

    def __init__(self, problem: Quadratic, inside: npt.NDArray[np.bool_]) -> None:
        hessian, outer, size = arranged(problem)
        stays = np.ones(len(hessian), dtype=bool)
        stays[: len(inside) * size] = np.repeat(inside, size)
        k, p = np.flatnonzero(stays), np.flatnonzero(~stays)
        inverse = np.linalg.inv(hessian[np.ix_(k, k)])
        across = inverse @ hessian[np.ix_(k, p)]
        table = np.empty_like(hessian)
        table[np.ix_(k, k)] = -inverse
        table[np.ix_(k, p)] = across
        table[np.ix_(p, k)] = across.T
        table[np.ix_(p, p)] = hessian[np.ix_(p, p)] - hessian[np.ix_(p, k)] @ across
        # R = W Z, so R'R = Z' W'W Z
        z = np.empty_like(hessian)
        z[:, k] = hessian[:, k] @ inverse
        z[:, p] = hessian[:, p] - hessian[:, k] @ across
        self.pending = Pending(table, z.T @ outer @ z, len(inside), size)
        self.everything = np.ones(len(inside), dtype=bool)

    def values(self) -> Matrix:
        """What each block outside would save by coming in, or inside cost by going out."""
        return np.abs(traces(self.pending))

    def pivot(self, block: int, inside: bool) -> None:
        """Take a block in or out. With z = T_:J, where z_J loses the sign, the step is
        T - z (T_JJ)^-1 z' and R - R_J (T_JJ)^-1 z', but for twice the sign on T_JJ's diagonal."""
        if self.pending.full:
            self.pending.settle(self.everything)
        own = self.pending.rows(block)
        sign = (-1.0 if inside else 1.0) * np.eye(self.pending.size)
        left, outer = self.pending.columns(block)
        inner = inverted(left[own])
        left[own] -= sign
        factor = left @ inner
        self.pending.add(left, factor, outer - factor @ outer[own] / 2)
        self.pending.first[own, own] -= 2 * sign
        self.pending.own_first[block] -= 2 * sign
