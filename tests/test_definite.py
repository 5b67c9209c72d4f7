"""Work in a matrix's own memory gives what NumPy gives in memory of its own."""

from __future__ import annotations

import numpy as np
import pytest

from prunec.passes import definite
from prunec.passes.definite import invert, solve, subtract, upper_factor

SIZES = (1, 95, 96, 250)
PARTS = (1, 8 * 154 * 110)
"""Bytes of a product: one panel at a time; and 110 rows of what is behind the first panel of the
largest matrix, which end within a panel."""
EXACT = 1e-10
"""Relative: the matrices' condition numbers are below 10^3, and numbers have 16 digits."""


@pytest.fixture(autouse=True, params=PARTS)
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are computed in several parts even where the matrix is small."""
    monkeypatch.setattr(definite, "WORK", request.param)


def positive(size: int) -> np.ndarray:
    x = np.random.default_rng(size).standard_normal((2 * size, size))
    return x.T @ x + size * np.eye(size)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=EXACT, atol=EXACT * np.abs(wanted).max())


@pytest.mark.parametrize("size", SIZES)
def test_inverse(size: int) -> None:
    matrix = positive(size)
    found = invert(own := matrix.copy())
    close(found, np.linalg.inv(matrix))
    assert found is own


@pytest.mark.parametrize("size", SIZES)
def test_solution(size: int) -> None:
    matrix, right = positive(size), np.random.default_rng(1).standard_normal((7, size))
    found = solve(matrix.copy(), own := right.copy())
    close(found @ matrix, right)
    assert found is own


@pytest.mark.parametrize("size", SIZES)
def test_upper_factor_of_the_inverse(size: int) -> None:
    matrix = positive(size)
    found = upper_factor(own := matrix.copy())
    close(found.T @ found, np.linalg.inv(matrix))
    assert not np.tril(found, -1).any()
    assert found is own


def test_a_product_is_subtracted() -> None:
    rng = np.random.default_rng(0)
    matrix, left, right = (rng.standard_normal(s) for s in ((200, 30), (200, 5), (30, 5)))
    subtract(found := matrix.copy(), left, right)
    close(found, matrix - left @ right.T)
