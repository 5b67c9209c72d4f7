"""Calibration batches flowing through a program with torch, one stop after the other.

Every operation runs once per batch: the live values of each batch are kept between stops, in
memory up to a budget and on disk beyond it. Weights are opened when first used and dropped after
their last use, so that one block of them is resident at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from prunec.backends.interpreter import Env, Program
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.coupling import Consumer
from prunec.passes.profile import Array, Moments, Sample, Seen, Targets, Weights
from prunec.passes.residual import joined, junction

__all__ = ["BUDGET", "TorchStream"]

BUDGET = 256 << 20
"""Bytes of live values kept in memory by default; what is beyond goes to disk."""
HELD_EVERY = 5
"""One batch of so many is held apart to judge by."""

Key = tuple[int, int]
"""A batch in a flow."""


class TorchStream:
    """Implements `prunec.passes.profile.Stream`. Use as a context manager: spilled values are
    deleted at the end.

    With `dense` the unpruned program flows beside the pruned one, for targets.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        batches: Sequence[Mapping[str, Any]],
        budget: int = BUDGET,
        dense: bool = False,
    ) -> None:
        self.overlay: dict[str, Array] = {}
        self.graph = graph
        pruned = Program(graph, _Overlaid(weights, self.overlay))
        self.flows = [_Flow(pruned)] + ([_Flow(Program(graph, weights))] if dense else [])
        self.position = 0
        self.store = _Store(budget)
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
        self.store.close()

    @torch.no_grad()
    def observe(
        self, consumers: Sequence[Consumer], needs: frozenset[str] = frozenset()
    ) -> list[Seen]:
        """What each consumer sees; the stream then stands at the first.

        With `held` in `needs` every fifth batch is held apart, when there are five.
        """
        producers = self.graph.producers
        stops = [producers[consumer.op] for consumer in consumers]
        first = min(stops)
        assert first >= self.position, "the stream cannot flow back"
        apart = "held" in needs and self.count >= HELD_EVERY
        sums: list[dict[bool, Sample]] = [{} for _ in consumers]
        changes = [_Change(self.graph, c) if "influence" in needs else None for c in consumers]
        for flow in self.flows:
            flow.parameters = {}
        for batch in range(self.count):
            envs = [self.store.take((batch, j)) for j in range(len(self.flows))]
            for env, flow in zip(envs, self.flows, strict=True):
                flow.run(env, self.position, first)
            held = apart and batch % HELD_EVERY == HELD_EVERY - 1
            scratch = [dict(env) for env in envs]
            at = first
            for i in sorted(range(len(stops)), key=stops.__getitem__):
                for env, flow in zip(scratch, self.flows, strict=True):
                    flow.run(env, at, stops[i])
                at = stops[i]
                found = self._sample(consumers[i], scratch, needs)
                known = sums[i].get(held)
                sums[i][held] = found if known is None else known + found
                if (change := changes[i]) is not None:
                    change.look(self.flows[0], scratch[0], at)
            del scratch
            for j, env in enumerate(envs):
                kept = {k: v for k, v in env.items() if not k.startswith("@")}
                self.store.put((batch, j), kept)
        self.position = first
        influence = [change.mean() if change is not None else None for change in changes]
        parts = zip(sums, influence, consumers, strict=True)
        return [_checked(Seen(s[False], s.get(True), i), c) for s, i, c in parts]

    def _sample(self, consumer: Consumer, envs: Sequence[Env], needs: frozenset[str]) -> Sample:
        x = _rows(envs[0][consumer.input], consumer.input_dim)
        moments = _moments(x, needs)
        if "targets" not in needs or len(self.flows) == 1:
            return Sample(moments)
        return Sample(moments, self._targets(consumer, envs, x))

    def _targets(self, consumer: Consumer, envs: Sequence[Env], x: torch.Tensor) -> Targets | None:
        """What the dense program gives there, and what the residual stream lacks before it."""
        at = self.graph.producers[consumer.op]
        ahead = dict(envs[1])
        self.flows[1].run(ahead, at, at + 1)
        y = ahead[consumer.op].float()
        other = joined(self.graph, consumer.op)
        if other is not None and all(other in env for env in envs):
            y = y + (envs[1][other].float() - envs[0][other].float()).reshape(y.shape)
        y = y.reshape(-1, y.shape[-1])
        if len(y) != len(x):  # not one output for each input: no plain matrix
            return None
        return Targets(
            (y.T @ x).double().numpy(),
            y.sum(0).double().numpy(),
            float((y * y).sum(dtype=torch.float64)),
        )

    def replace(self, weights: Weights) -> None:
        self.overlay.update(weights)


@dataclass
class _Flow:
    """A program that the batches go through, and the parameters that they share on the way."""

    program: Program
    parameters: Env = field(default_factory=dict)

    def run(self, env: Env, start: int, stop: int) -> None:
        """Advance one batch; parameters opened on the way serve the next batches too."""
        for op in self.program.graph.ops[start:stop]:
            for name in op.operands:
                if not name.startswith("@"):
                    continue
                if name not in self.parameters:
                    self.parameters[name] = self.program.parameter(name)
                env[name] = self.parameters[name]
        self.program.advance(env, start, stop)


class _Change:
    """How much a layer changes the residual stream: the mean of 1 - cos over all tokens."""

    def __init__(self, graph: Graph, consumer: Consumer) -> None:
        self.where = junction(graph, consumer.op)
        rank = len(graph.types[consumer.input].shape)
        self.dim = -1 if consumer.input_dim in (-1, rank - 1) else consumer.input_dim
        self.total, self.tokens = 0.0, 0

    def look(self, flow: _Flow, env: Env, at: int) -> None:
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


class _Overlaid(Mapping[str, Array]):
    """Weights of which some have been replaced."""

    def __init__(self, base: Weights, overlay: Weights) -> None:
        self.base, self.overlay = base, overlay

    def __getitem__(self, name: str) -> Array:
        return self.overlay[name] if name in self.overlay else self.base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def _rows(value: torch.Tensor, dim: int) -> torch.Tensor:
    """One row a token, (T, n), in float32."""
    x = value.movedim(dim, -1)
    return x.reshape(-1, x.shape[-1]).float()


def _moments(x: torch.Tensor, needs: frozenset[str]) -> Moments:
    """Sums of one batch in float32, which holds a few thousand tokens well; batches are added in
    float64."""
    gram = (x.T @ x).double() if "gram" in needs else None
    squares = (x * x).sum(0).double() if gram is None else gram.diagonal().clone()
    absolute = x.abs().sum(0).double().numpy() if "absolute" in needs else None
    product = gram.numpy() if gram is not None else None
    return Moments(len(x), squares.numpy(), x.sum(0).double().numpy(), product, absolute)


def _checked(seen: Seen, consumer: Consumer) -> Seen:
    samples = [sample for sample in (seen.fit, seen.held) if sample is not None]
    if all(np.isfinite(sample.moments.squares).all() for sample in samples):
        return seen
    raise fail(
        "P310",
        "calibration meets values that are not finite",
        where=str(consumer.weight.parameter),
        snippet=f"inputs of {consumer.op}",
        help="the model overflows on this text or its weights are damaged: run it in float32, or"
        " choose other calibration data",
    )


class _Store:
    """Live values of each batch: in memory up to a budget, the rest in a scratch folder."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self.memory: dict[Key, Env] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, batch: Key, env: Env) -> None:
        size = _nbytes(env)
        if self.used + size <= self.budget:
            self.memory[batch], self.used = env, self.used + size
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="prunec-")
        torch.save(env, self._path(batch))

    def take(self, batch: Key) -> Env:
        env = self.memory.pop(batch, None)
        if env is not None:
            self.used -= _nbytes(env)
            return env
        loaded: Env = torch.load(self._path(batch), weights_only=True)
        return loaded

    def _path(self, batch: Key) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"{batch[0]}-{batch[1]}.pt"

    def close(self) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def _nbytes(env: Env) -> int:
    """Bytes of the distinct storages behind the values."""
    storages = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
        for v in env.values()
        if isinstance(v, torch.Tensor)
    }
    return sum(storages.values())
