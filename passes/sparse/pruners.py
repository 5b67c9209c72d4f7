"""Which entries of a layer become zero, and what the others become.

A layer is a table (parts, outputs, taps, n): `parts` matrices, each with inputs of its own whose
moments are given. Entries of an output compete with each other (a row), or those of the whole
layer; in an N:M pattern the neighbours along the inputs n, for each output and tap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from prunec.passes.definite import subtract, upper_factor
from prunec.passes.paged import loaded
from prunec.passes.profile import Moments
from prunec.passes.sparse.patterns import NofM, Pattern, count_of, smallest

__all__ = ["COMPARE", "Magnitude", "Pruner", "SparseGPT", "Wanda", "pruner"]

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

COMPARE = ("row", "layer")
"""Which entries compete where no N:M pattern says it."""

CHUNK = 1 << 21
"""Scores that are computed at a time."""


class Pruner(Protocol):
    """A method. `needs` is what the stream must observe, None when it needs no stream."""

    @property
    def needs(self) -> frozenset[str] | None: ...

    def prune(self, table: Array, moments: Sequence[Moments], pattern: Pattern) -> Array:
        """The table with zeros; `moments` one a part, empty without a stream."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """The smallest |W_ij| go."""

    compare: str = "layer"
    needs: ClassVar[frozenset[str] | None] = None

    def prune(self, table: Array, moments: Sequence[Moments], pattern: Pattern) -> Array:
        ones = np.ones((len(table), table.shape[-1]))
        return _without_smallest(table, ones, pattern, self.compare)


@dataclass(frozen=True)
class Wanda:
    """The smallest |W_ij| ||X_j|| go; nothing else changes (Sun et al., ICLR 2024, arXiv
    2306.11695, section 3). Entries of one output compete, by default."""

    compare: str = "row"
    needs: ClassVar[frozenset[str] | None] = frozenset()

    def prune(self, table: Array, moments: Sequence[Moments], pattern: Pattern) -> Array:
        norms = np.stack([m.norms for m in moments])
        return _without_smallest(table, norms, pattern, self.compare)


def _without_smallest(table: Array, norms: Matrix, pattern: Pattern, compare: str) -> Array:
    """The table without the entries of the smallest |W| * norm; `norms` (parts, n)."""
    if compare == "layer" and not isinstance(pattern, NofM):
        scores = np.abs(table) * norms[:, None, None]
        gone = smallest(scores.reshape(-1), count_of(table.size, pattern.zeros))
        return np.where(gone.reshape(table.shape), table.dtype.type(0), table)
    found = table.copy()
    for part, weights in zip(norms, found, strict=True):
        step = max(1, CHUNK // weights[0].size)
        for start in range(0, len(weights), step):
            rows = weights[start : start + step]
            rows[_gone(np.abs(rows) * part, pattern)] = 0
    return found


def _gone(scores: Matrix, pattern: Pattern) -> Mask:
    """The entries that go; `scores` (outputs, taps, n)."""
    if isinstance(pattern, NofM):
        groups = scores.reshape(*scores.shape[:-1], -1, pattern.of)
        return smallest(groups, pattern.of - pattern.kept).reshape(scores.shape)
    rows = scores.reshape(len(scores), -1)
    return smallest(rows, count_of(rows.shape[1], pattern.zeros)).reshape(scores.shape)


@dataclass(frozen=True)
class SparseGPT:
    """Columns are visited from left to right; an entry that goes is made up for by the columns to
    its right (Frantar and Alistarh, ICML 2023, arXiv 2301.00774, algorithm 1).

    With U'U = (X'X + damp mean(diag X'X) I)^-1, U upper triangular, the entry w of column j costs
    (w / U_jj)^2, and zeroing it changes the columns k > j of its row by -(w / U_jj) U_jk. The mask
    is chosen for `block` columns at once among all their rows, in an N:M pattern for M columns and
    each row. A column that was never anything but zero is removed.
    """

    block: int = 128
    damp: float = 0.01
    needs: ClassVar[frozenset[str] | None] = frozenset({"gram"})

    def prune(self, table: Array, moments: Sequence[Moments], pattern: Pattern) -> Array:
        found = np.empty_like(table)
        for part, seen in enumerate(moments):
            assert seen.gram is not None, "the Gram matrix was not asked for"
            matrix = table[part].reshape(-1, table.shape[-1]).astype(np.float64)
            pruned = self._swept(matrix, seen.gram, pattern)
            found[part] = pruned.reshape(table.shape[1:])
        return found

    def _swept(self, weight: Matrix, gram: Matrix, pattern: Pattern) -> Matrix:
        """`weight` (m, n) in its own memory."""
        hessian = loaded(gram)
        dead = np.diag(hessian) == 0
        hessian[dead, dead] = np.mean(np.diag(hessian)[~dead]) if not dead.all() else 1
        weight[:, dead] = 0
        hessian[np.diag_indices(len(hessian))] += self.damp * np.mean(np.diag(hessian))
        upper = upper_factor(hessian)
        width = self.block
        if isinstance(pattern, NofM):  # no group lies across two blocks
            width = max(1, width // pattern.of) * pattern.of
        for start in range(0, weight.shape[1], width):
            stop = min(start + width, weight.shape[1])
            errors = self._block(weight[:, start:stop], upper[start:stop, start:stop], pattern)
            subtract(weight[:, stop:], errors, upper[start:stop, stop:].T)
        return weight

    def _block(self, weight: Matrix, upper: Matrix, pattern: Pattern) -> Matrix:
        """Prune the columns of a block in place; the errors that it leaves, each w / U_jj."""
        scale = np.diag(upper)
        errors = np.zeros_like(weight)
        gone: Mask = np.zeros(weight.shape, dtype=bool)
        if not isinstance(pattern, NofM):
            cost = (weight / scale) ** 2
            gone = smallest(cost.reshape(-1), count_of(cost.size, pattern.zeros))
            gone = gone.reshape(weight.shape)
        for j in range(weight.shape[1]):
            if isinstance(pattern, NofM) and j % pattern.of == 0:
                group = slice(j, j + pattern.of)
                cost = (weight[:, group] / scale[group]) ** 2
                gone[:, group] = smallest(cost, pattern.of - pattern.kept)
            errors[:, j] = np.where(gone[:, j], weight[:, j], 0) / scale[j]
            weight[:, j + 1 :] -= np.outer(errors[:, j], upper[j, j + 1 :])
            weight[gone[:, j], j] = 0
        return errors


def pruner(method: str, compare: str) -> Pruner:
    """A method by the name that `--method` takes; `compare` is one of `COMPARE`, or `auto` for the
    method's own."""
    if method == "sparsegpt":
        return SparseGPT()
    assert method in ("magnitude", "wanda"), method
    made: type[Magnitude | Wanda] = Magnitude if method == "magnitude" else Wanda
    return made(compare) if compare in COMPARE else made()
