"""Criteria that look at activations, against NumPy written from the papers' formulas.

References work on the weight W (m, n) and the inputs X (tokens, n) themselves, where the criteria
have second moments. Layers: neurons with and without a bias, key heads, query heads in rows of
equal counts, and the channels of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from layers import CASES, Case, case, network

from prunec.backends.torch_stream import TorchStream
from prunec.ir.diagnostics import PrunecError
from prunec.passes.compress import sites
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
    found = SlimLLM().choose(it.coupling, it.group, it.weights, it.observed, count).kept
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


def test_the_stream_observes_what_is_needed() -> None:
    """Real moments of a site are enough for every criterion that needs no gradients."""
    built, coupling, weights = network("attention")
    batch = {name: np.asarray(v) for name, v in built.inputs(batch=3, time=17, seed=1).items()}
    it = case("key heads")
    (site,) = sites(coupling, [it.group])
    with TorchStream(built.graph, weights, [batch]) as stream:
        found = stream.observe(site.consumers, frozenset({"gram", "absolute"}))
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
