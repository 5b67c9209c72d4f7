"""Hypothesis strategies for random graphs: small executable aten programs with their weights.

    @given(random_graphs())
    def test_law(program: Program) -> None:
        program.graph         the traced program, before inference
        program.parameters    value of every entry of graph.parameters, by name
        program.inputs(2, 5)  example inputs for a batch of 2 and 5 steps, by the inputs' names
        program.module        the module itself, in evaluation mode

A network is described by plain data (`Network`), which is what a failing test prints. No two
sizes in it are alike, so that a dimension mistaken for another shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import blocks
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from prunec.frontends.torch import Traced, trace
from prunec.ir.graph import Graph

__all__ = ["Block", "Network", "Program", "networks", "random_graphs"]

INPUT = "x"
FEW = 6


@dataclass(frozen=True)
class Block:
    """A module of `blocks` by name, and the keywords it is built with."""

    name: str
    options: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.options)})"

    def build(self) -> nn.Module:
        options = {k: v.build() if isinstance(v, Block) else v for k, v in self.options}
        module: nn.Module = getattr(blocks, self.name)(**options)
        return module


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


@dataclass
class Sizes:
    """Hands out sizes that differ from all handed out before."""

    draw: st.DrawFn
    used: set[int] = field(default_factory=set)

    def fresh(
        self, *multiples: int, plus: tuple[int, ...] = (), least: int = 2, step: int = 1
    ) -> int:
        """An unused size, a multiple of `step`.

        Products with `multiples` and sums with `plus` stand somewhere too, so they are unused
        as well.
        """
        free: dict[int, set[int]] = {}
        size = -(-least // step) * step
        while len(free) < FEW:
            new = {size, *(size * m for m in multiples), *(size + p for p in plus)}
            if not new & self.used:
                free[size] = new
            size += step
        chosen = self.draw(st.sampled_from(list(free)))
        self.used |= free[chosen]
        return chosen


@dataclass
class Site:
    """Where a block is put: its input is `rows * columns` wide."""

    draw: st.DrawFn
    sizes: Sizes
    rows: int
    columns: int

    @property
    def hidden(self) -> int:
        return self.rows * self.columns

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def one_of(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def activation(self) -> str:
        return self.one_of(*blocks.ACTIVATIONS)


def matrix(sizes: Sizes) -> tuple[int, int]:
    """Two unused sizes with an unused product."""
    rows = sizes.fresh()
    return rows, sizes.fresh(rows, least=3)


def block(name: str, **options: Any) -> Block:
    return Block(name, tuple(options.items()))


def mlp(site: Site, out: int) -> Block:
    return block(
        "Mlp",
        hidden=site.hidden,
        width=site.sizes.fresh(2, least=4),
        out=out,
        activation=site.activation(),
        gate=site.one_of("none", "branch", "chunk", "split", "slice", "view"),
        bias=site.flag(),
    )


def attention(site: Site, out: int) -> Block:
    kv = site.sizes.fresh()
    group = 1 if site.flag() else site.sizes.fresh(kv)
    rotary = site.flag()
    heads = (kv, kv * group, kv * (group + 2), group + 2)
    return block(
        "Attention",
        hidden=site.hidden,
        kv=kv,
        group=group,
        dim=site.sizes.fresh(*heads, least=4, step=2 if rotary else 1),
        out=out,
        layout=site.one_of("separate", "fused", "per head"),
        kernel=site.one_of("sdpa", "sdpa repeated", "matmul"),
        rotary=rotary,
        normed=site.flag(),
        causal=site.flag(),
        bias=site.flag(),
    )


def project(site: Site, out: int) -> Block:
    return block("Project", hidden=site.hidden, out=out, bias=site.flag())


def softmax_mix(site: Site, out: int) -> Block:
    width = site.sizes.fresh(least=4)
    return block("SoftmaxMix", hidden=site.hidden, width=width, out=out)


def concat(site: Site, out: int) -> Block:
    keep = site.flag()
    left = site.sizes.fresh(least=3)
    right = site.sizes.fresh(plus=(left + site.hidden if keep else left,), least=3)
    return block("Concat", hidden=site.hidden, left=left, right=right, out=out, keep=keep)


def swap(site: Site, out: int) -> Block:
    return block("Swap", hidden=site.hidden, at=site.draw(st.integers(1, site.rows)), out=out)


def shuffle(site: Site, out: int) -> Block:
    rows, columns = matrix(site.sizes)
    return block("Shuffle", rows=rows, columns=columns, hidden=site.hidden, out=out)


def time_conv(site: Site, out: int) -> Block:
    groups = site.rows if site.flag() else 1
    return block(
        "TimeConv",
        hidden=site.hidden,
        groups=groups,
        width=site.sizes.fresh(least=4, step=groups),
        out=out,
        depthwise=site.flag(),
        bias=site.flag(),
    )


def image_conv(site: Site, out: int) -> Block:
    groups = site.sizes.fresh() if site.flag() else 1
    channels = site.sizes.fresh(least=4, step=groups)
    return block(
        "ImageConv",
        hidden=site.hidden,
        channels=channels,
        columns=site.sizes.fresh(channels),
        groups=groups,
        width=site.sizes.fresh(least=4, step=groups),
        out=out,
        norm=site.flag(),
    )


def tied_mlp(site: Site) -> Block:
    width = site.sizes.fresh(least=4)
    return block("TiedMlp", hidden=site.hidden, width=width, activation=site.activation())


def channel_gate(site: Site) -> Block:
    return block("ChannelGate", hidden=site.hidden, width=site.sizes.fresh(least=4))


def norm(site: Site) -> Block:
    if site.flag():
        return block("RmsNorm", hidden=site.hidden, offset=site.flag())
    return block("LayerNorm", hidden=site.hidden, affine=site.flag())


def scale(site: Site) -> Block:
    return block("Scale", hidden=site.hidden)


def statistic(site: Site) -> Block:
    return block("Statistic", kind=site.one_of("mean", "sum"))


FREE: tuple[Callable[[Site, int], Block], ...] = (
    project,
    *(mlp, attention) * 3,
    concat,
    swap,
    shuffle,
    time_conv,
    image_conv,
    softmax_mix,
)
"""Blocks that can change the width; those that have many variants come up more often."""

KEEPING: tuple[Callable[[Site], Block], ...] = (norm, scale, statistic, channel_gate, tied_mlp)
"""Blocks that cannot."""


@st.composite
def networks(draw: st.DrawFn, *, most_blocks: int = 4) -> Network:
    """A description of a random network."""
    sizes = Sizes(draw)
    rows, columns = matrix(sizes)
    hidden = rows * columns
    chosen: list[Block] = []
    for _ in range(draw(st.integers(1, most_blocks))):
        site = Site(draw, sizes, rows, columns)
        match draw(st.sampled_from(["residual", "keeping", "free", "twice"])):
            case "keeping":
                chosen.append(draw(st.sampled_from(KEEPING))(site))
            case "free":
                rows, columns = matrix(sizes)
                chosen.append(draw(st.sampled_from(FREE))(site, rows * columns))
            case "residual":
                inner = draw(st.sampled_from(FREE))(site, site.hidden)
                chosen.append(block("Residual", block=inner))
            case "twice":
                inner = draw(st.sampled_from(FREE))(site, site.hidden)
                chosen.append(block("Twice", block=inner))
    out = rows * columns
    tokens = draw(st.booleans())
    heads = ["none", "linear", "pool", *(["tied"] if tokens and out == hidden else [])]
    head = draw(st.sampled_from(heads))
    return Network(
        hidden=hidden,
        blocks=tuple(chosen),
        out=out,
        vocabulary=sizes.fresh(least=11) if tokens else 0,
        head=head,
        classes=sizes.fresh(least=5) if head in ("linear", "pool") else 0,
    )


def random_graphs(*, most_blocks: int = 4) -> st.SearchStrategy[Program]:
    """Random programs. Tracing one takes most of the time of a test, some 0.3 s."""
    return networks(most_blocks=most_blocks).map(program)
