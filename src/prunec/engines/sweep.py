"""Variants of a program measured by workers, some of one window at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prunec.backends.torch_variants import Runner, Variant
from prunec.engines.damage import Damage, Sums, Windows
from prunec.ir.graph import Graph
from prunec.passes.profile import Weights

__all__ = ["Piece", "Sweep", "pieces"]

Piece = tuple[int, tuple[int, ...]]
"""A window, and the variants that are run on it, by their places."""

PIECES = 4
"""Pieces for each worker, at least: those that end early take from those that do not."""


@dataclass(frozen=True)
class Sweep:
    """A `prunec.engines.workers.Job` whose pieces give the sums of `Damage`."""

    graph: Graph
    weights: Weights
    windows: Windows
    variants: tuple[Variant, ...]
    text: bool

    def open(self) -> Callable[[Piece], Sums]:
        runner = Runner(self.graph, self.weights)

        def measure(piece: Piece) -> Sums:
            window, chosen = piece
            score = Damage(self.windows, self.text)
            variants = [self.variants[place] for place in chosen]
            runner.run({window: self.windows[window]}, variants, score)
            return score.sums

        return measure


def pieces(variants: Sequence[Variant], score: Damage, workers: int) -> list[Any]:
    """All that `score` does not know, in stretches of the program: the windows alone where they
    are enough for the workers, as each piece runs the program once from its start."""
    windows = len(score.windows)
    parts = max(1, -(-PIECES * workers // windows))
    ordered = sorted(range(len(variants)), key=lambda place: variants[place].start)
    found: list[Piece] = []
    for window in range(windows):
        left = [p for p in ordered if not score.knows(variants[p].name, window)]
        size = max(1, -(-len(left) // parts))
        starts = range(0, len(left), size)
        found += [(window, tuple(left[start : start + size])) for start in starts]
    return found
