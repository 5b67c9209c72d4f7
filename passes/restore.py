"""Restoration: refit what remains of a consumer so that it does the work of what was removed.

Notation: a consumer has weight W (m outputs, n inputs) and inputs X (T tokens, n); G = X'X,
mu = mean X; Y (T, m) is what it should give, C = Y'X; K is kept and P pruned. Without targets
from elsewhere Y = XW', so that C = WG. A consumer with a bias is refitted about the means, with
G - T mu mu' for G and so on, and the bias takes what the means then lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from prunec.ir.axes import Indices
from prunec.passes.definite import solve, subtract
from prunec.passes.paged import blocks, diagonal
from prunec.passes.profile import Array, Sample, Seen

__all__ = [
    "RESTORERS",
    "BiasOnly",
    "CrossStream",
    "LeastSquares",
    "ObsUpdate",
    "Restored",
    "Restorer",
]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Restored:
    """A refitted weight of full width (m, n) in the dtype that it had, zero at the pruned columns,
    and the new bias (m,) or None where the layer has none."""

    weight: Array
    bias: Matrix | None


class Restorer(Protocol):
    """Repairs a consumer. `needs` is what the stream must observe; one that `compensates` also
    improves layers of which nothing was pruned."""

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def compensates(self) -> bool: ...

    def restore(
        self, weight: Array, bias: Matrix | None, seen: Seen, kept: Indices
    ) -> Restored: ...


@dataclass(frozen=True)
class BiasOnly:
    """The bias takes what the removed inputs gave on average, W_P mu_P (FLAP, AAAI 2024, eq. 6).

    A layer without a bias is left as it is: a new one would not fit the stock class.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    compensates: ClassVar[bool] = False

    def restore(self, weight: Array, bias: Matrix | None, seen: Seen, kept: Indices) -> Restored:
        update = np.zeros((len(weight), len(kept)))
        return _assembled(weight, bias, update, seen.whole, kept)


@dataclass(frozen=True)
class LeastSquares:
    """Least squares on the kept inputs: W_K + (C_K - W_K G_KK) (G_KK + lambda I)^-1 with
    lambda = ridge * mean(diag G), which is W_K + W_P G_PK (G_KK + lambda I)^-1 without targets.

    The ridge shrinks the update, not the weights, so that few tokens cannot ruin a layer. Of
    `ridges` the one is taken that leaves the least error on held-out tokens, and of its update the
    share (0 to 1) that does: restoring is never worse there than the bias alone. What was chosen
    is then fitted on all tokens. Without held-out tokens the first of `ridges` holds, unshared.
    One ridge -> 0: FASP, arXiv 2501.09412, eq. 9.
    """

    ridges: tuple[float, ...] = (1e-2, 1e-3, 1e-1, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "held"})
    compensates: ClassVar[bool] = False

    def restore(self, weight: Array, bias: Matrix | None, seen: Seen, kept: Indices) -> Restored:
        """Refit `weight` (m, n) for the kept columns; the Gram matrix must have been observed."""
        centred = bias is not None
        whole = seen.whole
        ridge, share = self.ridges[0], 1.0
        if seen.held is not None:
            fit = _Problem(weight, seen.fit, kept, centred)
            held = _Problem(weight, seen.held, kept, centred)
            ridge, share = self._chosen(fit, held)
            del fit, held
        update = _Problem(weight, whole, kept, centred).update(ridge)
        update *= share
        return _assembled(weight, bias, update, whole, kept)

    def _chosen(self, fit: _Problem, held: _Problem) -> tuple[float, float]:
        """The ridge and the share of its update with the least error on the held-out tokens."""
        found = []
        for ridge in self.ridges:
            update = fit.update(ridge)
            gain = float(np.vdot(update, held.lacking))
            size = held.error(update)
            share = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
            found.append((share * share * size - 2 * share * gain, ridge, share))
        _, ridge, share = min(found, key=lambda row: row[0])
        return ridge, share


@dataclass(frozen=True)
class ObsUpdate(LeastSquares):
    """The update of an OBS sweep, which is least squares with the ridge of the sweep, unshrunk
    (`prunec.passes.obs.update`)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})


@dataclass(frozen=True)
class CrossStream(LeastSquares):
    """Least squares on the inputs of the pruned program with the outputs of the dense one, and
    what the residual stream has lost by then, as targets: each layer makes up for the errors of
    those before it, and layers of which nothing was pruned help.

    Targets of the dense stream as in OSSCAR's and SparseGPT's layer-wise problems; the residual
    term is ours.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram", "held", "targets"})
    compensates: ClassVar[bool] = True


class _Problem:
    """One least-squares problem: `lacking` is C_K - W_K G_KK. The matrix G_KK is not held: it is
    read some rows at a time, and whole where it is solved with."""

    def __init__(self, weight: Array, sample: Sample, kept: Indices, centred: bool) -> None:
        moments, targets = sample.moments, sample.targets
        assert moments.gram is not None, "the Gram matrix was not asked for"
        self.gram, self.kept = moments.gram, kept
        self.sums = moments.sums
        self.mean = moments.sums / max(moments.tokens, 1) if centred else np.zeros_like(self.sums)
        self.scale = float(np.mean(diagonal(self.gram) - self.sums * self.mean))
        if targets is None:
            read = np.setdiff1d(np.arange(weight.shape[1]), kept)
            self.lacking = np.zeros((len(weight), len(kept)))
        else:
            read = kept
            self.lacking = targets.cross[:, kept]
            if centred:
                subtract(self.lacking, targets.sums[:, None], self.mean[kept][:, None])
        for rows, block in self._rows(read):
            factor = weight[:, read[rows]].astype(np.float64)
            subtract(self.lacking, factor if targets is not None else -factor, block.T)

    def _rows(self, indices: Indices) -> Iterator[tuple[slice, Matrix]]:
        """Rows of the (centred) matrix, at the columns that are kept."""
        for rows, block in blocks(self.gram, indices):
            found = block[:, self.kept]
            found -= np.outer(self.sums[indices[rows]], self.mean[self.kept])
            yield rows, found

    def update(self, ridge: float) -> Matrix:
        """(C_K - W_K G_KK) (G_KK + lambda I)^-1."""
        if self.scale <= 0 or not self.lacking.any():
            return np.zeros_like(self.lacking)
        inner = np.empty((len(self.kept), len(self.kept)))
        for rows, block in self._rows(self.kept):
            inner[rows] = block
        inner[np.diag_indices(len(inner))] += ridge * self.scale
        return solve(inner, self.lacking.copy())

    def error(self, update: Matrix) -> float:
        """tr(D G_KK D') of a change D of the weight."""
        return sum(
            float(np.vdot(update @ block.T, update[:, rows]))
            for rows, block in self._rows(self.kept)
        )


def _assembled(
    weight: Array, bias: Matrix | None, update: Matrix, sample: Sample, kept: Indices
) -> Restored:
    """The new weight, and the bias that makes its mean output right; `update` is lost.

    A weight may have several rows for each output (the taps of a convolution): the bias takes
    what all of them lack.
    """
    update += weight[:, kept]
    result = np.zeros_like(weight)
    result[:, kept] = update
    if bias is None:
        return Restored(result, None)
    tokens = max(sample.moments.tokens, 1)
    mean = sample.moments.sums / tokens
    given = update @ mean[kept]
    if sample.targets is not None:
        return Restored(result, sample.targets.sums / tokens - given)
    lacking = (weight @ mean - given).reshape(len(bias), -1).sum(1)
    return Restored(result, bias + lacking)


RESTORERS: Mapping[str, Restorer | None] = {
    "none": None,
    "bias": BiasOnly(),
    "ls": LeastSquares(),
    "obs": ObsUpdate(),
    "cross": CrossStream(),
}
"""Restorers by the names that `--restore` takes."""
