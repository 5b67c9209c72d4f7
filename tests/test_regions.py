"""Regions: what is found in networks of every residual kind, and that removing it is exact.

The reference is the smaller network written by hand: the same modules with one of them deleted
from its list, or replaced by one that adds nothing, run by the library that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo

from prunec.backends.interpreter import execute
from prunec.backends.onnx import emit
from prunec.frontends.onnx import read_onnx
from prunec.ir.dialects.aten import ATEN
from prunec.ir.dialects.onnx import ONNX
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.regions import Region, find_regions
from prunec.passes.remove import remove

DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 3},
    "bert": {"num_hidden_layers": 3},
    "gpt_neox": {"num_hidden_layers": 3},
    "opt": {"num_hidden_layers": 3},
    "t5": {"num_layers": 3},
    "vit": {"num_hidden_layers": 3},
    "resnet": {"embedding_size": 16, "depths": [3, 2]},
}


@cache
def coupled(name: str) -> Coupling:
    traced = zoo.trace_hf(zoo.build(name, meta=True, **DEEP[name]))
    return couple(traced.graph, ATEN)


@cache
def regions(name: str) -> dict[str, Region]:
    return {region.name: region for region in find_regions(coupled(name))}


def network(name: str) -> Any:
    """The network, on its own, with the weights that every other one of this name has."""
    module = zoo.build(name, **DEEP[name])
    module.config.use_cache = False
    return module


def removed(name: str, *names: str) -> dict[str, torch.Tensor]:
    """What the program computes without some regions."""
    module = network(name)
    smaller = remove(coupled(name), [regions(name)[n] for n in names]).graph
    traced = zoo.trace_hf(zoo.build(name, meta=True, **DEEP[name]))
    weights = {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}
    weights |= {key: zoo.to_torch(value) for key, value in traced.constants.items()}
    (found,) = execute(smaller, weights, [zoo.inputs(name)])
    return found


def by_hand(name: str, change: Callable[[Any], None]) -> dict[str, torch.Tensor]:
    """What the network computes once it was changed by hand."""
    module = network(name)
    change(module)
    names = [public for public, _ in coupled(name).graph.outputs]
    with torch.no_grad():
        found = module(**zoo.inputs(name))
    return {public: found[public] for public in names}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_regions_of_a_written_file(name: str, tmp_path: Path) -> None:
    """ONNX of our own, where weights are transposed before they are multiplied."""
    traced = zoo.trace_hf(zoo.build(name, meta=True, **DEEP[name]))
    module = network(name)
    weights = {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}
    weights |= {key: zoo.to_torch(value) for key, value in traced.constants.items()}
    emit(traced.graph, weights, tmp_path / "model.onnx")
    found = find_regions(couple(read_onnx(tmp_path / "model.onnx").graph, ONNX))
    assert [(r.name, r.role) for r in found] == [(r.name, r.role) for r in regions(name).values()]


class Nothing(torch.nn.Module):
    """A branch that adds nothing."""

    def __init__(self, values: int = 1) -> None:
        super().__init__()
        self.values = values

    def forward(self, hidden: torch.Tensor | None = None, **given: Any) -> Any:
        hidden = given["hidden_states"] if hidden is None else hidden
        zeros = torch.zeros_like(hidden)
        return (zeros, *[None] * (self.values - 1)) if self.values > 1 else zeros


def without(path: str, number: int) -> Callable[[Any], None]:
    """Delete one module of a list."""

    def change(module: Any) -> None:
        del module.get_submodule(path)[number]

    return change


def silent(path: str, values: int = 1) -> Callable[[Any], None]:
    """Replace one module by one that adds nothing."""

    def change(module: Any) -> None:
        parent, _, last = path.rpartition(".")
        setattr(module.get_submodule(parent), last, Nothing(values))

    return change


LAYERS = {
    "llama": ("model.layers", 1),
    "bert": ("encoder.layer", 1),
    "gpt_neox": ("gpt_neox.layers", 1),
    "opt": ("model.decoder.layers", 1),
    "vit": ("vit.layers", 1),
    "resnet": ("encoder.stages.0.layers", 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_less_is_the_smaller_network(name: str) -> None:
    path, number = LAYERS[name]
    found = removed(name, f"{path}.{number}/layer")
    assert same(found, by_hand(name, without(path, number)))
    assert not same(found, by_hand(name, lambda module: None))


@pytest.mark.parametrize("number", [0, 2])
def test_the_first_and_the_last_layer(number: int) -> None:
    for name in ("llama", "bert", "gpt_neox", "opt", "vit"):
        path, _ = LAYERS[name]
        found = removed(name, f"{path}.{number}/layer")
        assert same(found, by_hand(name, without(path, number)))


T5_PART = "decoder.block.1.layer.2.DenseReluDense"


@pytest.mark.parametrize(
    ("name", "region", "change"),
    [
        ("llama", "model.layers.1.self_attn", silent("model.layers.1.self_attn", 2)),
        ("llama", "model.layers.2.mlp", silent("model.layers.2.mlp")),
        ("gpt_neox", "gpt_neox.layers.0.attention", silent("gpt_neox.layers.0.attention", 2)),
        ("gpt_neox", "gpt_neox.layers.2.mlp", silent("gpt_neox.layers.2.mlp")),
        ("t5", T5_PART, silent(T5_PART)),
        ("vit", "vit.layers.0.mlp", silent("vit.layers.0.mlp")),
    ],
)  # fmt: skip
def test_a_sublayer_less_adds_nothing(
    name: str, region: str, change: Callable[[Any], None]
) -> None:
    assert same(removed(name, f"{region}/sublayer"), by_hand(name, change))


def test_both_branches_of_a_parallel_layer_are_the_layer() -> None:
    parts = regions("gpt_neox")["gpt_neox.layers.1/layer"].parts
    wanted = removed("gpt_neox", "gpt_neox.layers.1/layer")
    assert len(parts) == 2
    assert same(removed("gpt_neox", *parts), wanted)
    assert same(removed("gpt_neox", *reversed(parts), "gpt_neox.layers.1/layer"), wanted)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_first_block_of_t5_leaves_its_position_bias(stack: str) -> None:
    """All blocks read the bias that the first one computes; it stays where the block goes."""

    def change(module: Any) -> None:
        blocks = module.get_submodule(f"{stack}.block")
        first, second = (block.layer[0].SelfAttention for block in blocks[:2])
        second.relative_attention_bias = first.relative_attention_bias
        second.has_relative_attention_bias = True
        del blocks[0]

    assert same(removed("t5", f"{stack}.block.0/layer"), by_hand("t5", change))


def test_a_block_of_t5() -> None:
    def change(module: Any) -> None:
        del module.encoder.block[1]
        del module.decoder.block[2]

    found = removed("t5", "encoder.block.1/layer", "decoder.block.2/layer")
    assert same(found, by_hand("t5", change))


FOUND = {
    "llama": (6, 3), "bert": (6, 3), "gpt_neox": (6, 3), "t5": (15, 6), "vit": (6, 3),
    "resnet": (0, 4), "swin": (8, 4), "convnext": (0, 5), "mixtral": (4, 2), "albert": (4, 0),
    "gemma3": (4, 2), "opt": (6, 3), "bloom": (4, 2), "distilbert": (4, 2),
}  # fmt: skip
"""Sublayers and layers. A layer of one branch is a layer alone; where all layers are one module,
no name tells them apart. OPT's second branch lies on a stream of two dimensions, the first and
the layer on one of three."""


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found(name: str) -> None:
    graph = zoo.trace_hf(zoo.build(name, meta=True, **DEEP.get(name, {}))).graph
    found = find_regions(couple(graph, ATEN))
    counts = [sum(region.role == role for region in found) for role in ("sublayer", "layer")]
    assert tuple(counts) == FOUND[name], [region.name for region in found]
    assert len({region.name for region in found}) == len(found)


def test_what_stays_keeps_its_groups() -> None:
    """The groups of the smaller program are those that coupling it anew finds."""
    for name, region in _each():
        smaller = remove(coupled(name), [region])
        again = couple(smaller.graph, ATEN)
        places = {g.name: (g.role, g.size, g.places) for g in smaller.groups}
        anew = {(g.role, g.size, g.places) for g in again.groups}
        assert set(places.values()) == anew, region.name
        assert [(c.op, c.attention) for c in smaller.contractions] == [
            (c.op, c.attention) for c in again.contractions
        ]
        ops = {c.op for g in smaller.groups for c in g.consumers}
        assert ops <= smaller.graph.producers.keys()


def _each() -> Iterator[tuple[str, Region]]:
    for name in ("llama", "bert", "gpt_neox", "opt", "resnet"):
        for region in list(regions(name).values())[-3:]:
            yield name, region
