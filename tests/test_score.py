"""Criteria, against NumPy written for the one layout at hand: neurons, heads, and ragged heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from handmade import Builder, Built

from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Ref
from prunec.passes.compress import select
from prunec.passes.couple import couple
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.criteria import CRITERIA, Magnitude, Random, Wanda
from prunec.passes.profile import Moments
from prunec.passes.score import NEEDS, lost_score

KV, SHARED, DIM = 3, 2, 4


def gated() -> Built:
    """gate w0 [12, 6], up w1 [12, 6] with bias w2, down w3 [5, 12]"""
    b = Builder()
    x = b.input("batch", 6)
    gate = b.call("aten.silu.default", b.linear(x, 12, bias=False))
    y = b.call("aten.mul.Tensor", gate, b.linear(x, 12))
    return b.finish(b.linear(y, 5, bias=False))


def attention() -> Built:
    """q w0 [24, 6], k w1 [12, 6], v w2 [12, 6], o w3 [5, 24]: two query heads a key head."""
    b = Builder()
    x = b.input("batch", "time", 6)

    def heads(count: int) -> Ref:
        y = b.linear(x, count * DIM, bias=False)
        y = b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), count, DIM))
        return b.call("aten.transpose.int", y, 1, 2)

    q, k, v = heads(KV * SHARED), heads(KV), heads(KV)
    name = "aten.scaled_dot_product_attention.default"
    y = b.call(name, q, k, v, scale=0.5, enable_gqa=True)
    y = b.call("aten.transpose.int", y, 1, 2)
    y = b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), -1))
    return b.finish(b.linear(y, 5, bias=False))


def find(coupling: Coupling, role: str) -> Group:
    (group,) = [g for g in coupling.groups if g.role == role]
    return group


def squares(weight: np.ndarray, shape: Sequence[int], keep: Sequence[int]) -> np.ndarray:
    """Squared entries of a weight seen in `shape`, summed over all but the dimensions `keep`."""
    seen = weight.astype(np.float64).reshape(shape) ** 2
    found: np.ndarray = seen.sum(tuple(d for d in range(seen.ndim) if d not in keep))
    return found


def test_magnitude_of_neurons() -> None:
    """The norm of the rows that make a neuron, its bias, and the column that reads it."""
    program = gated()
    coupling, w = couple(program.graph, ATEN), program.weights
    found = Magnitude().score(coupling, find(coupling, "neuron"), w, ())
    wanted = (w["w0"] ** 2).sum(1) + (w["w1"] ** 2).sum(1) + w["w2"] ** 2 + (w["w3"] ** 2).sum(0)
    np.testing.assert_allclose(found, np.sqrt(wanted), rtol=1e-6)


def test_magnitude_of_key_heads() -> None:
    """A key head goes with its value head, its query heads, and their columns in the output."""
    program = attention()
    coupling, w = couple(program.graph, ATEN), program.weights
    found = Magnitude().score(coupling, find(coupling, "kv_head"), w, ())
    wanted = (
        squares(w["w0"], (KV, SHARED, DIM, 6), [0])
        + squares(w["w1"], (KV, DIM, 6), [0])
        + squares(w["w2"], (KV, DIM, 6), [0])
        + squares(w["w3"], (5, KV, SHARED, DIM), [1])
    )
    np.testing.assert_allclose(found, np.sqrt(wanted), rtol=1e-6)


def test_magnitude_of_query_heads_is_ragged() -> None:
    """Each key head has a ranking of its own among its query heads."""
    program = attention()
    coupling, w = couple(program.graph, ATEN), program.weights
    group = find(coupling, "query_head")
    found = Magnitude().score(coupling, group, w, ())
    wanted = squares(w["w0"], (KV, SHARED, DIM, 6), [0, 1]) + squares(
        w["w3"], (5, KV, SHARED, DIM), [1, 2]
    )
    assert found.shape == (KV, SHARED)
    np.testing.assert_allclose(found, np.sqrt(wanted), rtol=1e-6)


def observed(group: Group, width: int) -> list[tuple[Consumer, Moments]]:
    rng = np.random.default_rng(3)
    return [
        (consumer, Moments(9, rng.random(width), rng.random(width))) for consumer in group.consumers
    ]


def columns(weight: np.ndarray, moments: Moments) -> np.ndarray:
    """Wanda's score of each column: sum_i |W_ij| ||X_j||."""
    found: np.ndarray = np.abs(weight).sum(0) * np.sqrt(moments.squares)
    return found


def test_wanda_of_neurons() -> None:
    program = gated()
    coupling, w = couple(program.graph, ATEN), program.weights
    group = find(coupling, "neuron")
    seen = observed(group, 12)
    assert [c.weight.parameter for c, _ in seen] == ["w3"]
    found = Wanda().score(coupling, group, w, seen)
    np.testing.assert_allclose(found, columns(w["w3"], seen[0][1]), rtol=1e-6)


@pytest.mark.parametrize(("role", "over"), [("kv_head", (1, 2)), ("query_head", (2,))])
def test_wanda_folds_columns_onto_heads(role: str, over: tuple[int, ...]) -> None:
    program = attention()
    coupling, w = couple(program.graph, ATEN), program.weights
    group = find(coupling, role)
    seen = observed(group, KV * SHARED * DIM)
    found = Wanda().score(coupling, group, w, seen)
    wanted = columns(w["w3"], seen[0][1]).reshape(KV, SHARED, DIM).sum(over)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_wanda_without_a_consumer_is_magnitude() -> None:
    """The inside of query and key heads meets no layer."""
    program = attention()
    coupling = couple(program.graph, ATEN)
    inside = [g for g in coupling.groups if g.role == "head_dim" and not g.consumers]
    assert len(inside) == 1
    found = Wanda().score(coupling, inside[0], program.weights, ())
    wanted = Magnitude().score(coupling, inside[0], program.weights, ())
    np.testing.assert_array_equal(found, wanted)


def test_wanda_of_a_grouped_convolution() -> None:
    """The weight lacks the group factor: its rows read the channels of their own group."""
    b = Builder()
    weight = b.weight(8, 3, 1, 1)
    y = b.call("aten.conv2d.default", b.space(6), weight, None, (1, 1), (0, 0), (1, 1), 2)
    program = b.finish(b.mix(y))
    coupling = couple(program.graph, ATEN)
    (group,) = [g for g in coupling.groups if g.size == 3 and g.consumers]
    seen = [
        (c, Moments(9, np.arange(1.0, 7.0), np.zeros(6)))
        for c in group.consumers
        if c.weight.parameter == weight.name[1:]
    ]
    found = Wanda().score(coupling, group, program.weights, seen)
    sums = np.abs(program.weights[weight.name[1:]]).reshape(2, 4, 3).sum(1)
    norms = np.sqrt(np.arange(1.0, 7.0)).reshape(2, 3)
    np.testing.assert_allclose(found, (sums * norms).sum(0), rtol=1e-6)


def test_random_depends_on_seed_and_name_alone() -> None:
    coupling = couple(attention().graph, ATEN)
    heads, inner = find(coupling, "kv_head"), find(coupling, "query_head")
    first = Random(seed=1).score(coupling, heads, {}, ())
    np.testing.assert_array_equal(first, Random(seed=1).score(coupling, heads, {}, ()))
    assert not np.array_equal(first, Random(seed=2).score(coupling, heads, {}, ()))
    assert Random().score(coupling, inner, {}, ()).shape == (KV, SHARED)


def test_criteria_say_what_they_need() -> None:
    needs = {name: made().needs for name, made in CRITERIA.items()}
    assert all(found <= set(NEEDS) for found in needs.values())
    assert needs["magnitude"] == needs["random"] == frozenset()
    assert needs["wanda"] == {"squares"}
    assert needs["obs"] == {"squares", "sums", "gram"}
    assert needs["taylor"] == {"gradients"}


def test_selection_keeps_the_highest_in_order() -> None:
    """Ties go to the lower index; a group with a parent chooses under each index of it."""
    group = Group("g", "neuron", 5, ())
    found = select(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3, group)
    assert found.keep.tolist() == [1, 2, 3]
    inner = Group("h", "query_head", 3, (), parent="g")
    ragged = select(np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]), 2, inner)
    assert ragged.keep.tolist() == [[1, 2], [0, 2]]
    assert ragged.parent == "g"


def test_what_is_lost_by_scores_falls_with_what_stays() -> None:
    assert lost_score(np.array([3.0, 1.0])).at.tolist() == [1.0, 0.25, 0.0]
    assert lost_score(np.array([[3.0, 1.0], [0.0, 4.0]])).at.tolist() == [1.0, 0.125, 0.0]
    assert lost_score(np.array([-1.0, 1.0, 0.0])).at.tolist() == [1.0, 1 / 3, 0.0, 0.0]
    assert lost_score(np.zeros(2)).at.tolist() == [0.0, 0.0, 0.0]
