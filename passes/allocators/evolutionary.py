"""Search around a plan by what the whole program does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.allocators.dynamic import DynamicProgram
from prunec.passes.allocators.evidence import Allocator, Evidence
from prunec.passes.allocators.ladder import top_up
from prunec.passes.coupling import Group

__all__ = ["Evolutionary"]

CHANGES = 10
"""Level changes of one mutation, at most."""

TRIES = 40
"""Mutations tried for each one that is wanted."""


@dataclass(frozen=True)
class Evolutionary:
    """Moves cost between groups as long as the divergence from the dense program falls.

    EvoPress, ICML 2025, algorithm 1: a (1 + offspring) search. A mutation raises one to three
    groups by a level (few more often than many) and lowers others until the budget is met
    (level-switch mutation); the parent stays unless a child is better.

    Departures. It starts from the plan of `start` instead of the uniform one; a level is `quantum`
    of the cost of the largest group, at least one index, so that neurons and heads can be traded;
    what was lowered last and what was raised take up what is left over; all children are judged
    on the same windows, so that there is one stage of selection.
    """

    generations: int = 10
    offspring: int = 6
    seed: int = 0
    quantum: float = 1 / 32
    start: Allocator = field(default_factory=DynamicProgram)
    own: ClassVar[frozenset[str]] = frozenset({"divergence"})

    @property
    def needs(self) -> frozenset[str]:
        return self.start.needs | self.own

    @property
    def evaluations(self) -> int:
        return 1 + self.generations * self.offspring

    def allocate(self, groups: Sequence[Group], budget: Budget, evidence: Evidence) -> Counts:
        divergence = evidence.divergence
        assert divergence is not None, "the divergence was not gathered"
        parent = self.start.allocate(groups, budget, evidence)
        switch = _Switch.of(groups, parent, budget, self.quantum)
        rng = np.random.default_rng(self.seed)
        seen, (fitness,) = [parent], divergence([parent])
        for _ in range(self.generations):
            children = self._children(switch, parent, seen, rng)
            seen += children
            for child, found in zip(children, divergence(children), strict=True):
                if found < fitness:
                    parent, fitness = child, found
        return top_up(groups, parent, budget)

    def _children(
        self, switch: _Switch, parent: Counts, seen: Sequence[Counts], rng: np.random.Generator
    ) -> list[Counts]:
        found: list[Counts] = []
        for _ in range(TRIES * self.offspring):
            if len(found) == self.offspring:
                break
            child = switch.mutated(parent, rng)
            if child is not None and child not in seen and child not in found:
                found.append(child)
        return found


@dataclass(frozen=True)
class _Switch:
    """Level-switch mutations: what one level of each group is, in places among its counts."""

    levels: Mapping[str, Sequence[int]]
    step: Mapping[str, int]
    budget: Budget

    @classmethod
    def of(cls, groups: Sequence[Group], counts: Counts, budget: Budget, quantum: float) -> _Switch:
        levels = {g.name: budget.levels(g) for g in groups}
        costs = {
            name: budget.cost({**counts, name: own[-1]}) - budget.cost({**counts, name: own[0]})
            for name, own in levels.items()
        }
        moved = quantum * max(costs.values())
        step = {
            name: max(1, round(moved * len(levels[name]) / cost)) if cost > 0 else 1
            for name, cost in costs.items()
        }
        free = {name for name, cost in costs.items() if cost <= 0}
        return cls({n: own for n, own in levels.items() if n not in free}, step, budget)

    def mutated(self, parent: Counts, rng: np.random.Generator) -> Counts | None:
        """The parent with cost moved from some groups to others; None when that fails."""
        places = {name: own.index(parent[name]) for name, own in self.levels.items()}
        raised = self._raise(places, rng)
        if not raised:
            return None
        last = ""
        changes = len(raised)
        while not self.budget.met(self._counts(parent, places)):
            able = [n for n, place in places.items() if place > 0 and n not in raised]
            if not able or changes >= CHANGES:
                return None
            last = able[rng.integers(len(able))]
            places[last] = max(0, places[last] - self.step[last])
            changes += 1
        if last:
            # what was lowered last may have freed too much, but is not to end where it was
            before = self.levels[last].index(parent[last])
            self._fill(parent, places, last, before - 1)
            for name in sorted(raised, key=lambda n: len(self.levels[n]), reverse=True):
                self._fill(parent, places, name, len(self.levels[name]) - 1)
        return self._counts(parent, places)

    def _raise(self, places: dict[str, int], rng: np.random.Generator) -> set[str]:
        flips = min(int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        raised: set[str] = set()
        for _ in range(flips):
            able = [n for n, own in self.levels.items() if places[n] < len(own) - 1]
            if not able:
                break
            name = able[rng.integers(len(able))]
            places[name] = min(len(self.levels[name]) - 1, places[name] + self.step[name])
            raised.add(name)
        return raised

    def _fill(self, parent: Counts, places: dict[str, int], name: str, most: int) -> None:
        """Raise a group as far as the budget allows, up to the place `most`."""
        low, high = places[name], most + 1
        while high - low > 1:
            middle = (low + high) // 2
            met = self.budget.met(self._counts(parent, {**places, name: middle}))
            low, high = (middle, high) if met else (low, middle)
        places[name] = low

    def _counts(self, parent: Counts, places: Mapping[str, int]) -> Counts:
        return parent | {name: self.levels[name][place] for name, place in places.items()}
