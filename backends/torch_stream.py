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
from prunec.backends.interpreter import Env, Flow, Program, without_parameters
from prunec.backends.pieces import pieces
from prunec.backends.spill import Spill
from prunec.backends.torch_moments import Sums, parked_sample, together
from prunec.backends.torch_spill import TENSORS
from prunec.ir.graph import Graph
from prunec.passes.coupling import Consumer
from prunec.passes.overlaid import Overlaid
from prunec.passes.profile import Array, Sample, Seen, Targets, Weights, checked
from prunec.passes.residual import joined, junction

__all__ = ["TorchStream"]

HELD_EVERY = 5
"""One batch of so many is held apart to judge by."""


class TorchStream:
    """Implements `prunec.passes.profile.Stream`. Use as a context manager: spilled values are
    deleted at the end.

    With `dense` that program flows beside the pruned one with the same weights, for targets: it
    has all operations that the pruned one has, under the same names. `budget` is what activations
    may take: a quarter what waits, a quarter what runs, and the rest what is computed of them.
    Weights that are replaced are kept in `replaced`.
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
        self.budget = budget
        self.store = Spill(TENSORS, budget // 4)
        self.parts = [pieces(graph, batch, budget // 4) for batch in batches]
        for i, parts in enumerate(self.parts):
            for k, part in enumerate(parts):
                for j, flow in enumerate(self.flows):
                    self.store.put((i, k, j), flow.program.start(part))

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
        numbers = range(len(self.parts))
        apart = "held" in needs and len(numbers) >= HELD_EVERY
        held = numbers[HELD_EVERY - 1 :: HELD_EVERY] if apart else ()
        looked = [_Looked(self.graph, consumer, needs) for consumer in consumers]
        self.store.budget = min(self.budget // 4, max(0, self.budget - _worked_on(looked)))
        for flow in self.flows:
            flow.parameters = {}
        for number in numbers:
            if number not in held:
                self._observe(number, looked, firsts, stops)
        fit = [parked_sample(look.sample()) for look in looked]
        for number in held:
            self._observe(number, looked, firsts, stops)
        for flow in self.flows:
            flow.parameters = {}
        self.positions = firsts
        trim()
        found = []
        for own, look in zip(fit, looked, strict=True):
            judged, total = together(own, look.sample()) if apart else (None, None)
            found.append(checked(Seen(own, judged, look.change.mean(), total), look.consumer))
        return found

    def _observe(
        self,
        batch: int,
        looked: Sequence[_Looked],
        firsts: Sequence[int],
        stops: Sequence[Sequence[int]],
    ) -> None:
        """Bring a batch to the first of the consumers, and look ahead to all of them."""
        for part in range(len(self.parts[batch])):
            keys = [(batch, part, j) for j in range(len(self.flows))]
            envs = [self.store.take(key) for key in keys]
            for j, flow in enumerate(self.flows):
                flow.run(envs[j], self.positions[j], firsts[j])
                envs[j] = without_parameters(envs[j])
            scratch = [dict(env) for env in envs]
            for key, env in zip(keys, envs, strict=True):
                self.store.put(key, env)
            del envs
            at = list(firsts)
            for i in sorted(range(len(looked)), key=stops[0].__getitem__):
                for j, flow in enumerate(self.flows):
                    flow.run(scratch[j], at[j], stops[j][i])
                    at[j] = stops[j][i]
                self._look(looked[i], scratch, at[0])

    def _look(self, looked: _Looked, envs: Sequence[Env], at: int) -> None:
        consumer = looked.consumer
        x = _rows(envs[0][consumer.input], consumer.input_dim)
        wanted = "targets" in looked.needs and len(self.flows) > 1
        looked.add(x, self._targets(consumer, envs, x) if wanted else None)
        looked.change.look(self.flows[0], envs[0], at)

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


def _worked_on(looked: Sequence[_Looked]) -> int:
    """Bytes of the second matrix that is there once the largest Gram matrix is worked on: nothing
    runs then, and what waits makes room."""
    sizes = [
        int(look.graph.types[look.consumer.input].shape[look.consumer.input_dim])
        for look in looked
        if "gram" in look.needs
    ]
    return 8 * max(sizes, default=0) ** 2


def _stops(flow: Flow, consumers: Sequence[Consumer]) -> list[int]:
    return [flow.program.graph.producers[consumer.op] for consumer in consumers]


class _Looked:
    """What one consumer has seen so far."""

    def __init__(self, graph: Graph, consumer: Consumer, needs: frozenset[str]) -> None:
        self.graph, self.consumer, self.needs = graph, consumer, needs
        self.change = _Change(graph, consumer, wanted="influence" in needs)
        self.sums: Sums | None = None
        self.targets: list[Targets | None] = []

    def add(self, x: torch.Tensor, targets: Targets | None) -> None:
        """Some tokens, and what the consumer should give for them."""
        if self.sums is None:
            self.sums, self.targets = Sums(x.shape[1], self.needs), [targets]
        else:
            (known,) = self.targets
            self.targets = [None if known is None or targets is None else known + targets]
        self.sums.add(x)

    def sample(self) -> Sample:
        """What was seen since the last sample."""
        assert self.sums is not None, "no batch has flown"
        found = Sample(self.sums.moments(), self.targets[0])
        self.sums = None
        return found


class _Change:
    """How much a layer changes the residual stream: the mean of 1 - cos over all tokens."""

    def __init__(self, graph: Graph, consumer: Consumer, *, wanted: bool) -> None:
        self.where = junction(graph, consumer.op) if wanted else None
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
