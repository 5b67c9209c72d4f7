"""Blocks traced once and repeated give the graph that tracing all of them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from prunec.frontends import hf
from prunec.frontends import torch as frontend
from prunec.frontends.torch import trace
from prunec.frontends.torch_hf import trace_hf
from prunec.frontends.torch_repeat import find_runs
from prunec.ir.graph import Graph, renamed
from prunec.ir.text import print_graph
from prunec.ir.verify import verify

SHAPE = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SHAPE | {"num_key_value_heads": 2, "num_hidden_layers": 8},
    "bert": SHAPE | {"num_hidden_layers": 8},
    "gpt2": {"n_embd": 48, "n_head": 6, "n_layer": 8},
    # the first block of each stack makes the position bias that the others read
    "t5": {"d_model": 48, "d_ff": 80, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 9},
}


def text(graph: Graph) -> str:
    """The printed graph, its values numbered in order."""
    names: dict[str, str] = {}

    def number(name: str) -> str:
        return name if name.startswith("@") else names.setdefault(name, f"%v{len(names)}")

    inputs = tuple(replace(value, name=number(value.name)) for value in graph.inputs)
    ops = tuple(renamed(op, number) for op in graph.ops)
    outputs = tuple((name, number(value)) for name, value in graph.outputs)
    return print_graph(replace(graph, inputs=inputs, ops=ops, outputs=outputs))


def both_ways(act: Callable[[], Graph], monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, Graph]:
    repeated = act()
    monkeypatch.setattr(frontend, "find_runs", lambda *_: [])
    return repeated, act()


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model(name, vocab_size=131, **MODELS[name])
    model = hf.build_meta(config, trust_remote_code=False)
    names = [n for n, _ in model.named_parameters()]
    repeated, whole = both_ways(lambda: trace_hf(model).graph, monkeypatch)
    assert any("_b7" in result for op in repeated.ops for result in op.results)
    assert text(repeated) == text(whole)
    assert list(repeated.parameters) == list(whole.parameters)
    verify(repeated)
    assert [n for n, _ in model.named_parameters()] == names  # the model is left as it was


class Block(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6, bias=False)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * torch.relu(self.inner(x))


class Chain(nn.Module):
    """Eight blocks; `how` says in what way they are not simply one after the other."""

    def __init__(self, how: str) -> None:
        super().__init__()
        factors = [1.0 + i if how == "factors" else 1.0 for i in range(8)]
        self.blocks = nn.ModuleList(map(Block, factors))
        if how == "tied":
            self.blocks[5].inner.weight = self.blocks[4].inner.weight
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        middle = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.how == "between" and i > 1:
                x = x * 2
            if i == 4:
                middle = x
        if self.how == "twice":
            x = self.blocks[-1](x)
        return x + middle if self.how == "kept" else x


@pytest.mark.parametrize("how", ["factors", "between", "kept", "twice", "tied"])
def test_chains_that_are_no_runs(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, example = Chain(how), {"x": torch.zeros(2, 6)}

    def act() -> Graph:
        return trace(chain, example, dynamic={"x": {0: "batch"}}).graph

    assert find_runs(chain, example) == []
    repeated, whole = both_ways(act, monkeypatch)
    assert text(repeated) == text(whole)


def test_plain_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    chain, example = Chain("plain"), {"x": torch.zeros(2, 6)}
    (run,) = find_runs(chain, example)
    assert (run.path, run.first, run.stop) == ("blocks", 1, 8)
    repeated, whole = both_ways(lambda: trace(chain, example).graph, monkeypatch)
    assert text(repeated) == text(whole)
    assert "@blocks.7.inner.weight" in text(repeated)


def test_module_that_counts_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot run with fewer blocks is traced whole."""

    class Counting(Chain):
        def forward(self, x: Tensor) -> Tensor:
            for i in range(8):
                x = self.blocks[i](x)
            return x

    example = {"x": torch.zeros(2, 6)}
    assert find_runs(Counting("plain"), example)
    found = trace(Counting("plain"), example).graph
    assert "@blocks.7.inner.weight" in text(found)
