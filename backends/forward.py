"""Run a program on a few windows with little memory: weights opened once, outputs in pieces.

The windows go through the program together, a stretch of operations after the other. Each stretch
holds at most `SEGMENT` bytes of weights (or the weights of one operation), opened once for all
windows and closed after it; between stretches only live values are kept. What makes the output
position by position, such as the product with a vocabulary and whatever scales it, is run on as
many positions at once as fit `PIECE`: logits of a whole window are never held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from prunec.backends.endings import by_position, is_product, value_of
from prunec.backends.interpreter import Arrays, Env, Program, Step, without_parameters
from prunec.backends.torch_tables import Table
from prunec.ir.graph import Graph, Op

__all__ = ["Factors", "Forward", "Result", "Tail"]

SEGMENT = 64 << 20
PIECE = 32 << 20
POSITIONS = 1
"""The dimension of positions in (batch, position, feature)."""


class Forward:
    """The outputs of a program for each of `windows` (inputs by name without sigil, each with a
    batch dimension), computed when the object is made but for the last step."""

    @torch.no_grad()
    def __init__(self, graph: Graph, weights: Arrays, windows: Sequence[Mapping[str, Any]]) -> None:
        self.program = Program(graph, weights)
        self.envs = [self.program.start(window) for window in windows]
        tail = Tail(self.program)
        for start, end in _segments(graph, tail.start):
            self._advance(start, end)
        self.tail = tail.opened()

    def _advance(self, start: int, end: int) -> None:
        opened: Env = {}
        for op in self.program.graph.ops[start:end]:
            self.program.operands(op, opened)
        for i, env in enumerate(self.envs):
            env |= opened
            self.program.advance(env, start, end)
            self.envs[i] = without_parameters(env)

    @torch.no_grad()
    def pieces(self, window: int) -> Iterator[dict[str, torch.Tensor]]:
        """The outputs of a window by name, some positions at a time where that is possible."""
        yield from self.tail.pieces(self.envs[window])

    def result(self, window: int) -> Result:
        """The outputs of a window, in whichever way they are looked at."""
        return Result(self.tail, self.envs[window])


@dataclass(frozen=True)
class Factors:
    """An output that is a product, before it is multiplied: `states` (batch, positions, features),
    `weight` (outputs, features), a large one in parts, and `bias` (outputs,) or None."""

    states: torch.Tensor
    weight: torch.Tensor | Table
    bias: torch.Tensor | None

    def slices(self, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some outputs of all positions at a time, and which: as many as fit
        `size` bytes, and their weights too."""
        rows = self.states.shape[:-1].numel()
        width = max(1, size // (4 * max(rows, self.states.shape[-1])))
        for start in range(0, len(self.weight), width):
            some = slice(start, start + width)
            bias = None if self.bias is None else self.bias[some]
            yield some, functional.linear(self.states, self.weight[some], bias)


@dataclass(frozen=True)
class Result:
    """What a program gives, computed when it is looked at: by positions, or, where the one output
    is a product, by its factors."""

    tail: Tail
    env: Env

    @torch.no_grad()
    def pieces(self) -> Iterator[dict[str, torch.Tensor]]:
        """The outputs by name, some positions at a time where that is possible."""
        yield from self.tail.pieces(self.env)

    @torch.no_grad()
    def factors(self) -> Factors | None:
        """The only output before the product that makes it; None where it is made otherwise."""
        return self.tail.factors(self.env)


class Tail:
    """The last operations of a program, which make its output position by position; none where it
    has several outputs. `start` is the place of the first."""

    def __init__(self, program: Program) -> None:
        self.program, self.ops = program, by_position(program.graph)
        self.start = len(program.graph.ops) - len(self.ops)
        self.weights: Env = {}

    def opened(self, *, tables: bool = False) -> Tail:
        """The same with its weights at hand, large `tables` too if they are to be."""
        for op in self.ops:
            names = op.operands if tables else self.program.whole(op)
            for name in dict.fromkeys(names):
                if name.startswith("@"):
                    self.weights[name] = self.program.parameter(name)
        return self

    def factors(self, env: Env) -> Factors | None:
        """The output before its last operation, when that is a product with a stored weight."""
        if not self.ops or not is_product(self.ops[-1]):
            return None
        name = value_of(self.ops[0])
        inner = {**self.weights, name: env[name]}
        for op in self.ops[:-1]:
            (inner[op.result],) = self._step(op)(inner)
        last = self.ops[-1]
        states, weight, *bias = last.operands
        stored = inner[weight] if weight in inner else self.program.tables[last.result]
        return Factors(inner[states], stored, inner[bias[0]] if bias else None)

    def _step(self, op: Op) -> Step:
        return self.program.steps[self.program.graph.producers[op.result]]

    def pieces(self, env: Env) -> Iterator[dict[str, torch.Tensor]]:
        """The outputs by name from what is there before the tail, as many positions at a time as
        fit `PIECE`."""
        if not self.ops:
            yield self.program.outputs(env)
            return
        first, last = self.ops[0], self.ops[-1]
        name = value_of(first)
        value = env[name]
        features = max(int(d) for op in self.ops for d in op.types[0].shape[-1:])
        most = max(1, PIECE // (4 * features * len(value)))
        count = max(1, math.ceil(value.shape[POSITIONS] / most))
        for piece in value.tensor_split(count, POSITIONS):  # even: a short rest takes long, too
            inner = {**self.weights, name: piece}
            for op in self.ops:
                (inner[op.result],) = self._step(op)(inner)
            ((output, _),) = self.program.graph.outputs
            yield {output: inner[last.result]}


def _segments(graph: Graph, stop: int) -> Iterator[tuple[int, int]]:
    """Stretches of operations whose parameters fit together."""
    start, held, seen = 0, 0, set[str]()
    for i, op in enumerate(graph.ops[:stop]):
        new = {name for name in op.operands if name.startswith("@")} - seen
        size = sum(4 * math.prod(int(d) for d in graph.types[name].shape) for name in new)
        if held and held + size > SEGMENT:
            yield start, i
            start, held, seen = i, 0, set()
        seen |= new
        held += size
    if start < stop:
        yield start, stop
