"""Two factors of a matrix, in the order in which their ranks may go: singular value decomposition.

With inputs X (T tokens, n) and G = X'X = S S' (Cholesky), the output error of any W' is
||X (W - W')'||_F = ||(W - W') S||_F. So the best W' of rank k for these inputs comes from the
decomposition of W S, and its squared error is the sum of the squares of the singular values that
were cut: Wang et al., SVD-LLM (ICLR 2025), section 3.1, theorem 3.2. Eckart and Young give the
same for S = I, where the error is that of the weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Factors", "plain", "whitened"]

Matrix = npt.NDArray[np.float64]

RIDGE = 1e-9
"""Added to the diagonal of G, as a share of its mean: inputs that never vary have no inverse."""


@dataclass(frozen=True)
class Factors:
    """`second` (m, r) times `first` (r, n) is the matrix; rank i weighs `singular` i, falling.

    Cutting the ranks from k on makes an error whose square is the sum of `singular[k:]` squared,
    in the norm that the factors were made for.
    """

    first: Matrix
    second: Matrix
    singular: Matrix


def plain(weight: npt.ArrayLike) -> Factors:
    """Factors of a weight (m, n), r = min(m, n), whose truncation is the best for the weight."""
    return _split(np.asarray(weight, np.float64), None)


def whitened(weight: npt.ArrayLike, gram: Matrix) -> Factors:
    """Factors of a weight (m, n) whose truncation is the best for inputs with this Gram matrix
    (n, n): W = U D V' S^-1 of W S = U D V'."""
    matrix = np.asarray(weight, np.float64)
    return _split(matrix, _root(gram))


def _split(matrix: Matrix, root: Matrix | None) -> Factors:
    u, singular, vt = np.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    if root is not None:
        vt = np.linalg.solve(root.T, vt.T).T
    share = np.sqrt(singular)
    # V' S^-1 may be far larger than U: halves of equal size round alike
    return Factors(share[:, None] * vt, u * share, singular)


def _root(gram: Matrix) -> Matrix:
    """Lower S with S S' = G, with as much of a ridge as it takes."""
    mean = float(np.trace(gram)) / len(gram)
    ridge = RIDGE * (mean or 1.0)
    while True:
        try:
            return np.linalg.cholesky(gram + ridge * np.eye(len(gram))).astype(
                np.float64, copy=False
            )
        except np.linalg.LinAlgError:
            ridge *= 10  # rounding of a Gram matrix of few tokens
