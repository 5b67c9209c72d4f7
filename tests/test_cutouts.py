"""Blocks cut out of programs compute what they computed inside of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import zoo

from prunec.backends.interpreter import execute
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Graph
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.cutouts import cut_out, fingerprint, leaves
from prunec.passes.regions import Region, find_regions
from prunec.timing.clock import shortened

DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 3},
    "gemma3": {},
    "bert": {"num_hidden_layers": 3},
    "gpt_neox": {"num_hidden_layers": 3},
    "t5": {"num_layers": 2},
    "resnet": {"embedding_size": 16, "depths": [3, 2]},
}


@cache
def loaded(name: str) -> tuple[Coupling, dict[str, torch.Tensor], tuple[Region, ...]]:
    traced = zoo.trace_hf(zoo.build(name, meta=True, **DEEP[name]))
    module = zoo.build(name, **DEEP[name])
    weights = {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}
    weights |= {key: zoo.to_torch(value) for key, value in traced.constants.items()}
    coupling = couple(traced.graph, ATEN)
    return coupling, weights, find_regions(coupling)


def values(graph: Graph, weights: dict[str, torch.Tensor], name: str, wanted: list[str]) -> Any:
    """Some values of a whole program on the way."""
    given = tuple(v for v in wanted if v in {value.name for value in graph.inputs})
    made = [v for v in wanted if v not in given]
    shown = replace(graph, outputs=tuple((value, value) for value in made))
    (found,) = execute(shown, weights, [zoo.inputs(name)])
    return found | {value: zoo.inputs(name)[value[1:]] for value in given}


@pytest.mark.parametrize("name", DEEP)
def test_a_block_computes_what_its_region_does(name: str) -> None:
    coupling, weights, regions = loaded(name)
    assert leaves(regions)
    for region in leaves(regions):
        cut = cut_out(coupling, region).coupling.graph
        ((_, last),) = cut.outputs
        inputs = [value.name for value in cut.inputs]
        assert region.entry in inputs
        seen = values(coupling.graph, weights, name, [*inputs, last])
        (found,) = execute(cut, weights, [{v[1:]: seen[v] for v in inputs}])
        assert torch.equal(found["output"], seen[last]), region.name


@pytest.mark.parametrize("name", DEEP)
def test_blocks_share_no_layer_and_know_when_they_are_gone(name: str) -> None:
    coupling, _, regions = loaded(name)
    cuts = [cut_out(coupling, region) for region in leaves(regions)]
    ops = [{c.op for c in cut.coupling.contractions} for cut in cuts]
    assert sum(map(len, ops)) == len(set().union(*ops))
    assert all(cut.layer in own for cut, own in zip(cuts, ops, strict=True))


def test_layers_that_are_alike_have_one_fingerprint() -> None:
    coupling, _, regions = loaded("llama")
    prints = {r.name: fingerprint(cut_out(coupling, r).coupling.graph) for r in leaves(regions)}
    assert len(prints) == 6
    assert len({p for name, p in prints.items() if "self_attn" in name}) == 1
    assert len(set(prints.values())) == 2


@pytest.mark.parametrize("name", DEEP)
def test_a_narrower_block_runs(name: str) -> None:
    """Inputs and results of the block have the sizes that are left, as the program says."""
    coupling, weights, regions = loaded(name)
    for region in leaves(regions):
        cut = cut_out(coupling, region)
        counts = {n: (coupling.by_name[n].size + 1) // 2 for n in cut.groups}
        small = shortened(cut.coupling, counts)
        sizes = {**dict.fromkeys(small.graph.symbols, 6), "batch": 2}
        sliced = {key: take(value, small.kept.get(key, {})) for key, value in weights.items()}
        seen = values(
            coupling.graph, weights, name, [value.name for value in cut.coupling.graph.inputs]
        )
        given = {}
        for value in small.graph.inputs:
            shape = [d if isinstance(d, int) else None for d in value.type.shape]
            tensor = seen[value.name]
            for dim, size in enumerate(shape):
                tensor = tensor if size is None else tensor.narrow(dim, 0, size)
            given[value.name[1:]] = tensor
        (found,) = execute(small.graph, sliced, [given])
        ((_, last),) = small.graph.outputs
        wanted = small.graph.types[last].shape
        assert [n for n, d in zip(found["output"].shape, wanted, strict=True) if d == n] == [
            d for d in wanted if isinstance(d, int)
        ], (region.name, sizes)


def take(value: torch.Tensor, kept: Any) -> torch.Tensor:
    for dim, indices in kept.items():
        value = value.index_select(dim, torch.from_numpy(indices))
    return value
