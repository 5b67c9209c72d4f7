"""Calibration batches flowing through an ONNX model with ONNX Runtime, one stop after the other.

Every node runs once per batch on the way: the live values of each batch are kept between stops, in
memory up to a budget and on disk beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from prunec.backends.array_file import read_arrays, write_arrays
from prunec.backends.ort_program import Array, Env, OrtProgram, Stretch
from prunec.backends.spill import Form, Spill
from prunec.passes.coupling import Consumer
from prunec.passes.overlaid import Overlaid
from prunec.passes.profile import Moments, Sample, Seen, Weights, checked
from prunec.passes.residual import Junction, junction

__all__ = ["OrtStream"]

HELD_EVERY = 5
"""One batch of so many is held apart to judge by."""


class OrtStream:
    """Implements `prunec.passes.profile.Stream`. Use as a context manager: what lies on disk is
    deleted at the end. Weights that are replaced are kept in `replaced`."""

    def __init__(
        self,
        program: OrtProgram,
        weights: Weights,
        batches: Sequence[Mapping[str, Any]],
        budget: int,
        replaced: MutableMapping[str, Array] | None = None,
    ) -> None:
        self.program, self.graph = program, program.graph
        self.replaced: MutableMapping[str, Array] = {} if replaced is None else replaced
        self.weights = Overlaid(weights, self.replaced)
        self.position = 0
        self.count = len(batches)
        self.store = Spill(ARRAYS, budget // 2)
        for i, batch in enumerate(batches):
            self.store.put(i, {name: np.asarray(value) for name, value in batch.items()})

    def __enter__(self) -> OrtStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.store.__exit__(kind, error, trace)

    def replace(self, weights: Weights) -> None:
        self.replaced.update(weights)

    def observe(
        self, consumers: Sequence[Consumer], needs: frozenset[str] = frozenset()
    ) -> list[Seen]:
        """What each consumer sees; the stream then stands at the first.

        With `held` in `needs` every fifth batch is held apart, when there are five. There is no
        dense program beside the pruned one, so nobody gets `targets`.
        """
        stops = [self.program.position(consumer.op) for consumer in consumers]
        first = min(stops)
        assert first >= self.position, "the stream cannot flow back"
        changes = [_Change(self.program, c) if "influence" in needs else None for c in consumers]
        looked = [change.names for change in changes if change is not None]
        wanted = dict.fromkeys([c.input[1:] for c in consumers] + [n for ns in looked for n in ns])
        until = max([*stops, *(c.until for c in changes if c is not None)])
        apart = "held" in needs and self.count >= HELD_EVERY
        sums: list[dict[bool, Sample]] = [{} for _ in consumers]
        flow, ahead = _Lazy(), _Lazy()
        for batch in range(self.count):
            env = self._advanced(self.store.take(batch), first, flow)
            held = apart and batch % HELD_EVERY == HELD_EVERY - 1
            values = self._ahead(env, first, until, list(wanted), ahead)
            for i, consumer in enumerate(consumers):
                x = _rows(values[consumer.input[1:]], consumer.input_dim)
                found = Sample(_moments(x, needs, wide=held not in sums[i]))
                known = sums[i].get(held)
                sums[i][held] = found if known is None else known.grown(found)
            for change in changes:
                if change is not None:
                    change.look(values)
            self.store.put(batch, env)
        self.position = first
        influence = [change.mean() if change is not None else None for change in changes]
        parts = zip(sums, influence, consumers, strict=True)
        return [checked(Seen(s[False], s.get(True), i), c) for s, i, c in parts]

    def _advanced(self, env: Env, to: int, flow: _Lazy) -> Env:
        """The live values once one batch has come to a node."""
        live = self.program.live(to, self.program.end)
        if flow.stretch is None:
            made = [name for name in live if name not in env]
            flow.stretch = self.program.stretch(self.position, to, made, env) if made else _NOTHING
        found = flow.run(env, self.weights)
        return {name: found[name] if name in found else env[name] for name in live}

    def _ahead(self, env: Env, start: int, until: int, wanted: list[str], ahead: _Lazy) -> Env:
        """Values that lie ahead, and those that are here."""
        missing = [name for name in wanted if name not in env]
        if ahead.stretch is None:
            ahead.stretch = (
                self.program.stretch(start, until, missing, env) if missing else _NOTHING
            )
        return {**env, **ahead.run(env, self.weights)}


class _Lazy:
    """A stretch that is built for the first batch and serves the others."""

    def __init__(self) -> None:
        self.stretch: Stretch | Nothing | None = None

    def run(self, env: Env, weights: Weights) -> Env:
        assert self.stretch is not None
        return {} if isinstance(self.stretch, Nothing) else self.stretch.run(env, weights)


class Nothing:
    """No node lies between two stops."""


_NOTHING = Nothing()


class _Change:
    """How much a layer changes the residual stream: the mean of 1 - cos over all tokens."""

    def __init__(self, program: OrtProgram, consumer: Consumer) -> None:
        graph = program.graph
        self.where: Junction | None = junction(graph, consumer.op)
        rank = len(graph.types[consumer.input].shape)
        self.dim = -1 if consumer.input_dim in (-1, rank - 1) else consumer.input_dim
        self.total, self.tokens = 0.0, 0
        self.names: list[str] = []
        self.until = 0
        if self.where is not None:
            last = graph.ops[self.where.last]
            self.names = [name[1:] for name in (self.where.own, *last.operands)]
            self.until = program.position(last.result)

    def look(self, values: Env) -> None:
        if self.where is None:
            return
        own, one, other = (np.asarray(values[name], np.float32) for name in self.names[:3])
        after = one + other
        before = after - own
        size = np.linalg.norm(before, axis=self.dim) * np.linalg.norm(after, axis=self.dim)
        similar = (before * after).sum(self.dim) / np.maximum(size, 1e-8)
        self.total += float((1 - similar).sum(dtype=np.float64))
        self.tokens += similar.size

    def mean(self) -> float | None:
        return self.total / self.tokens if self.tokens else None


def _rows(value: Array, dim: int) -> Array:
    """One row a token, (T, n), in float32."""
    x = np.moveaxis(value, dim, -1)
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]), dtype=np.float32)


def _moments(x: Array, needs: frozenset[str], *, wide: bool) -> Moments:
    """Sums of one batch in float32, which holds a few thousand tokens well; the first is `wide`,
    float64, and the others are added to it."""
    gram = x.T @ x if "gram" in needs else None
    squares = (x * x).sum(0) if gram is None else gram.diagonal()
    if gram is not None and wide:
        gram = gram.astype(np.float64)
    absolute = np.abs(x).sum(0).astype(np.float64) if "absolute" in needs else None
    sums = x.sum(0).astype(np.float64)
    return Moments(len(x), squares.astype(np.float64), sums, gram, absolute)


def _nbytes(env: Env) -> int:
    return sum(value.nbytes for value in env.values())


ARRAYS: Form[Env] = Form(_nbytes, write_arrays, read_arrays)
