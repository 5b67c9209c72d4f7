"""The OBS criterion against greedy search by least squares on the data.

Layers: neurons with and without a bias, key heads, query heads in rows of equal counts, the
channels of a convolution, and those of a grouped one.
"""

from __future__ import annotations

import numpy as np
import pytest
from handmade import Builder
from layers import CASES, Case, case, network

from prunec.ir.dialects.aten import ATEN
from prunec.passes.compress import select
from prunec.passes.couple import couple
from prunec.passes.criteria import CRITERIA, Obs
from prunec.passes.profile import Moments

RIDGE = 1e-2


def error(it: Case, gone: list[int]) -> float:
    """Least of |(W' - W) X'|^2 + lambda |W' - W|^2 with W' zero where pruned, by least squares on
    the data; a layer with a bias sees X without its mean, since the bias takes that up."""
    x = it.x - it.x.mean(0) if it is case("biased neurons") else it.x
    strength = RIDGE * (x**2).sum() / x.shape[1]
    data = np.concatenate([x, np.sqrt(strength) * np.eye(x.shape[1])])
    columns = np.concatenate([it.blocks[i] for i in gone]) if gone else np.array([], int)
    kept = np.setdiff1d(np.arange(x.shape[1]), columns)
    target = data @ it.w.T
    if not len(kept):
        return float((target**2).sum())
    weight = np.linalg.lstsq(data[:, kept], target, rcond=None)[0]
    return float(((data[:, kept] @ weight - target) ** 2).sum())


def swept(it: Case) -> tuple[list[int], list[float]]:
    """Greedy: the next block to go is the one that leaves the least error, one per row in turn."""
    order: list[int] = []
    errors = [0.0]
    row = np.arange(len(it.blocks)) // it.shape[-1] if len(it.shape) > 1 else None
    while len(order) < len(it.blocks):
        left = [i for i in range(len(it.blocks)) if i not in order]
        if row is not None:
            lost = (
                np.bincount(row[order], minlength=it.shape[0]) if order else np.zeros(it.shape[0])
            )
            left = [i for i in left if lost[row[i]] == lost.min()]
        costs = {i: error(it, [*order, i]) for i in left}
        order.append(min(left, key=costs.__getitem__))
        errors.append(costs[order[-1]])
    return order, errors


@pytest.mark.parametrize("name", CASES)
def test_obs_is_the_order_of_removal(name: str) -> None:
    it = case(name)
    order, errors = swept(it)
    found = Obs(RIDGE).rank(it.coupling, it.group, it.weights, it.observed)
    assert found.scores.shape == it.shape
    assert np.argsort(found.scores, axis=None).tolist() == order
    assert found.curve is not None
    per_count = len(order) // it.group.size
    np.testing.assert_allclose(found.curve, errors[::per_count][::-1], rtol=1e-7, atol=1e-9)
    assert found.curve[it.group.size] == 0
    np.testing.assert_array_equal(
        found.scores, Obs(RIDGE).score(it.coupling, it.group, it.weights, it.observed)
    )


@pytest.mark.parametrize("name", CASES)
def test_every_count_is_the_set_of_the_sweep(name: str) -> None:
    """Selecting by score gives what the sweep has left, and the curve is the error of that."""
    it = case(name)
    ranked = Obs(RIDGE).rank(it.coupling, it.group, it.weights, it.observed)
    assert ranked.curve is not None
    order, _ = swept(it)
    rows = len(order) // it.group.size
    for count in range(1, it.group.size):
        keep = select(ranked.scores, count, it.group).keep
        flat = keep.reshape(rows, count) + np.arange(rows)[:, None] * it.shape[-1]
        kept = set(flat.reshape(-1).tolist())
        assert kept == set(order[len(order) - count * rows :])
        gone = [i for i in range(len(order)) if i not in kept]
        np.testing.assert_allclose(ranked.curve[count], error(it, gone), rtol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_obs_with_exchanges_is_no_worse(name: str) -> None:
    it = case(name)
    rows = len(it.blocks) // it.group.size
    for count in range(1, it.group.size):
        plain, better = (
            Obs(RIDGE, swaps).choose(it.coupling, it.group, it.weights, it.observed, count).kept
            for swaps in (0, 50)
        )
        assert plain.shape == better.shape == (*it.shape[:-1], count)
        before, after = (
            error(it, np.setdiff1d(np.arange(len(it.blocks)), flat).tolist())
            for flat in (
                k.reshape(rows, count) + np.arange(rows)[:, None] * it.shape[-1]
                for k in (plain, better)
            )
        )
        assert after <= before * (1 + 1e-9)


def test_obs_stacks_what_reads_one_value() -> None:
    """Gate and up read the embeddings: one problem with the outputs of both."""
    built, coupling, weights = network("mlp")
    (group,) = [
        g for g in coupling.groups if any(p.parameter == "embed.weight" for p in g.places)
        and len(g.consumers) == 2
    ]  # fmt: skip
    batch = {name: np.asarray(v) for name, v in built.inputs(batch=3, time=17, seed=1).items()}
    x = weights["embed.weight"][batch["x"].reshape(-1)].astype(np.float64)
    moments = Moments(len(x), (x**2).sum(0), x.sum(0), x.T @ x)
    both = [weights[f"blocks.0.{part}.weight"] for part in ("gate", "up")]
    w = np.concatenate(both).astype(np.float64)
    stacked = Case(coupling, group, weights, w, x, [np.array([i]) for i in range(10)], (10,))
    order, errors = swept(stacked)
    observed = [(c, moments) for c in group.consumers]
    found = Obs(RIDGE).rank(coupling, group, weights, observed)
    assert np.argsort(found.scores).tolist() == order
    assert found.curve is not None
    np.testing.assert_allclose(found.curve[::-1], errors, rtol=1e-6, atol=1e-9)


def test_fewer_tokens_than_columns_stay_finite() -> None:
    it = case("neurons")
    x = it.x[:5]
    moments = Moments(5, (x**2).sum(0), x.sum(0), x.T @ x, np.abs(x).sum(0))
    observed = [(c, moments) for c in it.group.consumers]
    found = Obs().rank(it.coupling, it.group, it.weights, observed)
    assert np.isfinite(found.scores).all()
    assert found.curve is not None
    assert np.isfinite(found.curve).all()
    # five tokens are explained by five neurons, up to the ridge
    assert found.curve[5] < 0.05 * found.curve[0]


def test_grouped_convolution_is_one_layer_a_group() -> None:
    """8 outputs in 2 groups read 6 channels: outputs 0 to 3 read channels 0 to 2, the rest the
    others, and both lose the same index of three at once."""
    b = Builder()
    weight = b.weight(8, 3, 1, 1)
    y = b.call("aten.conv2d.default", b.space(6), weight, None, (1, 1), (0, 0), (1, 1), 2)
    built = b.finish(b.mix(y))
    coupling = couple(built.graph, ATEN)
    (group,) = [g for g in coupling.groups if g.size == 3 and g.consumers]
    x = np.random.default_rng(0).standard_normal((40, 6))
    moments = Moments(40, (x**2).sum(0), x.sum(0), x.T @ x, np.abs(x).sum(0))
    name = weight.name[1:]
    observed = [(c, moments) for c in group.consumers if c.weight.parameter == name]
    w = built.weights[name][:, :, 0, 0].astype(np.float64)
    halves = [(w[:4], x[:, :3]), (w[4:], x[:, 3:])]

    def total(gone: list[int]) -> float:
        found = 0.0
        for half, seen in halves:
            it = Case(coupling, group, {}, half, seen, [np.array([i]) for i in range(3)], (3,))
            found += error(it, gone)
        return found

    found = Obs(RIDGE).rank(coupling, group, built.weights, observed)
    order: list[int] = []
    for _ in range(3):
        rest = [i for i in range(3) if i not in order]
        order.append(min(rest, key=lambda i: total([*order, i])))
    assert np.argsort(found.scores).tolist() == order
    assert found.curve is not None
    wanted = [total(order[: 3 - count]) for count in range(4)]
    np.testing.assert_allclose(found.curve, wanted, rtol=1e-7, atol=1e-9)
    scores = CRITERIA["fluctuation"]().score(coupling, group, built.weights, observed)
    flap = sum(seen.var(0, ddof=1) * (half**2).sum(0) for half, seen in halves)
    np.testing.assert_allclose(scores, flap, rtol=1e-9)
