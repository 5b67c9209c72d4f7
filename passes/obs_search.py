"""Local search after a sweep: exchange a block that stays for one that is gone.

With K kept and P pruned, hold the tableau that the sweep operator makes of the normal equations
(Goodnight, The American Statistician 1979): T = [-H_KK^-1, Y; Y', H_PP - H_PK Y] with
Y = H_KK^-1 H_KP, and R = [W*, WH_P - W* H_KP]: the optimal weights of what stays, and for the rest
the slopes of the error. Taking a block J in or out is one and the same step,

    T <- T - T_:J (T_JJ)^-1 T_J:        R <- R - R_J (T_JJ)^-1 T_J:

and what it saves or costs is tr((T_JJ)^-1 R_J' R_J), up to the sign. Of R only R'R is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices
from prunec.passes.obs import Quadratic, arranged, inverted, traces
from prunec.passes.pending import Pending

__all__ = ["improve"]

Matrix = npt.NDArray[np.float64]

GAIN = 1e-9
"""An exchange must save this share of what it brings in, or rounding could go in circles."""

TRIES = 64
"""Newcomers that are tried in vain before the search ends."""


def improve(
    problems: Iterable[Quadratic], kept: Indices, swaps: int, rows: Indices | None = None
) -> Indices:
    """The kept blocks after at most `swaps` exchanges, ascending; never with a larger error.

    Each exchange takes in the block that saves the most and then takes out the one that costs the
    least, of the same row where `rows` (k,) are given. Where that does not pay, the next best
    newcomer is tried. After OSSCAR, ICML 2024 (local search with low rank updates), which goes
    through sets of pairs instead.
    """
    tableaus = [_Tableau(problem, kept) for problem in problems]
    inside = tableaus[0].inside
    if inside.all() or not inside.any():
        return np.flatnonzero(inside)
    rows = np.zeros(len(inside), dtype=np.int64) if rows is None else rows
    fresh = ~inside
    failures = 0
    while swaps and fresh.any() and failures < TRIES:
        values = _sum([t.values() for t in tableaus])
        new = int(np.argmax(np.where(fresh, values, -np.inf)))
        costs = _sum([t.with_block(new) for t in tableaus])
        old = int(np.argmin(np.where(inside & (rows == rows[new]), costs, np.inf)))
        if costs[old] >= values[new] * (1 - GAIN):
            failures += 1
            fresh[new] = False
            continue
        for tableau in tableaus:
            tableau.pivot(new, inside=False)
            tableau.pivot(old, inside=True)
        inside[new], inside[old] = True, False
        swaps, failures, fresh = swaps - 1, 0, ~inside
    return np.flatnonzero(inside)


def _sum(parts: Sequence[Matrix]) -> Matrix:
    found: Matrix = np.sum(parts, axis=0)
    return found


class _Tableau:
    """T and R'R of one problem, with inputs scaled so that the diagonal of H is one."""

    def __init__(self, problem: Quadratic, kept: Indices) -> None:
        inside = np.zeros(len(problem.blocks), dtype=bool)
        inside[kept] = True
        self.inside = inside
        hessian, outer, size = arranged(problem)
        scale = np.sqrt(np.diag(hessian))
        hessian = hessian / np.outer(scale, scale)
        outer = outer * np.outer(scale, scale)
        stays = np.ones(len(hessian), dtype=bool)
        stays[len(stays) - len(inside) * size :] = np.repeat(inside, size)
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

    def values(self) -> Matrix:
        """What each block outside would save by coming in, or inside cost by going out."""
        return np.abs(traces(self.pending.own_first, self.pending.own_second))

    def with_block(self, block: int) -> Matrix:
        """The values once a block has come in."""
        left, factor, slope, inner = self._step(block, 1.0)
        first, second = self.pending.after(left, factor, slope)
        first[block] = -inner
        return np.abs(traces(first, second))

    def pivot(self, block: int, *, inside: bool) -> None:
        """Take a block in, or out when it is inside."""
        if self.pending.full:
            self.pending.settle(np.ones(self.pending.count, dtype=bool))
        left, factor, slope, inner = self._step(block, -1.0 if inside else 1.0)
        self.pending.add(left, factor, slope)
        self.pending.correct(block, -inner)

    def _step(self, block: int, sign: float) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """With z = T_:J, but z_J = T_JJ - sign, the step is T - z (T_JJ)^-1 z' and
        R - R_J (T_JJ)^-1 z', except for the block T_JJ, which becomes its negative inverse."""
        own = self.pending.rows(block)
        left, outer = self.pending.columns(block)
        inner = inverted(left[own])
        left[own] -= sign * np.eye(self.pending.size)
        factor = left @ inner
        return left, factor, outer - factor @ outer[own] / 2, inner
