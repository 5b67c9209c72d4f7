"""Costs of two small networks, counted by hand."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import zoo
from handmade import Builder

from prunec.frontends.torch_hf import trace_hf
from prunec.ir.axes import Atom, Product, Selection, Sum
from prunec.ir.dialects.aten import ATEN
from prunec.passes.cost import Cost, Polynomial, itemsize
from prunec.passes.couple import couple
from prunec.passes.rewrite import rewrite

VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV, DIM = 131, 48, 80, 2, 6, 2, 8
BATCH, TIME = 3, 10


@pytest.fixture(scope="module")
def llama() -> Cost:
    return Cost(couple(trace_hf(zoo.build("llama", meta=True)).graph, ATEN))


def layer(heads: int = HEADS, kv: int = KV, ffn: int = FFN) -> int:
    """Weights of the matrices of one layer: q and o, k and v, gate, up and down."""
    return 2 * HIDDEN * heads * DIM + 2 * HIDDEN * kv * DIM + 3 * HIDDEN * ffn


def attention(heads: int = HEADS) -> int:
    """Multiply-adds of scores and values in one layer."""
    return 2 * BATCH * heads * TIME * TIME * DIM


NORMS = (2 * LAYERS + 1) * HIDDEN


def sizes(cost: Cost) -> dict[str, int]:
    """The example's batch and length, whatever the length is called."""
    symbols = dict.fromkeys(cost.coupling.graph.symbols, TIME)
    return symbols | {"batch": BATCH}


def named(cost: Cost, number: int, role: str) -> str:
    (name,) = [
        g.name for g in cost.coupling.groups if g.role == role and f"layers.{number}." in g.name
    ]
    return name


def test_parameters_of_a_llama(llama: Cost) -> None:
    assert llama.evaluate(llama.blocks, {}) == LAYERS * layer() + NORMS
    assert llama.evaluate(llama.parameters, {}) == LAYERS * layer() + NORMS + 2 * VOCAB * HIDDEN


def test_flops_of_a_llama(llama: Cost) -> None:
    """Two a multiply-add: the matrices for each token, and attention for each pair of tokens."""
    matrices = BATCH * TIME * (LAYERS * layer() + VOCAB * HIDDEN)
    wanted = 2 * (matrices + LAYERS * attention())
    assert llama.evaluate(llama.flops, sizes(llama)) == wanted


def test_cache_of_a_llama(llama: Cost) -> None:
    """Keys and values of every layer, for one position."""
    assert llama.evaluate(llama.cache, {}) == LAYERS * 2 * KV * DIM


def test_costs_follow_the_counts(llama: Cost) -> None:
    """Half of the neurons of layer 0, one of two key heads and two of three queries in layer 1."""
    counts = {
        named(llama, 0, "neuron"): 40,
        named(llama, 1, "kv_head"): 1,
        named(llama, 1, "query_head"): 2,
    }
    first, second = layer(ffn=40), layer(heads=2, kv=1)
    assert llama.evaluate(llama.blocks, counts) == first + second + NORMS
    matrices = BATCH * TIME * (first + second + VOCAB * HIDDEN)
    flops = 2 * (matrices + attention() + attention(heads=2))
    assert llama.evaluate(llama.flops, {**sizes(llama), **counts}) == flops
    assert llama.evaluate(llama.cache, counts) == 2 * KV * DIM + 2 * DIM


def test_a_plan_costs_what_the_rewritten_program_has(llama: Cost) -> None:
    """The polynomial against the shapes of the parameters that are left."""
    groups = [g for g in llama.coupling.groups if g.role != "hidden"]
    counts = {g.name: max(1, g.size // 2) for g in groups}
    chosen = {name: Selection(np.arange(count)) for name, count in counts.items()}
    smaller = rewrite(llama.coupling, chosen).graph
    left = [p.type.shape for p in smaller.parameters.values() if p.kind == "parameter"]
    assert llama.evaluate(llama.parameters, counts) == sum(map(prod, left))


def convolutions() -> Cost:
    """[batch, 2, 4, 4] to 12 channels by 1x1, to 8 by 3x3 in two groups, to 3 by 1x1."""
    b = Builder()
    x = b.space(12)
    y = b.call(
        "aten.conv2d.default", x, b.weight(8, 6, 3, 3), b.weight(8), (2, 2), (1, 1), (1, 1), 2
    )
    return Cost(couple(b.finish(b.mix(y)).graph, ATEN))


def test_parameters_of_convolutions() -> None:
    cost = convolutions()
    assert cost.evaluate(cost.parameters, {}) == (12 * 2 + 12) + (8 * 6 * 9 + 8) + 3 * 8


def test_flops_of_convolutions() -> None:
    """For every place of the result a window over the channels that its group reads."""
    cost = convolutions()
    wanted = 2 * BATCH * (16 * 12 * 2 + 4 * 8 * 6 * 9 + 4 * 3 * 8)
    assert cost.evaluate(cost.flops, {"batch": BATCH}) == wanted


def test_activations_of_a_chain() -> None:
    """The most that is alive at once: a value of 12 and what is made of it, per row."""
    b = Builder()
    y = b.call("aten.relu.default", b.rows(12))
    cost = Cost(couple(b.finish(b.down(y)).graph, ATEN))
    assert cost.activation_bytes({"batch": BATCH}) == BATCH * (12 + 12) * 4
    (neuron,) = [g.name for g in cost.coupling.groups]
    assert cost.activation_bytes({"batch": BATCH, neuron: 5}) == BATCH * (5 + 5) * 4


def test_polynomials_of_axes() -> None:
    a, b = Atom("a", 3), Atom("b", 4)
    size = Polynomial.of(Product((Sum((a, b)), a)))
    assert size({"a": 3, "b": 4}) == (3 + 4) * 3
    assert size({"a": 2, "b": 1}) == (2 + 1) * 2
    assert str(size) == "a a + a b"
    assert Polynomial.of(Atom("1", 1))({}) == 1
    assert Polynomial.constant(0)({}) == 0


def test_item_sizes() -> None:
    wanted = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i64": 8, "bool": 1, "i8": 1}
    assert {dtype: itemsize(dtype) for dtype in wanted} == wanted
