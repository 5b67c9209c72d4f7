"""Plan, measure what the plan would take, correct, until targets in time hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.target import Target
from prunec.progress import Progress
from prunec.timing.clock import Clock, Race

if TYPE_CHECKING:
    from prunec.planning.deciding import Decided

__all__ = ["settle_in_time"]

PLANS = 5
"""So many plans are measured at most."""

CLOSE = 0.02
"""A plan whose time is as near to the limit needs no correction."""


def settle_in_time(
    clock: Clock, targets: Sequence[Target], decide: Callable[[], Decided], progress: Progress
) -> Decided:
    """The slowest of the plans made that keeps to the limits when it is measured.

    Raises PrunecError (exit 3) with what was measured when none does.
    """
    timed = [target for target in targets if target.timed]
    best: tuple[float, Decided] | None = None
    seen: list[tuple[Decided, Race]] = []
    while len(seen) < PLANS:
        decided = _next(decide, best)
        if decided is None or any(decided.same(other) for other, _ in seen):
            break
        predicted = clock.seconds(decided.loaded, decided.counts)
        race = clock.try_out(decided.loaded, decided.counts)
        seen.append((decided, race))
        progress.note(_told(race, predicted))
        taken = max(race.left / target.limit(race.dense) for target in timed)
        if taken <= 1 + CLOSE and (best is None or taken > best[0]):
            best = (taken, decided)
        if abs(taken - 1) <= CLOSE:
            break
        clock.learn(decided.loaded, decided.counts, race)
    if best is None:
        raise _missed(timed, seen)
    return best[1]


def _next(decide: Callable[[], Decided], best: object) -> Decided | None:
    """A plan of what is known by now; none when there is a good one and no better to be had."""
    try:
        return decide()
    except PrunecError:
        if best is None:
            raise
        return None


def _told(race: Race, predicted: float) -> str:
    return (
        f"measured {1e3 * race.left:.1f} ms of {1e3 * race.dense:.1f} ms dense"
        f" ({race.dense / race.left:.2f}x), predicted {1e3 * predicted:.1f} ms"
        + ("" if race.steady else "; the machine was busy with other things")
    )


def _missed(targets: Sequence[Target], seen: Sequence[tuple[Decided, Race]]) -> PrunecError:
    race = min((race for _, race in seen), key=lambda race: race.left / race.dense)
    return PrunecError(
        [
            Diagnostic(
                "P404",
                f"target {target.text} does not hold: the fastest of {len(seen)} plans takes"
                f" {target.show(race.left)} beside {target.show(race.dense)} of the dense model"
                f" ({race.dense / race.left:.2f}x), where {target.show(target.limit(race.dense))}"
                " are allowed"
                + ("" if race.steady else "; the machine was busy with other things"),
                "--target",
                help="ask for less, add roles to --groups, or measure on a machine that does"
                " nothing else",
            )
            for target in targets
            if race.left > target.limit(race.dense)
        ],
        Exit.NOT_MET,
    )
