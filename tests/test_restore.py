"""Least squares: against a ridge regression on the data themselves, and never a loss on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.passes.profile import Moments, Sample, Seen, Targets
from prunec.passes.restore import BiasOnly, CrossStream, LeastSquares

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


def seen(x: Matrix, held: Matrix | None = None) -> Seen:
    return Seen(Sample(moments(x)), None if held is None else Sample(moments(held)))


def aimed(x: Matrix, y: Matrix) -> Sample:
    return Sample(moments(x), Targets(y.T @ x, y.sum(0), float((y**2).sum())))


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
    found = LeastSquares((ridge,)).restore(weight, None, seen(x), KEPT)
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
    found = LeastSquares((ridge,)).restore(weight, bias, seen(x), KEPT)
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
    found = LeastSquares().restore(weight, bias if with_bias else None, seen(x), columns)
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
    found = LeastSquares((1e-12,)).restore(weight, None, seen(x), kept)
    np.testing.assert_allclose(x @ found.weight.T, x @ weight.T, atol=1e-5)


def test_dead_inputs_change_nothing() -> None:
    x = np.zeros((20, IN))
    weight, bias = layer()
    found = LeastSquares().restore(weight, bias, seen(x), KEPT)
    np.testing.assert_array_equal(found.weight[:, KEPT], weight[:, KEPT])
    np.testing.assert_array_equal(found.bias, bias)


def test_constant_inputs_go_into_the_bias() -> None:
    """Pruned columns that never vary are a bias: FLAP's compensation."""
    x = data(100)
    x[:, PRUNED] = np.arange(len(PRUNED))
    weight, bias = layer()
    found = LeastSquares().restore(weight, bias, seen(x), KEPT)
    assert found.bias is not None
    np.testing.assert_allclose(found.weight[:, KEPT], weight[:, KEPT], atol=1e-9)
    np.testing.assert_allclose(
        found.bias, bias + weight[:, PRUNED] @ np.arange(len(PRUNED)), atol=1e-9
    )


def test_keeping_all_changes_nothing() -> None:
    weight, bias = layer()
    found = LeastSquares().restore(weight, bias, seen(data(50)), np.arange(IN))
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


@given(
    tokens=st.integers(1, 30),
    kept=st.sets(st.integers(0, IN - 1), min_size=1),
    seed=st.integers(0, 1000),
    with_bias=st.booleans(),
)
def test_never_worse_on_held_out_tokens(
    tokens: int, kept: set[int], seed: int, with_bias: bool
) -> None:
    """Few tokens to learn from and others to judge by: the update shrinks, to nothing if need be.

    What is chosen is fitted on all tokens in the end, the held-out ones too, so that the promise
    is kept with room to spare; a bias is judged about the means.
    """
    x, other, columns = data(tokens, seed), data(200, seed + 1), np.array(sorted(kept))
    weight, bias = layer(seed)
    found = LeastSquares().restore(weight, bias if with_bias else None, seen(x, other), columns)
    plain = BiasOnly().restore(weight, bias if with_bias else None, seen(x, other), columns)
    inputs = np.concatenate([x, other])

    def loss(matrix: Matrix, shift: Matrix | None) -> float:
        shift = bias if shift is None else shift
        return error(inputs, weight, bias, matrix, shift)

    assert loss(found.weight, found.bias) <= loss(plain.weight, plain.bias) * (1 + 1e-9) + 1e-9


def test_ridge_and_share_are_those_of_the_held_out_tokens() -> None:
    """The same choice as trying every ridge and a fine grid of shares on the tokens themselves."""
    x, other = data(14, 3), data(400, 4)
    weight, _ = layer(3)
    restorer = LeastSquares()
    found = restorer.restore(weight, None, seen(x, other), KEPT)
    tried = []
    for ridge in restorer.ridges:
        penalty = ridge * (x**2).sum(0).mean()
        update = regression(x[:, KEPT], x[:, PRUNED] @ weight[:, PRUNED].T, penalty).T
        for share in np.linspace(0, 1, 1001):
            left = other[:, PRUNED] @ weight[:, PRUNED].T - other[:, KEPT] @ (share * update).T
            tried.append((float((left**2).sum()), ridge, share))
    _, ridge, share = min(tried)
    both = np.concatenate([x, other])
    penalty = ridge * (both**2).sum(0).mean()
    update = regression(both[:, KEPT], both[:, PRUNED] @ weight[:, PRUNED].T, penalty).T
    expected = weight[:, KEPT] + share * update
    np.testing.assert_allclose(found.weight[:, KEPT], expected, atol=2e-3)


@pytest.mark.parametrize("with_bias", [False, True])
def test_targets_of_the_dense_program(with_bias: bool) -> None:
    """(W X'X~_K + lambda W_K)(X~_K'X~_K + lambda I)^-1 with inputs that have drifted."""
    dense = data(300, 5)
    x = dense + np.random.default_rng(6).normal(0.2, 0.3, dense.shape)
    weight, bias = layer(5)
    y = dense @ weight.T + (bias if with_bias else 0)
    found = CrossStream((0.05,)).restore(
        weight, bias if with_bias else None, Seen(aimed(x, y)), KEPT
    )
    mean, middle = (x.mean(0), y.mean(0)) if with_bias else (0, 0)
    a, b = (x - mean)[:, KEPT], y - middle
    ridge = 0.05 * ((x - mean) ** 2).sum(0).mean()
    inner = a.T @ a + ridge * np.eye(len(KEPT))
    expected = np.linalg.solve(inner, (b.T @ a + ridge * weight[:, KEPT]).T).T
    np.testing.assert_allclose(found.weight[:, KEPT], expected, atol=1e-9)
    if with_bias:
        assert found.bias is not None
        np.testing.assert_allclose(found.bias, middle - found.weight @ mean, atol=1e-9)


def test_a_layer_that_lost_nothing_makes_up_for_others() -> None:
    """All columns stay, the inputs have drifted: the refit comes closer to the targets."""
    dense = data(300, 7)
    x = dense * 0.8 + 0.1
    weight, _ = layer(7)
    y = dense @ weight.T
    found = CrossStream((1e-6,)).restore(weight, None, Seen(aimed(x, y)), np.arange(IN))
    assert ((x @ found.weight.T - y) ** 2).sum() < 0.5 * ((x @ weight.T - y) ** 2).sum()


def test_bias_alone_leaves_the_weights() -> None:
    x = data(100)
    weight, bias = layer()
    found = BiasOnly().restore(weight, bias, seen(x), KEPT)
    np.testing.assert_array_equal(found.weight[:, KEPT], weight[:, KEPT])
    assert found.bias is not None
    np.testing.assert_allclose(found.bias, bias + weight[:, PRUNED] @ x.mean(0)[PRUNED])
    assert BiasOnly().restore(weight, None, seen(x), KEPT).bias is None


def test_taps_of_a_convolution_share_one_bias() -> None:
    """Three rows for each output: the bias takes what all of them lack."""
    x = data(100)
    taps = np.random.default_rng(8).normal(size=(3 * OUT, IN))
    bias = np.zeros(OUT)
    found = BiasOnly().restore(taps, bias, seen(x), KEPT)
    assert found.bias is not None
    lacking = (taps[:, PRUNED] @ x.mean(0)[PRUNED]).reshape(OUT, 3).sum(1)
    np.testing.assert_allclose(found.bias, lacking)
