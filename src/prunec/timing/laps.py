"""Laps of programs that take turns, without those during which the machine did something else.

A lap counts when the threads of this process have hardly waited for a processor meanwhile, which
Linux tells for each of them. Others are thrown out, and more are taken in their place, up to a
point. What then is left is either steady, or said not to be. Where one thread does all the work,
what it has waited is known to be no part of the work, and is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from prunec.ir.diagnostics import Diagnostic

__all__ = ["ROUNDS", "Laps", "Runs", "doubt", "waited"]

ROUNDS = 7
"""The least number of turns: the median of so many survives three disturbed ones."""

WAITED = 0.05
"""A lap is disturbed when its threads have waited for a processor for a larger share of it."""

WAITED_ALONE = 0.6
"""The same where it is taken off: what is left would be more of coming back than of going on."""

UNEVEN = 1.5
"""Laps whose median takes so many times as long as the shortest are no measurement."""

PATIENCE = 4
"""Laps are taken for so many times as long, at most, until enough of them count."""

THREADS = Path("/proc/self/task")

Runs = Sequence[tuple[Callable[[], object], int]]
"""Programs, and how often each runs in one turn."""


@dataclass(frozen=True)
class Laps:
    """By program, the seconds of each lap that counts; `steady` unless too few of one program do,
    or they differ too much: then there are those that waited least."""

    seconds: Sequence[Sequence[float]]
    steady: bool = True

    @classmethod
    def of(
        cls,
        runs: Runs,
        rounds: int = ROUNDS,
        seconds: float = 0.0,
        step: Callable[[], None] = lambda: None,
        alone: bool = False,
    ) -> Laps:
        """Take turns, A B C, A B C, ..., at least `rounds` and until `seconds` are over; `step` is
        called after each of the first `rounds`, `alone` says that one thread does the work."""
        most = WAITED_ALONE if alone else WAITED
        taken: list[list[tuple[float, float]]] = [[] for _ in runs]
        start, turns = time.perf_counter(), 0
        while _goes_on(taken, turns, rounds, time.perf_counter() - start, seconds, most):
            for laps, (run, count) in zip(taken, runs, strict=True):
                laps += [_lap(run) for _ in range(count)]
            turns += 1
            if turns <= rounds:
                step()
        chosen = [[lap for lap in laps if lap[1] <= most] for laps in taken]
        enough = all(len(laps) >= rounds for laps in chosen)
        if not enough:
            chosen = [sorted(laps, key=_waiting)[:rounds] for laps in taken]
        counted = [[lap * (1 - share if alone else 1) for lap, share in laps] for laps in chosen]
        return cls(counted, enough and all(median(laps) <= UNEVEN * min(laps) for laps in counted))

    @property
    def medians(self) -> list[float]:
        return [median(laps) for laps in self.seconds]


def _goes_on(
    taken: Sequence[Sequence[tuple[float, float]]],
    turns: int,
    rounds: int,
    spent: float,
    seconds: float,
    most: float,
) -> bool:
    if turns < rounds or spent < seconds:
        return True
    if turns >= PATIENCE * rounds and spent >= PATIENCE * seconds:
        return False
    return any(sum(share <= most for _, share in laps) < rounds for laps in taken)


def _waiting(lap: tuple[float, float]) -> float:
    return lap[1]


def _lap(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and the share of them that was waited."""
    before, start = waited(), time.perf_counter()
    run()
    taken = time.perf_counter() - start
    return taken, (waited() - before) / taken


def waited() -> float:
    """Seconds for which threads of this process were ready and had no processor, all added up; 0
    where the system does not tell."""
    total = 0
    for thread in THREADS.glob("*/schedstat"):
        try:
            total += int(thread.read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has ended meanwhile
    return total / 1e9


def doubt(what: str) -> Diagnostic:
    """What to say of times that are not steady."""
    return Diagnostic(
        "P893",
        f"the times of {what} cannot be trusted: the processors did other things in most laps",
        "--runtime",
        help="measure again on a machine that does nothing else",
    )
