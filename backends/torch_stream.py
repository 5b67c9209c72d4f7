"""Calibration batches flowing through a program with torch, one stop after the other.

Every operation runs once per batch: the live values of each batch are kept between stops, in
memory up to a budget and on disk beyond it. Weights are opened when first used and dropped after
their last use, so that one block of them is resident at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from prunec.backends.interpreter import Env, Program
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.coupling import Consumer
from prunec.passes.profile import Array, Moments, Weights

__all__ = ["BUDGET", "TorchStream"]

BUDGET = 256 << 20
"""Bytes of live values kept in memory by default; what is beyond goes to disk."""


class TorchStream:
    """Implements `prunec.passes.profile.Stream`. Use as a context manager: spilled values are
    deleted at the end."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        batches: Sequence[Mapping[str, Any]],
        budget: int = BUDGET,
    ) -> None:
        self.overlay: dict[str, Array] = {}
        self.program = Program(graph, _Overlaid(weights, self.overlay))
        self.position = 0
        self.store = _Store(budget)
        for i, batch in enumerate(batches):
            self.store.put(i, self.program.start(batch))
        self.count = len(batches)

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
    def observe(self, consumers: Sequence[Consumer], gram: bool) -> list[Moments]:
        """Moments of the inputs of each consumer; the stream then stands at the first."""
        producers = self.program.graph.producers
        stops = [producers[consumer.op] for consumer in consumers]
        first = min(stops)
        assert first >= self.position, "the stream cannot flow back"
        sums: list[Moments | None] = [None] * len(consumers)
        parameters: Env = {}
        for batch in range(self.count):
            env = self.store.take(batch) | parameters
            self._run(env, self.position, first, parameters)
            scratch = dict(env)
            at = first
            for i in sorted(range(len(stops)), key=stops.__getitem__):
                self._run(scratch, at, stops[i], parameters)
                at = stops[i]
                found = _moments(scratch[consumers[i].input], consumers[i], gram)
                known = sums[i]
                sums[i] = found if known is None else known + found
            del scratch
            self.store.put(batch, {k: v for k, v in env.items() if not k.startswith("@")})
        self.position = first
        return [_checked(m, c) for m, c in zip(sums, consumers, strict=True) if m is not None]

    def _run(self, env: Env, start: int, stop: int, parameters: Env) -> None:
        """Advance one batch; parameters opened on the way serve the next batches too."""
        ops = self.program.graph.ops
        for op in ops[start:stop]:
            for name in op.operands:
                if name.startswith("@") and name not in parameters:
                    parameters[name] = self.program.parameter(name)
                    env[name] = parameters[name]
        self.program.advance(env, start, stop)

    def replace(self, weights: Weights) -> None:
        self.overlay.update(weights)


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


def _moments(value: torch.Tensor, consumer: Consumer, gram: bool) -> Moments:
    x = value.movedim(consumer.input_dim, -1)
    x = x.reshape(-1, x.shape[-1]).float()
    squares = x.square().sum(0, dtype=torch.float64).numpy()
    sums = x.sum(0, dtype=torch.float64).numpy()
    absolute = x.abs().sum(0, dtype=torch.float64).numpy()
    product = (x.T @ x).double().numpy() if gram else None
    return Moments(len(x), squares, sums, product, absolute)


def _checked(moments: Moments, consumer: Consumer) -> Moments:
    if np.isfinite(moments.squares).all():
        return moments
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
        self.memory: dict[int, Env] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, batch: int, env: Env) -> None:
        size = _nbytes(env)
        if self.used + size <= self.budget:
            self.memory[batch], self.used = env, self.used + size
            return
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="prunec-")
        torch.save(env, self._path(batch))

    def take(self, batch: int) -> Env:
        env = self.memory.pop(batch, None)
        if env is not None:
            self.used -= _nbytes(env)
            return env
        loaded: Env = torch.load(self._path(batch), weights_only=True)
        return loaded

    def _path(self, batch: int) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"{batch}.pt"

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
