"""Criteria that look at activations, against NumPy written from the papers' formulas.

References work on the weight W (m, n) and the inputs X (tokens, n) themselves, where the criteria
have second moments. Layers: neurons with and without a bias, key heads, query heads in rows of
equal counts, and the channels of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from handmade import Builder
from layers import CASES, Case, case, network

from prunec.backends.torch_stream import TorchStream
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.passes.compress import select, sites
from prunec.passes.couple import couple
from prunec.passes.criteria import CRITERIA, Magnitude, Obs, SlimLLM
from prunec.passes.profile import Moments
from prunec.passes.readers import feeders
from prunec.passes.score import NEEDS, Choosing, Curved

TIGHT = 1e-9
"""Relative: both sides compute in float64 from the same numbers."""

RIDGE = 1e-2


def summed(it: Case, columns: np.ndarray) -> np.ndarray:
    """Values of columns, added up for each index."""
    return np.array([columns[b].sum() for b in it.blocks]).reshape(it.shape)


def wanda(it: Case) -> np.ndarray:
    return summed(it, (np.abs(it.w) * np.sqrt((it.x**2).sum(0))).sum(0))


def fluctuation(it: Case) -> np.ndarray:
    return summed(it, it.x.var(0, ddof=1) * (it.w**2).sum(0))


def mean_activation(it: Case) -> np.ndarray:
    return np.sqrt(summed(it, np.abs(it.x).mean(0) ** 2))


def activation_norm(it: Case) -> np.ndarray:
    found = [np.linalg.norm(it.x[:, b]) for b in it.blocks]
    return np.array(found).reshape(it.shape)


REFERENCES: dict[str, Callable[[Case], np.ndarray]] = {
    "wanda": wanda,
    "fluctuation": fluctuation,
    "activation-mean": mean_activation,
    "activation-l2": activation_norm,
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("criterion", REFERENCES)
def test_column_scores(criterion: str, name: str) -> None:
    it = case(name)
    found = CRITERIA[criterion]().score(it.coupling, it.group, it.weights, it.observed)
    wanted = REFERENCES[criterion](it)
    assert found.shape == it.shape
    np.testing.assert_allclose(found, wanted, rtol=TIGHT)
    np.testing.assert_array_equal(np.argsort(found, axis=None), np.argsort(wanted, axis=None))


@pytest.mark.parametrize("name", ["neurons", "key heads", "query heads", "channels"])
@pytest.mark.parametrize("power", [1, 2])
def test_magnitude(name: str, power: int) -> None:
    """All weights that leave with an index: here its columns, and the rows that make it."""
    it = case(name)
    makers = {
        "neurons": ["blocks.0.up.weight", "blocks.0.gate.weight"],
        "key heads": [f"blocks.0.{part}.weight" for part in "qkv"],
        "query heads": ["blocks.0.q.weight"],
        "channels": [],
    }[name]
    parts = [(np.abs(it.w) ** power).sum(0)]
    total = summed(it, parts[0])
    for maker in makers:
        rows = (np.abs(it.weights[maker].astype(np.float64)) ** power).sum(1)
        total = total + rows.reshape(*it.shape, -1).sum(-1)
    if name == "channels":  # an embedding makes them
        total = total + (np.abs(it.weights["embed.weight"].astype(np.float64)) ** power).sum(0)
    found = Magnitude(power).score(it.coupling, it.group, it.weights, ())
    np.testing.assert_allclose(found, total if power == 1 else np.sqrt(total), rtol=1e-5)


# -- SlimLLM --------------------------------------------------------------------------------------


def similarity(it: Case, stays: list[int]) -> float:
    """Sum over outputs of the absolute Pearson correlation with what these units leave."""
    whole = it.x @ it.w.T
    columns = np.concatenate([it.blocks[i] for i in stays])
    part = it.x[:, columns] @ it.w[:, columns].T
    return sum(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(whole.T, part.T, strict=True))


@pytest.mark.parametrize("name", ["key heads", "query heads"])
def test_slimllm_scores_heads_by_what_they_leave(name: str) -> None:
    it = case(name)
    everything = range(len(it.blocks))
    wanted = [-similarity(it, [j for j in everything if j != i]) for i in everything]
    found = SlimLLM().score(it.coupling, it.group, it.weights, it.observed)
    np.testing.assert_allclose(found, np.reshape(wanted, it.shape), rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "count"), [("key heads", 2), ("key heads", 1), ("query heads", 1)]
)
def test_slimllm_exchanges_heads(name: str, count: int) -> None:
    """Each head that left, the least important first, takes the place of the one whose exchange
    raises the similarity the most."""
    it = case(name)
    scores = SlimLLM().score(it.coupling, it.group, it.weights, it.observed)
    order = np.argsort(-scores, axis=-1, kind="stable")
    rows = np.arange(len(it.blocks)).reshape(-1, it.shape[-1])
    ranked = np.take_along_axis(rows, order.reshape(rows.shape), axis=1)
    stays = [int(i) for row in ranked for i in row[:count]]
    for row in ranked:
        for new in row[count:][::-1]:
            trials = {
                old: similarity(it, [*(i for i in stays if i != old), int(new)])
                for old in stays
                if old in row
            }
            best = max(trials, key=trials.__getitem__)
            if trials[best] > similarity(it, stays):
                stays = [*(i for i in stays if i != best), int(new)]
    found = SlimLLM().choose(it.coupling, it.group, it.weights, it.observed, count)
    wanted = np.sort(stays).reshape(*it.shape[:-1], count) % it.shape[-1]
    np.testing.assert_array_equal(found, wanted)


def features(it: Case) -> np.ndarray:
    """|X_j| |V'W_j * sigmoid(l / mean l)|, with the principal directions of the output."""
    y = it.x @ it.w.T
    y = y - y.mean(0)
    values, vectors = np.linalg.eigh(y.T @ y)
    gates = 1 / (1 + np.exp(-np.abs(values) / np.abs(values).mean()))
    inside = (it.w.T @ vectors) * gates
    return np.linalg.norm(inside * np.linalg.norm(it.x, axis=0)[:, None], axis=1)


@pytest.mark.parametrize("name", ["neurons", "channels"])
def test_slimllm_scores_channels_in_the_feature_space(name: str) -> None:
    it = case(name)
    found = SlimLLM().score(it.coupling, it.group, it.weights, it.observed)
    np.testing.assert_allclose(found, features(it), rtol=1e-8)


def test_slimllm_adds_the_layers_that_make_a_neuron() -> None:
    """Given their inputs: | W_i * |X| | over the row of each neuron in gate and up."""
    it = case("neurons")
    rng = np.random.default_rng(5)
    seen = np.abs(rng.standard_normal(10))
    moments = Moments(51, seen**2, np.zeros(10))
    watched = SlimLLM().watches(it.coupling, it.group)
    names = {"blocks.0.up.weight", "blocks.0.gate.weight"}
    assert {c.weight.parameter for c in watched} == names
    assert {c.weight.dim for c in watched} == {1}
    observed = [*it.observed, *((c, moments) for c in watched)]
    found = SlimLLM().score(it.coupling, it.group, it.weights, observed)
    wanted = features(it) + sum(np.linalg.norm(it.weights[n] * seen, axis=1) for n in names)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_slimllm_watches_nothing_for_heads() -> None:
    for name in ("key heads", "query heads"):
        it = case(name)
        assert SlimLLM().watches(it.coupling, it.group) == ()


def test_layers_that_make_a_group_read_what_a_stream_can_observe() -> None:
    """The consumers that `feeders` makes up stand for real inputs: here, of gate and up, the
    embeddings."""
    built, coupling, weights = network("mlp")
    it = case("neurons")
    batch = {name: np.asarray(v) for name, v in built.inputs(batch=3, time=17, seed=1).items()}
    with TorchStream(built.graph, weights, [batch]) as stream:
        seen = stream.observe(feeders(coupling, it.group))
    rows = weights["embed.weight"][batch["x"].reshape(-1)]
    assert len(seen) == 2
    for each in seen:
        found = each.whole.moments.squares
        np.testing.assert_allclose(found, (rows.astype(float) ** 2).sum(0), rtol=1e-5)


# -- OBS ------------------------------------------------------------------------------------------


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
            Obs(RIDGE, swaps).choose(it.coupling, it.group, it.weights, it.observed, count)
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


def test_silent_inputs_cost_nothing() -> None:
    it = case("neurons")
    zero = np.zeros(14)
    moments = Moments(51, zero, zero, np.zeros((14, 14)), zero)
    observed = [(c, moments) for c in it.group.consumers]
    for name, made in CRITERIA.items():
        if "gradients" in made().needs:
            continue
        assert np.isfinite(made().score(it.coupling, it.group, it.weights, observed)).all(), name
    curve = Obs().rank(it.coupling, it.group, it.weights, observed).curve
    np.testing.assert_array_equal(curve, np.zeros(15))


@pytest.mark.parametrize("name", [*REFERENCES, "slimllm", "obs", "obs-swap"])
def test_damaged_weights_are_named(name: str) -> None:
    """Not by an order of removal that looks like any other."""
    it = case("neurons")
    weights = dict(it.weights)
    parameter = "blocks.0.down.weight"
    weights[parameter] = np.where(np.arange(14) == 3, np.nan, weights[parameter])
    criterion = CRITERIA[name]()
    if name.startswith("activation"):  # looks at no weight
        assert np.isfinite(criterion.score(it.coupling, it.group, weights, it.observed)).all()
        return
    with pytest.raises(PrunecError, match=f"P311.*{parameter}"):
        criterion.score(it.coupling, it.group, weights, it.observed)
    if isinstance(criterion, Choosing):
        with pytest.raises(PrunecError, match="P311"):
            criterion.choose(it.coupling, it.group, weights, it.observed, 5)


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


# -- all of them ----------------------------------------------------------------------------------


def test_a_group_without_a_consumer_is_scored_by_magnitude() -> None:
    """The inside of query and key heads is summed over between two computed values."""
    _, coupling, weights = network("attention")
    inside = [g for g in coupling.groups if g.role == "head_dim" and not g.consumers]
    assert inside
    for group in inside:
        wanted = Magnitude().score(coupling, group, weights, ())
        for name in ("wanda", "fluctuation", "activation-l2", "slimllm", "obs"):
            found = CRITERIA[name]().score(coupling, group, weights, ())
            np.testing.assert_array_equal(found, wanted)
        assert Obs().rank(coupling, group, weights, ()).curve is None


def test_what_is_observed_beside_the_consumers_is_left_alone() -> None:
    """A site observes for all of its groups."""
    it = case("neurons")
    other = network("attention")[1]
    (stranger,) = [g.consumers[0] for g in other.groups if g.role == "kv_head"]
    more = [*it.observed, (stranger, Moments(3, np.ones(24), np.ones(24), np.eye(24), np.ones(24)))]
    for name in (*REFERENCES, "slimllm", "obs"):
        made = CRITERIA[name]()
        np.testing.assert_array_equal(
            made.score(it.coupling, it.group, it.weights, more),
            made.score(it.coupling, it.group, it.weights, it.observed),
        )


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
    np.testing.assert_allclose(scores, flap, rtol=TIGHT)


def test_the_stream_observes_what_is_needed() -> None:
    """Real moments of a site are enough for every criterion that needs no gradients."""
    built, coupling, weights = network("attention")
    batch = {name: np.asarray(v) for name, v in built.inputs(batch=3, time=17, seed=1).items()}
    it = case("key heads")
    (site,) = sites(coupling, [it.group])
    with TorchStream(built.graph, weights, [batch]) as stream:
        found = stream.observe(site.consumers, frozenset({"gram"}))
    moments = [each.whole.moments for each in found]
    seen = list(zip(site.consumers, moments, strict=True))
    for name, made in CRITERIA.items():
        criterion = made()
        assert criterion.needs <= set(NEEDS)
        if "gradients" in criterion.needs:
            continue
        scores = criterion.score(coupling, it.group, weights, seen)
        wanted = criterion.score(coupling, it.group, weights, it.observed)
        np.testing.assert_allclose(scores, wanted, rtol=1e-4, err_msg=name)
    assert isinstance(Obs(), Curved)
