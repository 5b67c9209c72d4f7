"""Restoration: refit what remains of a consumer so that it does the work of what was removed.

Notation: a consumer has weight W (m outputs, n inputs) and inputs X (T tokens, n); G = X'X,
mu = mean X, C = G - T mu mu'; K is kept and P pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices
from prunec.passes.profile import Moments

__all__ = ["LeastSquares", "Restored"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Restored:
    """A refitted weight of full width (m, n), zero at the pruned columns, and the new bias (m,)
    or None where the layer has none."""

    weight: Matrix
    bias: Matrix | None


@dataclass(frozen=True)
class LeastSquares:
    """Least squares on the kept inputs: W_K + W_P G_PK (G_KK + lambda I)^-1 with
    lambda = ridge * mean(diag G).

    The ridge shrinks the update, not the weights, so that few tokens cannot ruin a layer. With a
    bias, C stands for G and the bias takes W_P mu_P - (W'_K - W_K) mu_K (FLAP, AAAI 2024, eq. 6
    is the case of W unchanged). Limit lambda -> 0: FASP, arXiv 2501.09412, eq. 9.
    """

    ridge: float = 1e-2

    def restore(
        self, weight: Matrix, bias: Matrix | None, moments: Moments, kept: Indices
    ) -> Restored:
        """Refit `weight` (m, n) for the kept columns; `moments.gram` must be there."""
        assert moments.gram is not None
        pruned = np.setdiff1d(np.arange(weight.shape[1]), kept)
        mean = moments.sums / max(moments.tokens, 1)
        gram = moments.gram
        if bias is not None:
            gram = gram - moments.tokens * np.outer(mean, mean)
        update = self._update(weight, gram, kept, pruned)
        result = np.zeros_like(weight)
        result[:, kept] = weight[:, kept] + update
        if bias is not None:
            bias = bias + weight[:, pruned] @ mean[pruned] - update @ mean[kept]
        return Restored(result, bias)

    def _update(self, weight: Matrix, gram: Matrix, kept: Indices, pruned: Indices) -> Matrix:
        inner = gram[np.ix_(kept, kept)]
        scale = float(np.mean(np.diag(gram)))
        if not len(pruned) or scale <= 0:
            return np.zeros((weight.shape[0], len(kept)))
        inner = inner + self.ridge * scale * np.eye(len(kept))
        right = gram[np.ix_(kept, pruned)] @ weight[:, pruned].T
        return np.linalg.solve(inner, right).T.astype(np.float64, copy=False)
