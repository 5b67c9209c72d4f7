"""The least error that a budget buys, by dynamic programming over error curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.allocators.evidence import Evidence
from prunec.passes.allocators.ladder import top_up
from prunec.passes.allocators.uniform import Uniform
from prunec.passes.coupling import Group

__all__ = ["Curve", "DynamicProgram", "Table"]

BINS = 4096
"""Steps into which what can be saved is cut."""

ROUNDS = 3
"""How often prices are taken anew at the counts found, at most."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DynamicProgram:
    """Counts that minimise the sum of weight times error under the budget.

    ZipLM, NeurIPS 2023, section 3.2 (structured SPDY: error curves of all layers, one level each,
    dynamic programming over a discretised cost). Here the cost is whatever the target counts.
    Costs need not add up (heads times their inside), so a group's price is what it costs with the
    others at the counts of the round before, and the limit that the program is given is bisected
    until the true cost meets the budget.

    Departures. A plan is moved towards the uniform one by the share `blend`: 0 leaves it as it is,
    1 is uniform. Errors are those of layers on their own, measured on the calibration text, and
    their sum's minimum overfits both. Each group has about `levels` counts to choose from, and
    what is left over goes where it saves most error. A group without a curve keeps its uniform
    count.
    """

    blend: float = 0.25
    levels: int = 64
    needs: ClassVar[frozenset[str]] = frozenset({"curves", "weight"})
    evaluations: ClassVar[int] = 0

    def allocate(self, groups: Sequence[Group], budget: Budget, evidence: Evidence) -> Counts:
        base = Uniform().allocate(groups, budget)
        curves = [
            Curve(group, self._choices(group, base, budget), _weighed(group, evidence))
            for group in groups
            if group.name in evidence.curves
        ]
        if not curves or self.blend >= 1:
            return base
        counts = base
        for _ in range(ROUNDS):
            before, table = counts, Table([curve.priced(counts, budget) for curve in curves])
            counts = self._best(table, curves, base, budget)
            if counts == before:
                break
        gains = {curve.group.name: curve for curve in curves}
        prices = {c.group.name: max(c.price(counts, budget), 1e-300) for c in curves}

        def worth(group: Group, count: int) -> float:
            curve = gains.get(group.name)
            return 0.0 if curve is None else curve.slope(count) / prices[group.name]

        return top_up([curve.group for curve in curves], counts, budget, worth)

    def _choices(self, group: Group, base: Counts, budget: Budget) -> list[int]:
        """Levels spread evenly, with the uniform count among them."""
        all_ = budget.levels(group)
        places = np.linspace(0, len(all_) - 1, min(self.levels, len(all_)))
        return sorted({all_[round(p)] for p in places.tolist()} | {base[group.name]})

    def _best(self, table: Table, curves: Sequence[Curve], base: Counts, budget: Budget) -> Counts:
        """The plan of the largest limit that truly meets the budget, blended."""

        def at(limit: int) -> Counts:
            found = dict(base)
            for curve, place in zip(curves, table.plan(limit), strict=True):
                group, uniform = curve.group, base[curve.group.name]
                # between two counts, the one nearer to uniform
                share = 1 - self.blend - (1e-9 if self.blend else 0.0)
                wanted = uniform + share * (curve.choices[place] - uniform)
                found[group.name] = budget.rounded(group, wanted)
            return found

        low, high = 0, table.limit
        if budget.met(at(high)):
            return at(high)
        if not budget.met(at(low)):  # costs below half a bin passed for none
            return base
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if budget.met(at(middle)) else (low, middle)
        return at(low)


def _weighed(group: Group, evidence: Evidence) -> Floats:
    curve: Floats = evidence.weight.get(group.name, 1.0) * evidence.curves[group.name]
    assert len(curve) == group.size + 1, "a curve has an error for each count"
    assert np.isfinite(curve[1:]).all(), "a curve is finite"
    return curve


@dataclass(frozen=True)
class Curve:
    """The counts that a group may choose from, and the error at every count."""

    group: Group
    choices: Sequence[int]
    errors: Floats

    def price(self, counts: Mapping[str, int], budget: Budget) -> float:
        """What one index costs on average, with the others at `counts`."""
        least, most = self.choices[0], self.choices[-1]
        if least == most:
            return 0.0
        low, high = (budget.cost({**counts, self.group.name: c}) for c in (least, most))
        return (high - low) / (most - least)

    def priced(self, counts: Mapping[str, int], budget: Budget) -> tuple[Floats, Floats]:
        """Cost above that of the least choice, and error, of each choice."""
        choices = np.asarray(self.choices)
        return self.price(counts, budget) * (choices - choices[0]), self.errors[choices]

    def slope(self, count: int) -> float:
        """The error that one more index saves."""
        return float(self.errors[count] - self.errors[min(count + 1, self.group.size)])


class Table:
    """The least sum of errors for each of `BINS` limits of the sum of costs.

    Each item gives the costs of its choices, from 0 ascending, and their errors.
    """

    def __init__(self, items: Sequence[tuple[Floats, Floats]], bins: int = BINS) -> None:
        total = sum(float(costs[-1]) for costs, _ in items)
        scale = bins / total if total > 0 else 0.0
        self.limit = bins + len(items)  # every cost may be rounded up
        self.costs = [np.rint(costs * scale).astype(np.int64) for costs, _ in items]
        self.chosen: list[npt.NDArray[np.int16]] = []
        best = np.zeros(self.limit + 1)
        for costs, (_, errors) in zip(self.costs, items, strict=True):
            best = self._with(best, costs, errors)

    def _with(self, best: Floats, costs: npt.NDArray[np.int64], errors: Floats) -> Floats:
        """Add an item: the best of its choices at every limit."""
        found = np.full(len(best), np.inf)
        chosen = np.zeros(len(best), dtype=np.int16)
        for place, (cost, error) in enumerate(zip(costs.tolist(), errors.tolist(), strict=True)):
            if cost > self.limit:
                break
            sums = best[: len(best) - cost] + error
            better = sums < found[cost:]
            np.copyto(found[cost:], sums, where=better)
            np.copyto(chosen[cost:], np.int16(place), where=better)
        self.chosen.append(chosen)
        return found

    def plan(self, limit: int) -> list[int]:
        """The choice of each item, by its place, that has the least error within the limit."""
        places = []
        for costs, chosen in zip(reversed(self.costs), reversed(self.chosen), strict=True):
            place = int(chosen[limit])
            limit -= int(costs[place])
            places.append(place)
        return places[::-1]
