"""Calibration batches flowing through a program with torch, one stop after the other.

Every operation runs once per batch: the live values of each batch are kept between stops, in
memory up to a budget and on disk beyond it. Weights are opened when first used and dropped after
their last use, so that one block of them is resident at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any

import torch

from prunec.backends.heap import BUDGET, trim
from prunec.backends.interpreter import Env, Flow, Program
from prunec.backends.spill import Spill
from prunec.backends.torch_spill import TENSORS
from prunec.ir.graph import Graph
from prunec.passes.coupling import Consumer
from prunec.passes.overlaid import Overlaid
from prunec.passes.profile import Array, Moments, Sample, Seen, Targets, Weights, checked
from prunec.passes.residual import joined, junction

__all__ = ["TorchStream"]

HELD_EVERY = 5
"""One batch of so many is held apart to judge by."""


class TorchStream:
    """Implements `prunec.passes.profile.Stream`. Use as a context manager: spilled values are
    deleted at the end.

    With `dense` that program flows beside the pruned one with the same weights, for targets: it
    has all operations that the pruned one has, under the same names. `budget` is what activations
    may take: half of it what waits, the rest for the batch that runs. Weights that are replaced are
    kept in `replaced`.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        batches: Sequence[Mapping[str, Any]],
        budget: int = BUDGET,
        dense: Graph | None = None,
        replaced: MutableMapping[str, Array] | None = None,
    ) -> None:
        self.replaced: MutableMapping[str, Array] = {} if replaced is None else replaced
        self.graph = graph
        self.flows = [Flow(Program(graph, Overlaid(weights, self.replaced)))]
        if dense is not None:
            self.flows.append(Flow(Program(dense, weights)))
        self.positions = [0] * len(self.flows)
        self.store = Spill(TENSORS, budget // 2)
        self.count = len(batches)
        for i, batch in enumerate(batches):
            for j, flow in enumerate(self.flows):
                self.store.put((i, j), flow.program.start(batch))

    def __enter__(self) -> TorchStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.store.__exit__(kind, error, trace)

    @torch.no_grad()
    def observe(
        self, consumers: Sequence[Consumer], needs: frozenset[str] = frozenset()
    ) -> list[Seen]:
        """What each consumer sees; the stream then stands at the first.

        With `held` in `needs` every fifth batch is held apart, when there are five.
        """
        stops = [_stops(flow, consumers) for flow in self.flows]
        firsts = [min(own) for own in stops]
        assert firsts[0] >= self.positions[0], "the stream cannot flow back"
        apart = "held" in needs and self.count >= HELD_EVERY
        sums: list[dict[bool, Sample]] = [{} for _ in consumers]
        changes = [_Change(self.graph, c) if "influence" in needs else None for c in consumers]
        for flow in self.flows:
            flow.parameters = {}
        for batch in range(self.count):
            envs = [self.store.take((batch, j)) for j in range(len(self.flows))]
            for j, flow in enumerate(self.flows):
                flow.run(envs[j], self.positions[j], firsts[j])
            held = apart and batch % HELD_EVERY == HELD_EVERY - 1
            scratch = [dict(env) for env in envs]
            at = list(firsts)
            for i in sorted(range(len(consumers)), key=stops[0].__getitem__):
                for j, flow in enumerate(self.flows):
                    flow.run(scratch[j], at[j], stops[j][i])
                    at[j] = stops[j][i]
                found = self._sample(consumers[i], scratch, needs, first=held not in sums[i])
                known = sums[i].get(held)
                sums[i][held] = found if known is None else known.grown(found)
                if (change := changes[i]) is not None:
                    change.look(self.flows[0], scratch[0], at[0])
            del scratch
            for j, env in enumerate(envs):
                kept = {k: v for k, v in env.items() if not k.startswith("@")}
                self.store.put((batch, j), kept)
        self.positions = firsts
        trim()
        influence = [change.mean() if change is not None else None for change in changes]
        parts = zip(sums, influence, consumers, strict=True)
        return [checked(Seen(s[False], s.get(True), i), c) for s, i, c in parts]

    def _sample(
        self, consumer: Consumer, envs: Sequence[Env], needs: frozenset[str], *, first: bool
    ) -> Sample:
        x = _rows(envs[0][consumer.input], consumer.input_dim)
        moments = _moments(x, needs, wide=first)
        if "targets" not in needs or len(self.flows) == 1:
            return Sample(moments)
        return Sample(moments, self._targets(consumer, envs, x))

    def _targets(self, consumer: Consumer, envs: Sequence[Env], x: torch.Tensor) -> Targets | None:
        """What the dense program gives there, and what the residual stream lacks before it."""
        dense = self.flows[1].program.graph
        at = dense.producers[consumer.op]
        ahead = dict(envs[1])
        self.flows[1].run(ahead, at, at + 1)
        y = ahead[consumer.op].float()
        own, other = (joined(graph, consumer.op) for graph in (self.graph, dense))
        if own in envs[0] and other in envs[1]:
            y = y + (envs[1][other].float() - envs[0][own].float()).reshape(y.shape)
        y = y.reshape(-1, y.shape[-1])
        if len(y) != len(x):  # not one output for each input: no plain matrix
            return None
        return Targets(
            (y.T @ x).double().numpy(),
            y.sum(0).double().numpy(),
            float((y * y).sum(dtype=torch.float64)),
        )

    def replace(self, weights: Weights) -> None:
        self.replaced.update(weights)


def _stops(flow: Flow, consumers: Sequence[Consumer]) -> list[int]:
    return [flow.program.graph.producers[consumer.op] for consumer in consumers]


class _Change:
    """How much a layer changes the residual stream: the mean of 1 - cos over all tokens."""

    def __init__(self, graph: Graph, consumer: Consumer) -> None:
        self.where = junction(graph, consumer.op)
        rank = len(graph.types[consumer.input].shape)
        self.dim = -1 if consumer.input_dim in (-1, rank - 1) else consumer.input_dim
        self.total, self.tokens = 0.0, 0

    def look(self, flow: Flow, env: Env, at: int) -> None:
        """Run one batch ahead to where the layer's output is added."""
        if self.where is None:
            return
        ahead = dict(env)
        flow.run(ahead, at, self.where.first)
        own = ahead[self.where.own].float()
        flow.run(ahead, self.where.first, self.where.last)
        ops = flow.program.graph.ops
        one, other = (ahead[name].float() for name in ops[self.where.last].operands)
        after = one + other
        similar = torch.cosine_similarity(after - own, after, dim=self.dim)
        self.total += float((1 - similar).sum(dtype=torch.float64))
        self.tokens += similar.numel()

    def mean(self) -> float | None:
        return self.total / self.tokens if self.tokens else None


def _rows(value: torch.Tensor, dim: int) -> torch.Tensor:
    """One row a token, (T, n), in float32."""
    x = value.movedim(dim, -1)
    return x.reshape(-1, x.shape[-1]).float()


def _moments(x: torch.Tensor, needs: frozenset[str], *, wide: bool) -> Moments:
    """Sums of one batch in float32, which holds a few thousand tokens well; the first is `wide`,
    float64, and the others are added to it."""
    gram = x.T @ x if "gram" in needs else None
    squares = (x * x).sum(0).double() if gram is None else gram.diagonal().double()
    if gram is not None and wide:
        gram = gram.double()
    absolute = x.abs().sum(0).double().numpy() if "absolute" in needs else None
    product = gram.numpy() if gram is not None else None
    return Moments(len(x), squares.numpy(), x.sum(0).double().numpy(), product, absolute)
