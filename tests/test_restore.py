"""Least squares: against a ridge regression on the data themselves, and never a loss on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.passes.profile import Moments
from prunec.passes.restore import LeastSquares

Matrix = npt.NDArray[np.float64]

OUT, IN = 5, 12


def data(tokens: int, seed: int = 0) -> Matrix:
    """Inputs whose columns depend on one another and do not have mean zero."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(tokens, 4)) @ rng.normal(size=(4, IN)) + rng.normal(
        0.5, 0.3, (tokens, IN)
    )


def moments(x: Matrix) -> Moments:
    return Moments(len(x), (x**2).sum(0), x.sum(0), x.T @ x)


def layer(seed: int = 1) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(OUT, IN)), rng.normal(size=OUT)


def regression(x: Matrix, y: Matrix, penalty: float) -> Matrix:
    """min ||x u - y||^2 + penalty ||u||^2, as one least-squares problem on stacked rows."""
    n = x.shape[1]
    stacked = np.concatenate([x, np.sqrt(penalty) * np.eye(n)])
    wanted = np.concatenate([y, np.zeros((n, y.shape[1]))])
    return np.linalg.lstsq(stacked, wanted, rcond=None)[0]


KEPT = np.array([0, 2, 3, 5, 8, 9, 11])
PRUNED = np.setdiff1d(np.arange(IN), KEPT)


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
def test_without_bias_is_ridge_regression(ridge: float) -> None:
    """The update predicts what the pruned columns gave from the kept ones."""
    x = data(200)
    weight, _ = layer()
    found = LeastSquares(ridge).restore(weight, None, moments(x), KEPT)
    penalty = ridge * (x**2).sum(0).mean()
    update = regression(x[:, KEPT], x[:, PRUNED] @ weight[:, PRUNED].T, penalty).T
    np.testing.assert_allclose(found.weight[:, KEPT], weight[:, KEPT] + update, atol=1e-9)
    assert (found.weight[:, PRUNED] == 0).all()
    assert found.bias is None


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
def test_with_bias_the_means_are_free(ridge: float) -> None:
    """An intercept that nobody penalises: the regression on centred data."""
    x = data(200)
    weight, bias = layer()
    found = LeastSquares(ridge).restore(weight, bias, moments(x), KEPT)
    mean = x.mean(0)
    centred = x - mean
    penalty = ridge * (centred**2).sum(0).mean()
    update = regression(centred[:, KEPT], centred[:, PRUNED] @ weight[:, PRUNED].T, penalty).T
    np.testing.assert_allclose(found.weight[:, KEPT], weight[:, KEPT] + update, atol=1e-9)
    assert found.bias is not None
    # the mean output stays what it was
    np.testing.assert_allclose(found.weight @ mean + found.bias, weight @ mean + bias, atol=1e-9)


def error(x: Matrix, weight: Matrix, bias: Matrix, other: Matrix, other_bias: Matrix) -> float:
    return float((((x @ weight.T + bias) - (x @ other.T + other_bias)) ** 2).sum())


@given(
    tokens=st.integers(1, 40),
    kept=st.sets(st.integers(0, IN - 1), min_size=1),
    seed=st.integers(0, 1000),
    with_bias=st.booleans(),
)
def test_never_worse_than_not_refitting(
    tokens: int, kept: set[int], seed: int, with_bias: bool
) -> None:
    """On the calibration data; also with fewer tokens than channels, where G is singular."""
    x, columns = data(tokens, seed), np.array(sorted(kept))
    weight, bias = layer(seed)
    found = LeastSquares().restore(weight, bias if with_bias else None, moments(x), columns)
    assert np.isfinite(found.weight).all()
    plain = np.zeros_like(weight)
    plain[:, columns] = weight[:, columns]
    refitted_bias = bias if found.bias is None else found.bias
    before = error(x, weight, bias, plain, bias)
    assert error(x, weight, bias, found.weight, refitted_bias) <= before * (1 + 1e-9) + 1e-9


def test_what_others_repeat_is_recovered() -> None:
    """A pruned column that a kept one copies costs nothing, up to the ridge."""
    x = data(300)
    x[:, 1] = x[:, 0]
    weight, _ = layer()
    kept = np.array([i for i in range(IN) if i != 1])
    found = LeastSquares(1e-12).restore(weight, None, moments(x), kept)
    np.testing.assert_allclose(x @ found.weight.T, x @ weight.T, atol=1e-5)


def test_dead_inputs_change_nothing() -> None:
    x = np.zeros((20, IN))
    weight, bias = layer()
    found = LeastSquares().restore(weight, bias, moments(x), KEPT)
    np.testing.assert_array_equal(found.weight[:, KEPT], weight[:, KEPT])
    np.testing.assert_array_equal(found.bias, bias)


def test_constant_inputs_go_into_the_bias() -> None:
    """Pruned columns that never vary are a bias: FLAP's compensation."""
    x = data(100)
    x[:, PRUNED] = np.arange(len(PRUNED))
    weight, bias = layer()
    found = LeastSquares().restore(weight, bias, moments(x), KEPT)
    assert found.bias is not None
    np.testing.assert_allclose(found.weight[:, KEPT], weight[:, KEPT], atol=1e-9)
    np.testing.assert_allclose(
        found.bias, bias + weight[:, PRUNED] @ np.arange(len(PRUNED)), atol=1e-9
    )


def test_keeping_all_changes_nothing() -> None:
    weight, bias = layer()
    found = LeastSquares().restore(weight, bias, moments(data(50)), np.arange(IN))
    np.testing.assert_array_equal(found.weight, weight)
    np.testing.assert_array_equal(found.bias, bias)


def test_moments_add_up() -> None:
    """Batches may be observed one by one."""
    x = data(31)
    total = moments(x[:10]) + moments(x[10:])
    whole = moments(x)
    assert total.tokens == whole.tokens
    np.testing.assert_allclose(total.squares, whole.squares)
    np.testing.assert_allclose(total.sums, whole.sums)
    assert total.gram is not None
    np.testing.assert_allclose(total.gram, whole.gram)
    np.testing.assert_allclose(total.norms, np.linalg.norm(x, axis=0))
