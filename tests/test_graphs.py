"""The random graphs that other laws are tested on are what they claim to be."""

from __future__ import annotations

import pytest
import torch
from graphs import random_graphs
from hypothesis import given, settings
from programs import Network, Program, block, program

from prunec.backends.torch_module import to_fx
from prunec.ir.text import parse, print_graph
from prunec.ir.verify import verify

LAYOUTS = ("separate", "fused", "per head")
KERNELS = ("sdpa", "sdpa repeated", "matmul")


def check(found: Program) -> None:
    """The graph is valid, survives its text, has its weights, and computes what its module does."""
    graph = found.graph
    assert found.traced.warnings == (), "batch and time stay dynamic"
    assert verify(graph) == []
    assert parse(print_graph(graph)) == graph
    shapes = {name: tuple(value.shape) for name, value in found.parameters.items()}
    assert shapes == {name: p.type.shape for name, p in graph.parameters.items()}
    executed = to_fx(graph, found.parameters)
    for batch, time in ((2, 5), (3, 4), (1, 1)):
        inputs = found.inputs(batch, time)
        expected = found.module(**inputs)
        assert expected.isfinite().all()
        # the same kernels on the same numbers, in another order at most
        torch.testing.assert_close(executed(**inputs), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=12)
@given(random_graphs())
def test_random_graphs(found: Program) -> None:
    check(found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_in_all_variants(layout: str) -> None:
    attentions = [
        block(
            "Attention",
            hidden=15,
            kv=2,
            group=3,
            dim=4,
            out=15,
            layout=layout,
            kernel=kernel,
            rotary=True,
            normed=True,
            causal=True,
            bias=True,
        )
        for kernel in KERNELS
    ]
    check(program(Network(hidden=15, blocks=tuple(attentions), out=15, vocabulary=13, head="tied")))


def test_equal_networks_share_one_program() -> None:
    scale = (block("Scale", hidden=6),)
    first, second = (Network(hidden=6, blocks=scale, out=6) for _ in range(2))
    assert program(first) is program(second)
