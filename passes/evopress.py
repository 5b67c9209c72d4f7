"""Search for the regions that go by what the whole program gives without them (EvoPress).

Attention and feed-forward parts are regions of their own, and so one of a layer may go and the
other stay. Nothing is assumed of how their losses add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from prunec.passes.depth import Met, overlapping
from prunec.passes.regions import Region

__all__ = ["EvoPress", "Fitness", "Names"]

Names = frozenset[str]
Fitness = Callable[[Sequence[Names], int], Sequence[float]]
"""How far the program is from the dense one without each of some sets of regions, judged on the
calibration data of one stage of selection: the lower, the better."""

TRIES = 20
"""Mutations tried for each one that is wanted."""


@dataclass(frozen=True)
class EvoPress:
    """A (1 + offspring) search; Sieberling et al., EvoPress, ICML 2025, algorithm 1.

    It begins with the best of `initial` random sets. A mutation takes one to three regions back
    (few more often than many) and lets random others go until the target holds again (level-switch
    mutation). Of the offspring `survivors[i]` are left by stage i of selection, each on more
    calibration data than the one before; in the last one the parent takes part.

    Departures. The target is a cost of the model and not a number of parts, so that a mutation may
    change how many go; no set is judged twice at one stage, and the search ends when it meets
    nothing new.
    """

    seed: int = 0
    generations: int = 40
    initial: int = 32
    offspring: int = 16
    survivors: tuple[int, ...] = (4, 2, 1)

    def search(
        self,
        regions: Sequence[Region],
        fitness: Fitness,
        met: Met,
        step: Callable[[], None] = lambda: None,
    ) -> list[Region] | None:
        """The best set that was met, in the order of `regions`; None when the program without
        all of them misses the target. `step` is called after each generation."""
        drawn = _Draw(regions, met, np.random.default_rng(self.seed))
        first = drawn.distinct(frozenset, self.initial, set())
        if not first:
            return None
        (parent,) = self._selected(first, None, fitness)
        seen = set(first)
        for _ in range(self.generations):
            children = drawn.distinct(partial(drawn.switched, parent), self.offspring, seen)
            if not children:
                break
            seen.update(children)
            (parent,) = self._selected(children, parent, fitness)
            step()
        return [region for region in regions if region.name in parent]

    def _selected(
        self, children: Sequence[Names], parent: Names | None, fitness: Fitness
    ) -> list[Names]:
        """What is left of children, and of their parent, after all stages."""
        left = list(children)
        last = len(self.survivors) - 1
        for stage, count in enumerate(self.survivors):
            if stage == last and parent is not None:
                left.insert(0, parent)  # which stays when nothing is better
            found = fitness(left, stage)
            order = sorted(range(len(left)), key=found.__getitem__)
            left = [left[i] for i in order[:count]]
        return left


@dataclass
class _Draw:
    """Random sets of regions without which the target is met, and no more than it takes."""

    regions: Sequence[Region]
    met: Met
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.known: dict[Names, bool] = {}

    def distinct(self, start: Callable[[], Names], count: int, seen: set[Names]) -> list[Names]:
        """So many different sets that are not in `seen`, or fewer where chance finds no more."""
        found: dict[Names, None] = {}
        for _ in range(TRIES * count):
            if len(found) == count:
                break
            kept = start()
            grown = self._grown(kept)
            if grown is None:
                if not kept:
                    return []  # nothing is left to go, and the target is missed
                continue
            if grown not in seen:
                found[grown] = None
        return list(found)

    def switched(self, parent: Names) -> Names:
        """A set with one to three regions back in the program."""
        flips = min(int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4)))
        ordered = [region.name for region in self.regions if region.name in parent]
        back = self.rng.choice(len(ordered), min(flips, len(ordered)), replace=False)
        return parent - {ordered[i] for i in back}

    def _grown(self, gone: Names) -> Names | None:
        """The set with as many more as the target takes; None when it is not met without all."""
        chosen = [region for region in self.regions if region.name in gone]
        new: list[Region] = []
        while not (chosen and self._met(chosen)):
            able = [region for region in self.regions if not overlapping(region, chosen)]
            if not able:
                return None
            new.append(able[self.rng.integers(len(able))])
            chosen.append(new[-1])
        for region in new[:-1]:  # a large one that came late may make small ones needless
            fewer = [other for other in chosen if other is not region]
            if self._met(fewer):
                chosen = fewer
        return frozenset(region.name for region in chosen)

    def _met(self, chosen: Sequence[Region]) -> bool:
        names = frozenset(region.name for region in chosen)
        if names not in self.known:
            self.known[names] = self.met(chosen)
        return self.known[names]
