"""Networks described by plain data, built of `blocks` and `blocks_rare`, and traced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import blocks
import blocks_rare
import torch
from torch import Tensor, nn

from prunec.frontends.torch import Traced, trace
from prunec.ir.graph import Graph

__all__ = ["Block", "Network", "Program", "block", "program"]

INPUT = "x"


@dataclass(frozen=True)
class Block:
    """A module of `blocks` or `blocks_rare` by name, and the keywords it is built with."""

    name: str
    options: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.options)})"

    def build(self) -> nn.Module:
        options = {k: v.build() if isinstance(v, Block) else v for k, v in self.options}
        home = blocks if hasattr(blocks, self.name) else blocks_rare
        module: nn.Module = getattr(home, self.name)(**options)
        return module


def block(name: str, **options: Any) -> Block:
    return Block(name, tuple(options.items()))


@dataclass(frozen=True)
class Network:
    """Blocks in a row. With `vocabulary` the input is tokens, else [batch, time, hidden].

    `head`: `none`, `linear` or `pool` to `classes`, or `tied` to the embedding.
    """

    hidden: int
    blocks: tuple[Block, ...]
    out: int
    vocabulary: int = 0
    head: str = "none"
    classes: int = 0


class Net(nn.Module):
    """The module that a `Network` describes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.head_kind = network.head
        tokens = network.vocabulary > 0
        self.embed = nn.Embedding(network.vocabulary, network.hidden) if tokens else None
        self.blocks = nn.ModuleList(block.build() for block in network.blocks)
        self.head: nn.Linear | None = None
        if network.head != "none":
            wide = network.vocabulary if network.head == "tied" else network.classes
            self.head = nn.Linear(network.out, wide, bias=network.head == "linear")
        if network.head == "tied":
            assert self.head is not None
            assert self.embed is not None
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.embed is None else self.embed(x)
        for block in self.blocks:
            y = block(y)
        if self.head_kind == "pool":
            y = y.mean(dim=1)
        return y if self.head is None else self.head(y)


@dataclass(frozen=True)
class Program:
    """A random network with its weights, built and traced when first asked for."""

    network: Network

    @cached_property
    def module(self) -> nn.Module:
        """The network in evaluation mode; its weights depend on nothing but its description."""
        module = Net(self.network).eval()
        randomise(module)
        return module

    @cached_property
    def traced(self) -> Traced:
        dynamic = {INPUT: {0: "batch", 1: "time"}}
        return trace(self.module, self.inputs(), dynamic=dynamic, name="random")

    @property
    def graph(self) -> Graph:
        return self.traced.graph

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """The value of every entry of `graph.parameters`."""
        stored = dict(self.module.named_parameters(remove_duplicate=False))
        stored |= dict(self.module.named_buffers(remove_duplicate=False))
        constants = {k: torch.as_tensor(v) for k, v in self.traced.constants.items()}
        return {
            name: (stored[name] if name in stored else constants[name]).detach()
            for name in self.graph.parameters
        }

    def inputs(self, batch: int = 2, time: int = 5, seed: int = 0) -> dict[str, Tensor]:
        """Example inputs of any batch size and length, by the name of the module's argument."""
        generator = torch.Generator().manual_seed(seed)
        if self.network.vocabulary:
            shape = (batch, time)
            return {INPUT: torch.randint(self.network.vocabulary, shape, generator=generator)}
        return {INPUT: torch.randn(batch, time, self.network.hidden, generator=generator)}


@lru_cache(maxsize=256)
def program(network: Network) -> Program:
    """The program of a network; equal networks share one, since tracing takes a while."""
    return Program(network)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Weights that keep activations near one and leave nothing at zero or one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        fan_in = prod(parameter.shape[1:]) if parameter.dim() > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
