"""Roles give up indices one rung after the other, each group in proportion to its factor.

All allocators that give every layer a pruning ratio by a formula share this: the formula says how
ratios compare between groups of one rung, the rung how far all of them go, and what coarse steps
freed too much is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunec.passes.allocators.budget import Budget, Counts
from prunec.passes.coupling import Group

__all__ = ["LADDER", "descend", "first_rung", "top_up", "widen"]

FINE = frozenset({"neuron", "channel"})
HEADS = frozenset({"query_head", "expert"})

LADDER: tuple[tuple[Callable[[str], bool], float], ...] = (
    (lambda role: role in FINE, 1 / 3),
    (lambda role: role in HEADS, 1 / 2),
    (lambda role: role not in FINE | HEADS, 1 / 2),
    (lambda role: role in FINE, 0.0),
    (lambda role: role not in FINE, 0.0),
)
"""Roles in the order in which they give up indices, and how far each goes before the next takes
over: neurons cost the least quality per parameter and attention the most."""

HALVINGS = 60
"""Steps of a bisection: enough to tell factors that differ by a million."""

Factor = Callable[[Group], float]
Worth = Callable[[Group, int], float]


def first_rung(groups: Sequence[Group]) -> list[Group]:
    """The groups that give up indices first, and get back what is left over."""
    return [g for g in groups if LADDER[0][0](g.role)]


def descend(groups: Sequence[Group], budget: Budget, factor: Factor) -> Counts:
    """The least pruned counts that meet the budget and lose, within a rung, shares of their size
    in proportion to `factor` (above 0), each as far as the rung goes.

    The last rung may free too much, for heads come in coarse steps: what fits is given back to
    the first rung, in equal shares of what its groups lost.
    """
    counts = {group.name: group.size for group in groups}
    for takes_part, floor in LADDER:
        chosen = [g for g in groups if takes_part(g.role)]
        counts = _rung(counts, chosen, floor, factor, budget)
        if budget.met(counts):
            break
    return widen(first_rung(groups), counts, budget)


def _rung(
    counts: Counts, groups: Sequence[Group], floor: float, factor: Factor, budget: Budget
) -> Counts:
    """Bisect for the lowest level that meets the budget; all the way down when none does."""
    if not groups:
        return counts
    factors = {g.name: factor(g) for g in groups}
    assert min(factors.values()) > 0, "a factor must be above 0"

    def at(level: float) -> Counts:
        found = dict(counts)
        for group in groups:
            lost = min(1 - floor, level * factors[group.name])
            # an earlier rung may have gone lower already
            found[group.name] = min(
                counts[group.name], budget.rounded(group, (1 - lost) * group.size)
            )
        return found

    low, high = 0.0, (1 - floor) / min(factors.values())
    if budget.met(at(low)) or not budget.met(at(high)):
        return at(low) if budget.met(at(low)) else at(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if budget.met(at(middle)) else (middle, high)
    return at(high)


def widen(groups: Sequence[Group], counts: Counts, budget: Budget) -> Counts:
    """Widen groups in equal shares of what they lost, as far as the budget allows."""

    def at(share: float) -> Counts:
        found = dict(counts)
        for group in groups:
            low = counts[group.name]
            wider = budget.rounded(group, low + share * (group.size - low))
            found[group.name] = max(low, wider)
        return found

    if budget.met(at(1.0)):
        return at(1.0)
    good, bad = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if budget.met(at(middle)) else (good, middle)
    return at(good)


def top_up(
    groups: Sequence[Group], counts: Counts, budget: Budget, worth: Worth | None = None
) -> Counts:
    """Give back one level of one group at a time, for as long as any fits.

    The first rung comes first; then what is worth most at its present count, by default what has
    lost the largest share of its size.
    """
    worth = worth or (lambda group, count: 1 - count / group.size)
    fine = {g.name for g in first_rung(groups)}
    found = dict(counts)
    steps = {g.name: [c for c in budget.levels(g) if c > counts[g.name]][::-1] for g in groups}
    open_ = [g for g in groups if steps[g.name]]
    for group in list(open_):
        whole = found | {group.name: group.size}
        if budget.cost(whole) == budget.cost(found) and budget.met(whole):  # costs nothing
            found = whole
            open_.remove(group)
    while open_:
        best = max(open_, key=lambda g: (g.name in fine, worth(g, found[g.name])))
        wider = found | {best.name: steps[best.name].pop()}
        if budget.met(wider):
            found = wider
        if not budget.met(wider) or not steps[best.name]:
            open_.remove(best)  # what does not fit now will not fit later
    return found
