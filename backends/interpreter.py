"""Run a program operation by operation with torch, values freed after their last use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch

from prunec.backends.tensors import as_tensor
from prunec.backends.torch_ops import compile_op, resolve
from prunec.backends.torch_tables import tables
from prunec.ir.graph import Graph, Op

__all__ = [
    "SEED",
    "Arrays",
    "Env",
    "Flow",
    "Lifetimes",
    "Program",
    "Step",
    "draws",
    "execute",
    "without_parameters",
]

SEED = 0
"""Of what a program draws at random: a smaller program is compared on the same draws."""

Arrays = Mapping[str, npt.NDArray[Any]]
Env = dict[str, Any]
Step = Callable[[Env], tuple[Any, ...]]


class Lifetimes:
    """Which values die after each operation, parameters included."""

    def __init__(self, graph: Graph) -> None:
        outputs = {value for _, value in graph.outputs}
        self.dying: list[list[str]] = [[] for _ in graph.ops]
        for name, where in graph.uses.items():
            if name not in outputs:
                self.dying[where[-1]].append(name)
        for i, op in enumerate(graph.ops):
            unused = [r for r in op.results if r not in graph.uses and r not in outputs]
            self.dying[i] += unused


class Program:
    """A compiled graph over a store of weights, which are opened when first needed.

    Operations whose result is named in `in_double` sum in float64 and round to their own dtype.
    Large tables are read in parts where the store has parts, and are not among the parameters.
    """

    def __init__(self, graph: Graph, weights: Arrays, in_double: Collection[str] = ()) -> None:
        self.graph, self.weights = graph, weights
        self.steps: list[Step] = [
            _summed_in_double(op) if op.result in in_double else compile_op(op) for op in graph.ops
        ]
        self.tables = tables(graph, weights) if not in_double else {}
        for result, table in self.tables.items():
            self.steps[graph.producers[result]] = table.step()
        self.dying = Lifetimes(graph).dying
        self.draws = any(map(draws, graph.ops))

    def parameter(self, ref: str) -> torch.Tensor:
        """The tensor a `@name` stands for, in the dtype that the program computes with."""
        return as_tensor(self.weights[ref[1:]])

    def whole(self, op: Op) -> Iterator[str]:
        """The parameters that an operation reads as a whole: all but large tables."""
        table = self.tables.get(op.result) if op.results else None
        for name in op.operands:
            if name.startswith("@") and (table is None or name != table.ref):
                yield name

    def operands(self, op: Op, env: Env) -> Env:
        """Open the parameters that an operation uses."""
        for name in self.whole(op):
            if name not in env:
                env[name] = self.parameter(name)
        return env

    def advance(self, env: Env, start: int, stop: int) -> None:
        """Run operations `start` to `stop` (exclusive) in place."""
        ops, steps = self.graph.ops, self.steps
        for i in range(start, stop):
            op = ops[i]
            results = steps[i](self.operands(op, env))
            for name, value in zip(op.results, results, strict=True):
                env[name] = value
            for name in self.dying[i]:
                env.pop(name, None)

    def start(self, inputs: Mapping[str, Any]) -> Env:
        """The environment of one batch, keyed by input name without its sigil."""
        return {value.name: torch.as_tensor(inputs[value.name[1:]]) for value in self.graph.inputs}

    def run(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The outputs by name for inputs by name. What the program draws at random is the same
        each time, and torch's own generator is left as it was."""
        env = self.start(inputs)
        with torch.random.fork_rng(devices=(), enabled=self.draws):
            if self.draws:
                torch.manual_seed(SEED)
            self.advance(env, 0, len(self.graph.ops))
        return self.outputs(env)

    def outputs(self, env: Env) -> dict[str, torch.Tensor]:
        return {name: env[value] for name, value in self.graph.outputs}


def without_parameters(env: Env) -> Env:
    return {name: value for name, value in env.items() if not name.startswith("@")}


def draws(op: Op) -> bool:
    """Whether an operation draws random numbers."""
    tags = getattr(resolve(op.name), "tags", ())
    return torch.Tag.nondeterministic_seeded in tags and op.name.split(".")[1] not in MAY_DRAW


MAY_DRAW = frozenset(
    ("dropout", "feature_dropout", "alpha_dropout", "scaled_dot_product_attention", "rrelu")
    + ("lstm", "gru", "rnn_tanh", "rnn_relu")
)
"""Operations that draw while training only."""


@dataclass
class Flow:
    """A program that batches go through, and the parameters that they share on the way."""

    program: Program
    parameters: Env = field(default_factory=dict)

    def run(self, env: Env, start: int, stop: int) -> None:
        """Advance one batch; parameters opened on the way serve the next batches too."""
        for op in self.program.graph.ops[start:stop]:
            for name in self.program.whole(op):
                if name not in self.parameters:
                    self.parameters[name] = self.program.parameter(name)
            env |= {name: self.parameters[name] for name in op.operands if name in self.parameters}
        self.program.advance(env, start, stop)


def _summed_in_double(op: Op) -> Step:
    run = compile_op(op)
    names = tuple(dict.fromkeys(op.operands))

    def step(env: Env) -> tuple[Any, ...]:
        wide = {name: _cast(env[name], torch.float32, torch.float64) for name in names}
        return tuple(_cast(value, torch.float64, torch.float32) for value in run(wide))

    return step


def _cast(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    matches = isinstance(value, torch.Tensor) and value.dtype is before
    return value.to(after) if matches else value


@torch.no_grad()
def execute(
    graph: Graph,
    weights: Arrays,
    batches: Iterable[Mapping[str, Any]],
    in_double: Collection[str] = (),
) -> Iterator[dict[str, torch.Tensor]]:
    """The outputs by name for each batch of inputs by name."""
    program = Program(graph, weights, in_double)
    for batch in batches:
        yield program.run(batch)
