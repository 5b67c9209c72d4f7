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

import blocks
from hypothesis import strategies as st
from programs import Block, Network, Program, block, program

__all__ = ["networks", "random_graphs"]

FEW = 6


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
    group = site.sizes.fresh(kv) if site.one_of("one", "many", "more") != "one" else 1
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


def rare(site: Site, out: int) -> Block:
    """One of the blocks of `blocks_rare`."""
    fresh, hidden = site.sizes.fresh, site.hidden
    match site.draw(st.sampled_from(RARE)):
        case "UnbindAttention" as name:
            heads = fresh(3)
            dim = fresh(heads, 3 * heads, least=4)
            style = site.one_of("sdpa", "einsum", "bmm")
            return block(name, hidden=hidden, heads=heads, dim=dim, out=out, style=style)
        case "RepeatedHeads" as name:
            kv = fresh()
            group = fresh(kv)
            dim, value = (fresh(kv, kv * group, least=4) for _ in range(2))
            head = {"kv": kv, "group": group, "dim": dim, "value_dim": value}
            return block(name, hidden=hidden, **head, out=out)
        case "GroupNormed" as name:
            groups = fresh()
            width = fresh(least=2 * groups, step=groups)
            pool = site.one_of("max", "mean")
            return block(name, hidden=hidden, groups=groups, width=width, out=out, pool=pool)
        case "Stacked" as name:
            kind = site.one_of("max", "sum", "where")
            return block(name, hidden=hidden, width=fresh(least=4), out=out, kind=kind)
        case "Reordered" as name:
            kind = site.one_of("index", "roll", "flip", "time")
            return block(name, hidden=hidden, width=fresh(least=4), out=out, kind=kind)
        case "PairProduct" as name:
            width, other = matrix(site.sizes)
            options = {"width": width, "other": other, "same": site.flag()}
            return block(name, hidden=hidden, **options, out=out)
        case "Cropped" as name:
            keep = fresh()
            width = fresh(least=keep + 2)
            return block(name, hidden=hidden, width=width, keep=keep, out=out)
        case name:
            return block(name, hidden=hidden, width=fresh(2, least=4), out=out)


RARE = (
    "InOutLinear",
    "Glu",
    "UnbindAttention",
    "RepeatedHeads",
    "GroupNormed",
    "Stacked",
    "Reordered",
    "PairProduct",
    "Cropped",
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
    *(mlp, attention, rare) * 3,
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
    tokens = draw(st.sampled_from([True, True, False]))  # a float input pins the stream
    heads = ["linear", "pool", "none", *(["tied"] if tokens and out == hidden else [])]
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
