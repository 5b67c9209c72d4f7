"""One layer of a traced network with the data it reads, for tests of criteria.

The network is run by torch with hooks, so that what a layer reads does not come from the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from programs import Network, Program, block, program

from prunec.ir.dialects.aten import ATEN
from prunec.passes.couple import couple
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.profile import Moments

__all__ = ["CASES", "DIM", "KV", "SHARED", "Case", "case", "network"]

KV, SHARED, DIM = 3, 2, 4

NETWORKS = {
    "mlp": Network(
        hidden=10,
        blocks=(
            block("Mlp", hidden=10, width=14, out=9, activation="silu", gate="branch", bias=False),
        ),
        out=9,
        vocabulary=23,
        head="linear",
        classes=11,
    ),
    "biased mlp": Network(
        hidden=10,
        blocks=(
            block("Mlp", hidden=10, width=14, out=9, activation="gelu", gate="none", bias=True),
        ),
        out=9,
        vocabulary=23,
        head="linear",
        classes=11,
    ),
    "attention": Network(
        hidden=10,
        blocks=(
            block(
                "Attention",
                hidden=10,
                kv=KV,
                group=SHARED,
                dim=DIM,
                out=9,
                layout="separate",
                kernel="sdpa",
                rotary=False,
                normed=False,
                causal=True,
                bias=False,
            ),
        ),
        out=9,
        vocabulary=23,
        head="linear",
        classes=11,
    ),
    "convolution": Network(
        hidden=10,
        blocks=(
            block("TimeConv", hidden=10, groups=1, width=14, out=9, depthwise=False, bias=False),
        ),
        out=9,
        vocabulary=23,
        head="linear",
        classes=11,
    ),
}


@cache
def network(name: str) -> tuple[Program, Coupling, dict[str, np.ndarray]]:
    built = program(NETWORKS[name])
    weights = {key: np.asarray(value) for key, value in built.parameters.items()}
    return built, couple(built.graph, ATEN), weights


@dataclass(frozen=True)
class Case:
    """A group with one consumer: W (m, n), what it reads X (tokens, n), the columns of each index
    in the order of the flattened scores, and the shape of the scores."""

    coupling: Coupling
    group: Group
    weights: dict[str, np.ndarray]
    w: np.ndarray
    x: np.ndarray
    blocks: list[np.ndarray]
    shape: tuple[int, ...]

    @property
    def observed(self) -> list[tuple[Consumer, Moments]]:
        x = self.x
        moments = Moments(len(x), (x**2).sum(0), x.sum(0), x.T @ x, np.abs(x).sum(0))
        return [(consumer, moments) for consumer in self.group.consumers]


# network, layer that consumes, parameter that holds the group's first place, role
CASES = {
    "neurons": ("mlp", "blocks.0.down", "neuron"),
    "biased neurons": ("biased mlp", "blocks.0.down", "neuron"),
    "key heads": ("attention", "blocks.0.o", "kv_head"),
    "query heads": ("attention", "blocks.0.o", "query_head"),
    "channels": ("convolution", "blocks.0.conv", "embed"),
}


@cache
def case(name: str) -> Case:
    where, layer, role = CASES[name]
    built, coupling, weights = network(where)
    stored = weights[f"{layer}.weight"]
    group = one(coupling, f"{layer}.weight", role)
    # a convolution: its outputs and taps are rows, its input channels columns
    w = np.moveaxis(stored, 1, -1).reshape(-1, stored.shape[1]).astype(np.float64)
    x = read(built, layer)
    n = w.shape[1]
    shape = {"kv_head": (KV,), "query_head": (KV, SHARED)}.get(role, (n,))
    blocks = list(np.arange(n).reshape(int(np.prod(shape)), -1))
    return Case(coupling, group, weights, w, x, blocks, shape)


def one(coupling: Coupling, parameter: str, role: str) -> Group:
    """The group that a parameter reads, by its role; `embed`: the one that the embedding makes."""
    found = [
        g
        for g in coupling.groups
        if any(c.weight.parameter == parameter for c in g.consumers)
        and (g.role == role or (role == "embed" and "embed" in g.places[0].parameter))
    ]
    (group,) = found
    return group


def read(built: Program, layer: str) -> np.ndarray:
    """What a layer reads on a batch, one row a token, float64."""
    seen: list[torch.Tensor] = []
    module = built.module.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        built.module(**built.inputs(batch=3, time=17, seed=1))
    handle.remove()
    (value,) = seen
    channels = 1 if isinstance(module, torch.nn.Conv1d) else -1
    value = value.movedim(channels, -1)
    return value.reshape(-1, value.shape[-1]).double().numpy()
