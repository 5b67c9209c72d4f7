"""Wanda and SparseGPT in NumPy, written from the papers' formulas.

They look at the weight W (m, n) and at the inputs X (tokens, n) themselves.
"""

from __future__ import annotations

import numpy as np

from prunec.passes.sparse import NofM, Pattern, Share

__all__ = ["gone", "sparsegpt", "wanda"]


def gone(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """What goes of each row (rows, n): the first of a stable sort, of the row or of its groups."""
    rows = (
        [scores]
        if isinstance(pattern, Share)
        else np.split(scores, scores.shape[1] // pattern.of, 1)
    )
    masks = []
    for part in rows:
        count = int(part.shape[1] * pattern.zeros)
        mask = np.zeros(part.shape, dtype=bool)
        for i, row in enumerate(part):
            mask[i, np.argsort(row, kind="stable")[:count]] = True
        masks.append(mask)
    return np.concatenate(masks, 1)


def wanda(w: np.ndarray, x: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Section 3 of the paper: |W_ij| ||X_j||, rows apart."""
    scores = np.abs(w) * np.sqrt((x**2).sum(0))
    return np.where(gone(scores, pattern), 0, w)


def sparsegpt(w: np.ndarray, x: np.ndarray, pattern: Pattern, block: int) -> np.ndarray:
    """Algorithm 1 of the paper, without its lazy updates: every column changes all to its right."""
    w = w.copy()
    hessian = x.T @ x
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    mask = np.zeros(w.shape, dtype=bool)
    for j in range(w.shape[1]):
        width = pattern.of if isinstance(pattern, NofM) else block
        if j % width == 0:
            own = slice(j, min(j + width, w.shape[1]))
            cost = (w[:, own] / np.diag(upper)[own]) ** 2
            if isinstance(pattern, NofM):
                mask[:, own] = gone(cost, pattern)
            else:
                mask[:, own] = gone(cost.reshape(1, -1), pattern).reshape(cost.shape)
        error = np.where(mask[:, j], w[:, j], 0) / upper[j, j]
        w[:, j:] -= np.outer(error, upper[j, j:])
    return np.where(mask, 0, w)
