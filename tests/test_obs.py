"""The OBS sweep against greedy search by definition, least squares, and plain OBS one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from prunec.passes.obs import Quadratic, damped, removal_error, sweep, update
from prunec.passes.obs_search import improve
from prunec.passes.profile import Moments, Sample, Seen
from prunec.passes.restore import LeastSquares

RIDGE = 1e-2
EXACT = 1e-8
"""Relative, float64: the condition of H is at most about n / RIDGE, some 1e4 here."""

Blocks = list[np.ndarray]


def layer(n: int, m: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs X (tokens, n) and a weight W (m, n)."""
    rng = np.random.default_rng(seed)
    mix = 0.3 * rng.standard_normal((n, n)) + np.diag(0.1 + rng.random(n))
    return rng.standard_normal((tokens, n)) @ mix, rng.standard_normal((m, n))


def ridged(x: np.ndarray) -> np.ndarray:
    gram = x.T @ x
    return gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))


def singles(n: int) -> Blocks:
    return [np.array([i]) for i in range(n)]


def refitted(h: np.ndarray, w: np.ndarray, gone: Sequence[int]) -> tuple[np.ndarray, float]:
    """The optimum without some columns, and tr(D H D') of the change D, from the normal
    equations: (W' - W) H is zero at the kept columns."""
    kept = [j for j in range(w.shape[1]) if j not in set(gone)]
    found = np.zeros_like(w)
    if kept:
        found[:, kept] = w @ h[:, kept] @ np.linalg.inv(h[np.ix_(kept, kept)])
    change = found - w
    return found, float(np.trace(change @ h @ change.T))


def greedy(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], blocks: Blocks, rows: Sequence[int] | None
) -> tuple[list[int], list[float]]:
    """Remove the block that leaves the least error, recomputing everything each time."""
    order: list[int] = []
    errors = [0.0]
    while len(order) < len(blocks):
        left = [i for i in range(len(blocks)) if i not in order]
        if rows is not None:
            lost = [sum(rows[i] == row for i in order) for row in range(max(rows) + 1)]
            left = [i for i in left if lost[rows[i]] == min(lost)]
        costs = {i: error_of(problems, blocks, [*order, i]) for i in left}
        order.append(min(left, key=costs.__getitem__))
        errors.append(costs[order[-1]])
    return order, errors


def error_of(
    problems: Sequence[tuple[np.ndarray, np.ndarray]], blocks: Blocks, order: Sequence[int]
) -> float:
    gone = [int(j) for b in order for j in blocks[b]]
    return sum(refitted(h, w, gone)[1] for h, w in problems)


CASES = {
    "columns": (singles(24), None),
    "heads": ([np.arange(i, i + 6) for i in range(0, 24, 6)], None),
    "scattered": ([np.array([i, i + 12]) for i in range(12)], None),
    "unlike sizes, some columns stay": (
        [np.arange(3), np.arange(5, 10), np.array([12, 20]), np.array([23])],
        None,
    ),
    "rows": ([np.arange(i, i + 3) for i in range(0, 24, 3)], [0, 0, 0, 0, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("outputs", [5, 40])
def test_a_sweep_is_greedy_search(case: str, outputs: int) -> None:
    """Order and error of every width, with fewer and with more outputs than inputs."""
    blocks, rows = CASES[case]
    x, w = layer(24, outputs, 60)
    h = ridged(x)
    found = sweep([Quadratic(h, w.T @ w, blocks)], None if rows is None else np.array(rows))
    order, errors = greedy([(h, w)], blocks, rows)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.errors, errors, rtol=EXACT)


def test_errors_of_several_layers_are_added() -> None:
    """Two layers with inputs of their own, of unlike widths, share four blocks."""
    (x, w), (y, v) = layer(16, 6, 50), layer(12, 9, 50, seed=1)
    first = [np.arange(i, i + 4) for i in range(0, 16, 4)]
    second = [np.arange(i, i + 3) for i in range(0, 12, 3)]
    h, g = ridged(x), ridged(y)
    found = sweep([Quadratic(h, w.T @ w, first), Quadratic(g, v.T @ v, second)])
    gone: list[int] = []
    for step in range(4):
        costs = {
            i: error_of([(h, w)], first, [*gone, i]) + error_of([(g, v)], second, [*gone, i])
            for i in range(4)
            if i not in gone
        }
        best = min(costs, key=costs.__getitem__)
        assert found.order[step] == best
        np.testing.assert_allclose(found.errors[step + 1], costs[best], rtol=EXACT)
        gone.append(best)


def one_by_one(h: np.ndarray, w: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, float]:
    """Plain OBS: after each block update W and H^-1 (Hassibi and Stork, eq. 5, for blocks)."""
    inverse, w, total = np.linalg.inv(h), w.copy(), 0.0
    for b in blocks:
        inner = np.linalg.inv(inverse[np.ix_(b, b)])
        total += float(np.sum((w[:, b] @ inner) * w[:, b]))
        w = w - w[:, b] @ inner @ inverse[b]
        inverse = inverse - inverse[:, b] @ inner @ inverse[b]
        w[:, b] = 0
    return w, total


@pytest.mark.parametrize("size", [1, 4])
def test_one_by_one_is_at_once(size: int) -> None:
    """The identity: removing P block by block, in whatever order, equals removing P at once."""
    x, w = layer(64, 20, 200)
    h = ridged(x)
    blocks = [np.arange(i, i + size) for i in range(0, 64, size)]
    found = sweep([Quadratic(h, w.T @ w, blocks)])
    for count in (1, len(blocks) // 3, len(blocks) - 1):
        gone = np.sort(np.concatenate([blocks[i] for i in found.order[:count]]))
        weight, error = one_by_one(h, w, [blocks[i] for i in found.order[:count]])
        np.testing.assert_allclose(update(h, w, gone), weight, atol=EXACT * np.abs(w).max())
        np.testing.assert_allclose(found.errors[count], error, rtol=EXACT)
        np.testing.assert_allclose(removal_error(h, w, gone), error, rtol=EXACT)


def test_the_update_is_ridge_regression_on_the_data() -> None:
    """It minimises |(W' - W) X'|^2 + lambda |W' - W|^2 with W' zero where pruned, and that is
    what the restorer solves with the same ridge."""
    x, w = layer(20, 6, 50)
    gone = np.array([1, 4, 5, 13, 19])
    kept = np.setdiff1d(np.arange(20), gone)
    strength = RIDGE * np.trace(x.T @ x) / 20
    # rows of X, then rows that hold the weights where they were
    data = np.concatenate([x, np.sqrt(strength) * np.eye(20)])
    wanted = np.zeros_like(w)
    wanted[:, kept] = np.linalg.lstsq(data[:, kept], data @ w.T, rcond=None)[0].T
    found = update(damped(x.T @ x, RIDGE), w, gone)
    np.testing.assert_allclose(found, wanted, atol=EXACT)
    moments = Moments(50, (x**2).sum(0), x.sum(0), x.T @ x)
    seen = Seen(Sample(moments))
    restored = LeastSquares((RIDGE,)).restore(w, None, seen, kept).weight
    np.testing.assert_allclose(found, restored, atol=EXACT)
    change = found - w
    error = ((change @ x.T) ** 2).sum() + strength * (change**2).sum()
    np.testing.assert_allclose(removal_error(damped(x.T @ x, RIDGE), w, gone), error, rtol=EXACT)


@pytest.mark.parametrize("size", [1, 5])
def test_long_sweeps_stay_exact(size: int) -> None:
    """More columns than updates that wait at a time, and more than there are tokens."""
    x, w = layer(300, 30, 120)
    h = damped(x.T @ x, RIDGE)
    blocks = [np.arange(i, i + size) for i in range(0, 300, size)]
    found = sweep([Quadratic(h, w.T @ w, blocks)])
    assert sorted(found.order.tolist()) == list(range(len(blocks)))
    assert (np.diff(found.errors) >= 0).all()
    for count in range(1, len(blocks), len(blocks) // 6):
        gone = np.concatenate([blocks[i] for i in found.order[:count]])
        wanted = refitted(h, w, gone.tolist())[1]
        np.testing.assert_allclose(found.errors[count], wanted, rtol=EXACT)
    np.testing.assert_allclose(found.errors[-1], np.trace(w @ h @ w.T), rtol=EXACT)
    # the order is greedy at a late step, too
    late = found.order[: len(blocks) * 3 // 4]
    rest = found.order[len(late) :]
    costs = [error_of([(h, w)], blocks, [*late.tolist(), int(i)]) for i in rest]
    assert int(np.argmin(costs)) == 0


def test_inputs_that_are_always_zero_go_first() -> None:
    x, w = layer(12, 4, 40)
    x[:, [2, 7]] = 0
    found = sweep([Quadratic(damped(x.T @ x, RIDGE), w.T @ w, singles(12))])
    assert set(found.order[:2].tolist()) == {2, 7}
    assert np.isfinite(found.errors).all()


def test_no_ridge_on_a_singular_matrix_stays_finite() -> None:
    """Fewer tokens than columns: the least ridge steps in."""
    x, w = layer(30, 4, 10)
    found = sweep([Quadratic(damped(x.T @ x, 0.0), w.T @ w, singles(30))])
    assert np.isfinite(found.errors).all()
    # ten tokens are explained by ten columns
    assert found.errors[20] < 1e-4 * found.errors[-1]


@pytest.mark.parametrize("case", CASES)
def test_exchanges_never_make_it_worse(case: str) -> None:
    blocks, rows = CASES[case]
    at = None if rows is None else np.array(rows)
    for seed in range(5):
        x, w = layer(24, 4, 60, seed)
        h = ridged(x)
        problem = Quadratic(h, w.T @ w, blocks)
        half = len(blocks) // 2
        kept = sweep([problem], at).order[half:]
        better = improve([problem], kept, 50, at)
        assert len(better) == len(kept)
        assert (np.diff(better) > 0).all()
        if rows is not None:
            counts = np.bincount(np.array(rows)[better])
            assert len(set(counts.tolist())) == 1
        before, after = (
            error_of([(h, w)], blocks, np.setdiff1d(np.arange(len(blocks)), k).tolist())
            for k in (kept, better)
        )
        assert after <= before * (1 + EXACT)


def test_exchanges_end_where_none_of_them_helps() -> None:
    """From a bad start: no single exchange improves the result."""
    for seed in range(6):
        x, w = layer(10, 3, 40, seed)
        h = ridged(x)
        problem = Quadratic(h, w.T @ w, singles(10))
        kept = improve([problem], np.arange(5), 100)
        gone = np.setdiff1d(np.arange(10), kept).tolist()
        found = refitted(h, w, gone)[1]
        assert found < refitted(h, w, [5, 6, 7, 8, 9])[1]
        for i, j in product(kept.tolist(), gone):
            other = [i if g == j else g for g in gone]
            assert refitted(h, w, other)[1] >= found * (1 - EXACT)


def test_exchanges_count_all_layers() -> None:
    (x, w), (y, v) = layer(10, 3, 40), layer(10, 3, 40, seed=1)
    h, g = ridged(x), ridged(y)
    problems = [Quadratic(h, w.T @ w, singles(10)), Quadratic(g, v.T @ v, singles(10))]
    kept = improve(problems, np.arange(5), 100)
    gone = np.setdiff1d(np.arange(10), kept).tolist()
    pair = [(h, w), (g, v)]
    assert error_of(pair, singles(10), gone) < error_of(pair, singles(10), [5, 6, 7, 8, 9])


def test_no_exchanges_leave_what_was_chosen() -> None:
    x, w = layer(8, 3, 40)
    problem = Quadratic(ridged(x), w.T @ w, singles(8))
    assert improve([problem], np.array([5, 1, 2]), 0).tolist() == [1, 2, 5]
