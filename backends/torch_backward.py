"""Backward passes of many sequences with the weights of one stretch of the program at a time.

Forwards, each sequence leaves its live values at the start of every stretch; backwards, a stretch
is run again with autograd, for one sequence after the other, and hands the gradients at its start
to the stretch before (recomputation as in Chen et al., 2016, arXiv:1604.06174, with the sequences
inside). It costs one more forward pass, and keeps neither the model nor its activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.backends.endings import value_of
from prunec.backends.forward import Factors
from prunec.backends.heap import BUDGET, trim
from prunec.backends.interpreter import Env, Flow, Program, without_parameters
from prunec.backends.objective import Objective, not_smooth, sequences
from prunec.backends.spill import Spill
from prunec.backends.torch_spill import TENSORS, nbytes
from prunec.ir.graph import Graph, Op
from prunec.passes.profile import Weights

__all__ = ["Backward", "Stretch"]

STRETCH = 32 << 20
"""Bytes of weights in a stretch, at most, where its first operation does not need more."""

GRADIENTS = -1
"""Where gradients are kept among the values at the starts of stretches."""

FORWARD = 0.25
"""Of the work, about: the way back runs everything forwards again, and takes twice as long as that
itself."""


class Backward:
    """The backward passes of all sequences of some batches.

    Gradients reach `results` (values by name) and `parameters` (by name, without sigil). Iterating
    gives the stretches from the last to the first that holds any of these. A parameter's uses lie
    in one stretch. `told` hears of the share of the work that is done since the last time.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        batches: Sequence[Mapping[str, Any]],
        results: Iterable[str] = (),
        parameters: Iterable[str] = (),
        budget: int = BUDGET,
        told: Callable[[float], None] | None = None,
    ) -> None:
        self.graph = graph
        self.program = Program(graph, weights)
        self.sequences = [one for batch in batches for one in sequences(graph, batch)]
        self.results = frozenset(results)
        self.parameters = frozenset(f"@{name}" for name in parameters)
        self.reached = _reached(graph, self.results | self.parameters)
        self.budget = budget
        self.told = told or (lambda share: None)
        self.passed = 0.0
        self.head: Op | None = None

    @property
    def end(self) -> int:
        """Operations that are run: all but the product that the gradient is known without."""
        return len(self.graph.ops) - (self.head is not None)

    def _head(self) -> Op | None:
        """The last operation, where it is a product with a large table and nobody asks for a
        gradient at either."""
        last = self.graph.ops[-1]
        asked = self.results.intersection(last.results) or self.parameters & {*last.operands}
        return None if asked or last.result not in self.program.tables else last

    def factors(self, head: Op, env: Env) -> Factors:
        """What the last operation would multiply."""
        states, _, *bias = head.operands
        stored = self.program.parameter(bias[0]) if bias else None
        return Factors(env[states].detach(), self.program.tables[head.result], stored)

    def __iter__(self) -> Iterator[Stretch]:
        if not self.sequences:
            return
        objective = Objective(self.program, self.sequences[0])
        self.head = self._head() if objective.causal else None
        ranges = self._cut()
        first = min((i for i, op in enumerate(self.graph.ops) if self._begins(op)), default=None)
        self.passed = 1 / (len(ranges) * len(self.sequences))
        with Spill(TENSORS, self.budget // 2) as spill:
            self._forwards(ranges, spill)
            for number in reversed(range(len(ranges))):
                yield Stretch(self, number, *ranges[number], spill, objective)
                trim()
                if first is None or ranges[number][0] <= first:
                    return

    def _begins(self, op: Any) -> bool:
        return not (self.results.isdisjoint(op.results) and self.parameters.isdisjoint(op.operands))

    @torch.no_grad()
    def _forwards(self, ranges: Sequence[tuple[int, int]], spill: Spill[Env]) -> None:
        """Leave the live values of every sequence at the start of every stretch."""
        for i, sequence in enumerate(self.sequences):
            spill.put((0, i), self.program.start(sequence))
        for number, (start, stop) in enumerate(ranges[:-1]):
            flow = Flow(self.program)
            for i in range(len(self.sequences)):
                env = spill.take((number, i))
                spill.put((number, i), dict(env))
                flow.run(env, start, stop)
                spill.put((number + 1, i), without_parameters(env))
                self.told(FORWARD * self.passed)

    def _cut(self) -> list[tuple[int, int]]:
        """Stretches of at most `STRETCH` bytes of weights that begin where little is alive."""
        alive, weight = self._sizes()
        whole = [span for name in self.parameters if (span := self._span(name)) is not None]
        ranges, start, total = [], 0, len(alive)
        while start < total:
            stop, taken = start + 1, weight[start]
            while stop < total and taken + weight[stop] <= STRETCH:
                taken += weight[stop]
                stop += 1
            allowed = [c for c in range(start + 1, stop + 1) if not _inside(c, whole)]
            while not allowed:
                stop += 1
                allowed = [] if _inside(stop, whole) else [stop]
            if stop < total:
                stop = min(reversed(allowed), key=lambda c: alive[c - 1])
            ranges.append((start, stop))
            start = stop
        return ranges

    def _span(self, name: str) -> tuple[int, int] | None:
        uses = self.graph.uses.get(name, ())
        return (min(uses), max(uses)) if uses else None

    @torch.no_grad()
    def _sizes(self) -> tuple[list[int], list[int]]:
        """For every operation the bytes alive after it and of the weights that come with it, of
        the first sequence."""
        env = self.program.start(self.sequences[0])
        alive, weight = [], []
        opened: set[str] = set()
        for i, op in enumerate(self.graph.ops[: self.end]):
            new = set(self.program.whole(op)) - opened
            opened |= new
            self.program.operands(op, env)
            weight.append(nbytes({name: env[name] for name in new}))
            self.program.advance(env, i, i + 1)
            alive.append(nbytes(without_parameters(env)))
        return alive, weight


class Stretch:
    """Operations `start` to `stop` (exclusive) with the weights that they read."""

    def __init__(
        self,
        of: Backward,
        number: int,
        start: int,
        stop: int,
        spill: Spill[Env],
        objective: Objective,
    ) -> None:
        self.of, self.number, self.spill, self.objective = of, number, spill, objective
        self.start, self.stop = start, stop
        self.flow = Flow(of.program)
        ops = of.graph.ops[start:stop]
        used = {name for op in ops for name in op.operands}
        for name in sorted(used & of.parameters):
            self.flow.parameters[name] = of.program.parameter(name).requires_grad_(True)
        self.values: dict[str, Tensor] = {}
        self.listened = [
            i for i in range(start, stop) if not of.results.isdisjoint(of.graph.ops[i].results)
        ]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Those that gradients were asked for, by name."""
        return {
            name[1:]: self.flow.parameters[name]
            for name in self.of.parameters & self.flow.parameters.keys()
        }

    def backward(self) -> Iterator[dict[str, Tensor]]:
        """For each sequence, in their order, the gradients at `results` that lie here; those of
        parameters are in their `grad` then, and are the caller's to clear. `values` has the
        results themselves."""
        for i in range(len(self.of.sequences)):
            yield self._one(i)
            self.of.told((1 - FORWARD) * self.of.passed)

    def _one(self, sequence: int) -> dict[str, Tensor]:
        env = self.spill.take((self.number, sequence))
        for name, value in env.items():
            if name in self.of.reached and _differentiable(value):
                env[name] = value.detach().requires_grad_(True)
        starts = {name: v for name, v in env.items() if _differentiable(v) and v.requires_grad}
        found: dict[str, Tensor] = {}
        with torch.enable_grad():
            self._run(env, found)
        above = self._above(sequence, env)
        pairs = [(env[n], g) for n, g in above.items() if n in env and env[n].requires_grad]
        if not pairs and self.stop == self.of.end:
            raise not_smooth(self.of.graph)
        if pairs:
            torch.autograd.backward([v for v, _ in pairs], [g for _, g in pairs])
        below = {name: v.grad for name, v in starts.items() if v.grad is not None}
        if self.number:
            self.spill.put((GRADIENTS, sequence), below)
        return found

    def _run(self, env: Env, found: dict[str, Tensor]) -> None:
        at = self.start
        for i in self.listened:
            self.flow.run(env, at, i + 1)
            at = i + 1
            for name in self.of.results.intersection(self.of.graph.ops[i].results) & env.keys():
                env[name] = _listen(env[name], name, found)
                self.values[name] = env[name].detach()
        self.flow.run(env, at, self.stop)

    def _above(self, sequence: int, env: Env) -> Mapping[str, Tensor]:
        """Gradients at the values that are alive at the end."""
        if self.stop < self.of.end:
            return self.spill.take((GRADIENTS, sequence))
        if (head := self.of.head) is not None:
            factors = self.of.factors(head, env)
            inputs = self.of.sequences[sequence]
            return {value_of(head): self.objective.before_product(inputs, factors)}
        outputs = self.of.program.outputs(env)
        gradients = self.objective.gradients(self.of.sequences[sequence], outputs)
        found: dict[str, Tensor] = {}
        for name, value in self.of.graph.outputs:
            if name in gradients:
                known = found.get(value)
                found[value] = gradients[name] if known is None else known + gradients[name]
        return found


def _listen(value: Any, name: str, found: dict[str, Tensor]) -> Any:
    """Note the gradient that comes back to a value."""
    if not _differentiable(value):
        return value
    if not value.requires_grad:  # nothing before it is listened to
        value = value.detach().requires_grad_(True)
    value.register_hook(lambda gradient: found.__setitem__(name, gradient))
    return value


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _inside(cut: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(first < cut <= last for first, last in spans)


def _reached(graph: Graph, begins: frozenset[str]) -> frozenset[str]:
    """Values that depend on what gradients are asked for."""
    reached = set(begins)
    for op in graph.ops:
        if not reached.isdisjoint(op.operands):
            reached.update(op.results)
    return frozenset(reached)
