"""What allocators are told, against the models' own modules run by torch with hooks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from handmade import Builder, Built
from torch.nn.functional import cosine_similarity, kl_div

from prunec.backends.torch_stream import TorchStream
from prunec.engines.divergence import MaskedDivergence
from prunec.ir.dialects.aten import ATEN
from prunec.passes.allocators import ALLOCATORS, Budget, Counts
from prunec.passes.compress import score_all, sites
from prunec.passes.couple import couple
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.criteria import Magnitude, Obs, Wanda
from prunec.passes.profile import Moments, Sample, Seen
from prunec.passes.residual import junction
from prunec.planning.evidence import allocate, gather, spread
from prunec.progress import Silent
from prunec.runs.calibrating import Calibrated
from prunec.runs.loading import Loaded, load

INFLUENCE = frozenset({"influence"})
ROLES = ("neuron", "query_head", "kv_head")
TOLERANCE = 1e-5
"""Relative, float32: the executor adds in another order than the modules."""


def tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 131, shape)


@cache
def coupled(name: str) -> Coupling:
    return couple(zoo.model(name).traced.graph, ATEN)


def arrays(name: str) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in zoo.model(name).weights.items()}


def chosen(coupling: Coupling) -> list[Group]:
    return [g for g in coupling.groups if g.role in ROLES]


def rows(coupling: Coupling, batches: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Batches of token ids as the program's inputs; nothing is padding."""
    names = [value.name[1:] for value in coupling.graph.inputs]
    return [{n: b if n == "input_ids" else np.ones_like(b) for n in names} for b in batches]


# -- block influence --------------------------------------------------------------------------

BATCHES = [tokens(0, 2, 7), tokens(1, 1, 11), tokens(2, 3, 5)]

STREAMS = {
    "llama": ("input_layernorm", "post_attention_layernorm"),
    "gemma3": ("input_layernorm", "pre_feedforward_layernorm"),
}
"""Norms that read the residual stream before attention and before the feed-forward part."""


def by_hooks(name: str) -> dict[tuple[int, str], float]:
    """1 - cos over all tokens for each layer's attention and feed-forward part."""
    module = zoo.model(name).module
    read: dict[Any, list[torch.Tensor]] = {}
    stops = [getattr(layer, norm) for layer in module.model.layers for norm in STREAMS[name]]
    stops.append(module.model.norm)
    handles = [
        stop.register_forward_pre_hook(
            lambda m, args: read.setdefault(m, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for stop in stops
    ]
    with torch.no_grad():
        for batch in BATCHES:
            module(input_ids=torch.from_numpy(batch))
    for handle in handles:
        handle.remove()
    seen = [torch.cat(read[stop]).double() for stop in stops]
    parts = [(i, part) for i in range(len(module.model.layers)) for part in ("self_attn", "mlp")]
    values = [float((1 - cosine_similarity(a, b, dim=-1)).mean()) for a, b in pairwise(seen)]
    return dict(zip(parts, values, strict=True))


@pytest.mark.parametrize("name", STREAMS)
def test_influence_is_that_of_the_modules(name: str) -> None:
    """A norm after the layer is part of what joins the stream (gemma3)."""
    coupling = coupled(name)
    expected = by_hooks(name)
    found = {}
    with TorchStream(coupling.graph, arrays(name), rows(coupling, BATCHES)) as stream:
        for site in sites(coupling, chosen(coupling)):
            (seen,) = stream.observe(site.consumers, INFLUENCE)
            _, _, layer, part, *_ = site.consumers[0].weight.parameter.split(".")
            found[int(layer), part] = seen.influence
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-4), key
        assert value > 1e-6


def built(kind: str) -> tuple[Built, list[Consumer]]:
    """x + f(x) in some shapes of graph, with the consumers of f's neurons."""
    b = Builder()
    x = b.input("batch", "time", 6)

    def inner(value: Any) -> Any:
        return b.linear(b.call("aten.relu.default", b.linear(value, 10)), 6)

    match kind:
        case "plain":
            y = b.call("aten.add.Tensor", x, inner(x))
        case "scaled":  # a gate on the way
            y = b.call("aten.add.Tensor", b.call("aten.tanh.default", inner(x)), x)
        case "parallel":
            both = b.call("aten.add.Tensor", inner(x), inner(x))
            y = b.call("aten.add.Tensor", both, x)
        case "no stream":
            y = inner(x)
        case _:  # read elsewhere too
            out = inner(x)
            return _consumers(b.finish(b.call("aten.add.Tensor", x, out), out))
    return _consumers(b.finish(y))


def _consumers(made: Built) -> tuple[Built, list[Consumer]]:
    coupling = couple(made.graph, ATEN)
    neurons = [g for g in coupling.groups if g.role == "neuron"]
    return made, [c for site in sites(coupling, neurons) for c in site.consumers]


def feed_forward(w: Mapping[str, np.ndarray], x: np.ndarray, at: int) -> np.ndarray:
    hidden = np.maximum(x @ w[f"w{at}"].T + w[f"w{at + 1}"], 0)
    return hidden @ w[f"w{at + 2}"].T + w[f"w{at + 3}"]


def influence(before: np.ndarray, after: np.ndarray) -> float:
    dots = (before * after).sum(-1)
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(np.mean(1 - dots / norms))


@pytest.mark.parametrize("kind", ["plain", "scaled", "parallel"])
def test_influence_in_numpy(kind: str) -> None:
    made, consumers = built(kind)
    batches = [
        {n: np.asarray(v) for n, v in made.inputs(*size).items()} for size in ((2, 3), (1, 7))
    ]
    with TorchStream(made.graph, made.weights, batches) as stream:
        seen = stream.observe(consumers, INFLUENCE)
    w = {name: value.astype(np.float64) for name, value in made.weights.items()}
    x = np.concatenate([batch["x0"].reshape(-1, 6) for batch in batches]).astype(np.float64)
    first = feed_forward(w, x, 0)
    if kind == "parallel":
        second = feed_forward(w, x, 4)
        after = x + first + second
        wanted = [influence(x + second, after), influence(x + first, after)]
    else:
        wanted = [influence(x, x + (np.tanh(first) if kind == "scaled" else first))]
    np.testing.assert_allclose([s.influence for s in seen], wanted, rtol=TOLERANCE)


@pytest.mark.parametrize("kind", ["no stream", "read elsewhere"])
def test_no_influence_where_no_stream_takes_it_up(kind: str) -> None:
    made, consumers = built(kind)
    batch = {n: np.asarray(v) for n, v in made.inputs(2, 3).items()}
    with TorchStream(made.graph, made.weights, [batch]) as stream:
        (seen,) = stream.observe(consumers, INFLUENCE)
    assert seen.influence is None
    assert junction(made.graph, consumers[0].op) is None


def test_influence_only_when_asked() -> None:
    made, consumers = built("plain")
    batch = {n: np.asarray(v) for n, v in made.inputs(2, 3).items()}
    with TorchStream(made.graph, made.weights, [batch]) as stream:
        (seen,) = stream.observe(consumers)
    assert seen.influence is None


def test_influence_of_convolutions_compares_channels() -> None:
    b = Builder()
    x = b.space(5, rank=1)
    wide = b.call("aten.conv1d.default", x, b.weight(8, 5, 1))
    out = b.call("aten.conv1d.default", b.call("aten.relu.default", wide), b.weight(5, 8, 1))
    made, consumers = _consumers_of(b.finish(b.call("aten.add.Tensor", x, out)), out.name)
    batch = {n: np.asarray(v) for n, v in made.inputs(4, 1).items()}
    with TorchStream(made.graph, made.weights, [batch]) as stream:
        (seen,) = stream.observe(consumers, INFLUENCE)
    w = [made.weights[name].astype(np.float64) for name in made.weights]
    before = np.einsum("oi,bil->blo", w[0][:, :, 0], batch["x0"].astype(np.float64)) + w[1]
    inner = np.maximum(before @ w[2][:, :, 0].T, 0) @ w[3][:, :, 0].T
    assert seen.influence == pytest.approx(influence(before, before + inner), rel=TOLERANCE)


def _consumers_of(made: Built, op: str) -> tuple[Built, list[Consumer]]:
    coupling = couple(made.graph, ATEN)
    consumers = {c for g in coupling.groups for c in g.consumers if c.op == op}
    return made, list(consumers)


def test_adding_what_was_seen_weighs_tokens() -> None:
    def seen(count: int, value: float | None) -> Seen:
        return Seen(Sample(Moments(count, np.ones(1), np.ones(1))), influence=value)

    assert (seen(3, 0.1) + seen(1, 0.5)).influence == pytest.approx(0.2)
    assert (seen(3, 0.1) + seen(1, None)).influence == pytest.approx(0.1)
    assert (seen(3, None) + seen(1, None)).influence is None


# -- divergence -------------------------------------------------------------------------------

HALF: Counts = {"neuron": 37, "query_head": 2, "kv_head": 1}


def scored(name: str) -> tuple[Coupling, list[Group], dict[str, np.ndarray]]:
    coupling = coupled(name)
    groups = chosen(coupling)
    ranked = score_all(coupling, groups, Magnitude(), arrays(name), None)
    return coupling, groups, {n: r.scores for n, r in ranked.items()}


def zeroed(name: str, scores: Mapping[str, np.ndarray], counts: Counts) -> dict[str, np.ndarray]:
    """The weights with zeros, written for this architecture: grouped heads side by side."""
    weights = {k: np.array(v) for k, v in arrays(name).items()}
    for i in range(2):
        at = f"model.layers.{i}"
        neurons = scores[f"{at}.mlp/neuron"]
        gone = np.argsort(-neurons, kind="stable")[counts["neuron"] :]
        weights[f"{at}.mlp.down_proj.weight"][:, gone] = 0
        o = weights[f"{at}.self_attn.o_proj.weight"]
        kv, q = (scores[f"{at}.self_attn/{role}"] for role in ("kv_head", "query_head"))
        heads = o.reshape(len(o), *q.shape, -1)
        for k in range(len(kv)):
            rank = list(np.argsort(-q[k], kind="stable"))
            heads[:, k, rank[counts["query_head"] :]] = 0
        heads[:, np.argsort(-kv, kind="stable")[counts["kv_head"] :]] = 0
    return weights


def test_divergence_of_logits_is_that_of_the_model_with_zeros() -> None:
    coupling, groups, scores = scored("llama")
    batches = rows(coupling, BATCHES)
    measure = MaskedDivergence(coupling, groups, scores, arrays("llama"), batches)
    counts = {g.name: HALF[g.role] for g in groups}
    masked = zeroed("llama", scores, HALF)
    model = zoo.model("llama").module
    small = zoo.build("llama")
    small.load_state_dict({k: torch.from_numpy(masked[k]) for k in small.state_dict()})
    parts = []
    with torch.no_grad():
        for batch in BATCHES:
            ids = torch.from_numpy(batch)
            dense, found = (
                m(input_ids=ids).logits.double().log_softmax(-1) for m in (model, small)
            )
            parts.append(kl_div(found, dense, reduction="none", log_target=True).sum(-1).flatten())
    wanted = float(torch.cat(parts).mean())
    assert wanted > 1e-5
    assert measure(counts) == pytest.approx(wanted, rel=1e-3)
    assert measure({g.name: g.size for g in groups}) == pytest.approx(0, abs=1e-9)


def test_divergence_without_logits_is_the_relative_squared_error() -> None:
    made, _ = built("plain")
    coupling = couple(made.graph, ATEN)
    (neurons,) = (g for g in coupling.groups if g.role == "neuron")
    batch = {n: np.asarray(v) for n, v in made.inputs(2, 3).items()}
    scores = {neurons.name: np.arange(10.0)}
    measure = MaskedDivergence(coupling, [neurons], scores, made.weights, [batch])
    w = {name: value.astype(np.float64) for name, value in made.weights.items()}
    x = batch["x0"].reshape(-1, 6).astype(np.float64)
    dense = x + feed_forward(w, x, 0)
    w["w2"][:, :6] = 0  # the four highest stay
    small = x + feed_forward(w, x, 0)
    wanted = ((small - dense) ** 2).sum() / (dense**2).sum()
    assert measure({neurons.name: 4}) == pytest.approx(wanted, rel=TOLERANCE)


def test_divergence_that_is_no_number_is_infinite() -> None:
    made, _ = built("plain")
    coupling = couple(made.graph, ATEN)
    (neurons,) = (g for g in coupling.groups if g.role == "neuron")
    batch = {n: np.full(v.shape, np.inf, np.float32) for n, v in made.inputs(2, 3).items()}
    measure = MaskedDivergence(
        coupling, [neurons], {neurons.name: np.arange(10.0)}, made.weights, [batch]
    )
    assert measure({neurons.name: 4}) == np.inf


# -- all together -----------------------------------------------------------------------------


def test_windows_are_spread_over_all_batches() -> None:
    batches = [{"x": np.arange(4) + 4 * i, "y": np.arange(4)} for i in range(10)]
    found = spread(batches, 16)
    assert sum(len(batch["x"]) for batch in found) == 16
    np.testing.assert_array_equal(
        np.concatenate([batch["x"] for batch in found]), np.arange(16) * 40 // 16
    )
    assert spread(batches[:2], 16) == tuple(batches[:2])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("models") / "llama"
    zoo.build("llama").save_pretrained(folder)
    return load(str(folder), trust_remote_code=False, need_weights=True, progress=Silent())


@pytest.fixture(scope="module")
def calibrated(loaded: Loaded) -> Calibrated:
    return Calibrated(tuple(rows(loaded.coupling, [tokens(i, 4, 16) for i in range(6)])), {})


def test_gathered_is_what_was_asked_for(loaded: Loaded, calibrated: Calibrated) -> None:
    groups = chosen(loaded.coupling)
    names = {g.name for g in groups}
    found = gather(loaded, groups, Obs(), calibrated, INFLUENCE, Silent())
    assert found.influence.keys() == names
    assert (found.scores, found.curves, found.weight, found.divergence) == ({}, {}, {}, None)
    needs = frozenset({"scores", "curves", "weight"})
    found = gather(loaded, groups, Obs(), calibrated, needs, Silent())
    assert found.scores.keys() == found.curves.keys() == found.weight.keys() == names
    assert all(weight > 0 for weight in found.weight.values())
    assert found.influence == {}
    found = gather(loaded, groups, Wanda(), calibrated, needs, Silent())
    assert (found.scores.keys(), found.curves) == (names, {})
    found = gather(loaded, groups, Magnitude(), None, frozenset({"scores"}), Silent())
    assert found.scores.keys() == names


def budget_of(loaded: Loaded, share: float) -> Budget:
    cost = loaded.cost
    return Budget(
        lambda counts: cost.evaluate(cost.blocks, counts), share * cost.evaluate(cost.blocks, {})
    )


@pytest.mark.parametrize("name", ALLOCATORS)
def test_every_allocator_on_a_model(name: str, loaded: Loaded, calibrated: Calibrated) -> None:
    groups, budget = chosen(loaded.coupling), budget_of(loaded, 0.6)
    plans = [
        allocate(ALLOCATORS[name](3), loaded, groups, budget, Obs(), calibrated, Silent())
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    assert plans[0].keys() == {g.name for g in groups}
    left = budget.cost(plans[0])
    neuron = 3 * 48  # a row of two matrices and a column of one
    assert budget.limit - (2 if name == "uniform" else 1) * neuron < left <= budget.limit


def test_evolution_lowers_the_divergence(loaded: Loaded, calibrated: Calibrated) -> None:
    groups, budget = chosen(loaded.coupling), budget_of(loaded, 0.6)
    needs = frozenset({"scores", "divergence"})
    evidence = gather(loaded, groups, Obs(), calibrated, needs, Silent())
    assert evidence.divergence is not None
    found = {
        name: allocate(ALLOCATORS[name](0), loaded, groups, budget, Obs(), calibrated, Silent())
        for name in ("dp", "evolutionary")
    }
    better, worse = evidence.divergence([found["evolutionary"], found["dp"]])
    assert better < worse
