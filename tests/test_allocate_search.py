"""Allocators that search: dynamic programming against brute force, evolution on known ground."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest
from budgets import group, layers, linear, problems, whole, within
from hypothesis import given
from hypothesis import strategies as st

from prunec.passes.allocators import (
    Budget,
    DynamicProgram,
    Evidence,
    Evolutionary,
    Uniform,
    least_counts,
)
from prunec.passes.allocators.dynamic import Table
from prunec.passes.coupling import Group

EXACT = DynamicProgram(blend=0)


def falling(rng: np.random.Generator, size: int, scale: float = 1.0) -> np.ndarray:
    """An error curve of any shape: falling, zero at full size."""
    steps = rng.gamma(0.3, scale, size)
    return np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])


def error(curves: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> float:
    return sum(float(curve[counts[name]]) for name, curve in curves.items())


def brute(groups: list[Group], budget: Budget, curves: Mapping[str, np.ndarray]) -> float:
    """The least error over all plans that meet the budget."""
    names = [g.name for g in groups]
    plans = (dict(zip(names, c, strict=True)) for c in product(*map(budget.levels, groups)))
    return min(error(curves, plan) for plan in plans if budget.met(plan))


@st.composite
def small(draw: st.DrawFn) -> tuple[list[Group], Budget, dict[str, np.ndarray]]:
    """A few small groups with curves, a linear cost and a limit between the least and all."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    roles = draw(st.lists(st.sampled_from(["neuron", "kv_head"]), min_size=1, max_size=4))
    groups = [group(f"g{i}", role, int(rng.integers(2, 8))) for i, role in enumerate(roles)]
    budget = linear({g.name: int(rng.integers(1, 12)) for g in groups}, 5)
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    limit = least + draw(st.floats(0, 1)) * (most - least)
    curves = {g.name: falling(rng, g.size, 10.0 ** rng.integers(-2, 3)) for g in groups}
    return groups, within(budget, limit), curves


# -- dynamic programming ----------------------------------------------------------------------


@given(small())
def test_no_plan_has_less_error(case: tuple[list[Group], Budget, dict[str, np.ndarray]]) -> None:
    groups, budget, curves = case
    found = EXACT.allocate(groups, budget, Evidence(curves=curves))
    assert budget.met(found)
    assert error(curves, found) == pytest.approx(brute(groups, budget, curves), rel=1e-9)


@given(small(), st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_weights_multiply_the_curves(
    case: tuple[list[Group], Budget, dict[str, np.ndarray]], weights: list[float]
) -> None:
    groups, budget, curves = case
    weight = {g.name: w for g, w in zip(groups, weights, strict=False)}
    scaled = {name: weight[name] * curve for name, curve in curves.items()}
    found = EXACT.allocate(groups, budget, Evidence(curves=curves, weight=weight))
    assert error(scaled, found) == pytest.approx(brute(groups, budget, scaled), rel=1e-9)


@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_costs_that_multiply(seed: int, share: float) -> None:
    """Key heads times query heads times two layers, and neurons: what the budget buys is nearly
    the best, though prices are taken with the other groups at hand."""
    rng = np.random.default_rng(seed)
    groups = [
        group(f"{kind}{i}", role, size)
        for i in range(2)
        for kind, role, size in (("k", "kv_head", 3), ("q", "query_head", 3), ("n", "neuron", 6))
    ]

    def cost(counts: Mapping[str, int]) -> float:
        return sum(
            4 * counts[f"k{i}"] * (1 + counts[f"q{i}"]) + 5 * counts[f"n{i}"] for i in range(2)
        )

    least, most = cost(dict.fromkeys(whole(groups), 1)), cost(whole(groups))
    budget = Budget(cost, least + share * (most - least))
    curves = {g.name: falling(rng, g.size) for g in groups}
    found = EXACT.allocate(groups, budget, Evidence(curves=curves))
    assert budget.met(found)
    for g in groups:
        if found[g.name] < g.size:
            assert not budget.met(found | {g.name: found[g.name] + 1})
    nothing = error(curves, dict.fromkeys(whole(groups), 1))
    assert error(curves, found) <= brute(groups, budget, curves) + 0.2 * nothing


@given(problems(), st.integers(0, 100), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4))
def test_the_budget_is_met_and_no_further_level_fits(
    problem: tuple[list[Group], Budget], seed: int, share: float, blend: float, step: int
) -> None:
    groups, budget = problem
    rng = np.random.default_rng(seed)
    allowed = {g.name: [k for k in range(1, g.size) if g.size % k == 0] for g in groups[::3]}
    budget = within(budget, 0, allowed=allowed, round_to=step)
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    evidence = Evidence(curves={g.name: falling(rng, g.size) for g in groups})
    counts = DynamicProgram(blend=min(blend, 0.99)).allocate(groups, budget, evidence)
    assert budget.met(counts)
    for g in groups:
        levels = budget.levels(g)
        assert counts[g.name] in levels
        for more in levels[levels.index(counts[g.name]) + 1 :][:1]:
            assert not budget.met(counts | {g.name: more})


def test_blend_moves_counts_towards_uniform() -> None:
    """The first group can be cut to a tenth without error: alone, half way, and not at all."""
    groups = [group("a", "neuron", 100), group("b", "neuron", 100)]
    curves = {"a": np.maximum(10.0 - np.arange(101), 0), "b": 200.0 - 2 * np.arange(101)}
    budget = within(linear({"a": 1, "b": 1}), 110)

    def found(blend: float) -> tuple[int, int]:
        counts = DynamicProgram(blend).allocate(groups, budget, Evidence(curves=curves))
        return counts["a"], counts["b"]

    assert found(0) == (10, 100)
    assert found(0.5) == (33, 77)  # half way from 55 to 10 and to 100, rounded
    assert found(1) == (55, 55)


def test_half_a_head_is_not_taken() -> None:
    """Between two counts the blend takes the one nearer to the uniform plan."""
    groups = [group("k", "kv_head", 3), group("n", "neuron", 90)]
    curves = {"k": np.array([9.0, 0.0, 0.0, 0.0]), "n": 90.0 - np.arange(91)}
    budget = within(linear({"k": 10, "n": 1}), 100)
    found = DynamicProgram(0.5).allocate(groups, budget, Evidence(curves=curves))
    assert found == {"k": 2, "n": 80}  # uniform 3 and 70, the optimum 1 and 90
    curves["k"] = np.array([19.0, 19.0, 0.0, 0.0])  # the optimum now 2 and 80
    found = DynamicProgram(0.5).allocate(groups, budget, Evidence(curves=curves))
    assert found == {"k": 3, "n": 70}


def test_groups_without_a_curve_keep_the_uniform_count() -> None:
    groups = layers(2, neurons=50, heads=4)
    rng = np.random.default_rng(0)
    curves = {g.name: falling(rng, 50) for g in groups if g.role == "neuron"}
    budget = within(linear({g.name: 1 if g.role == "neuron" else 20 for g in groups}), 130)
    uniform = Uniform().allocate(groups, budget)
    found = EXACT.allocate(groups, budget, Evidence(curves=curves))
    assert budget.cost(found) == 130
    assert {n: c for n, c in found.items() if n not in curves} == {
        n: c for n, c in uniform.items() if n not in curves
    }
    assert DynamicProgram().allocate(groups, budget, Evidence()) == uniform


def test_what_costs_nothing_stays() -> None:
    groups = [group("free", "neuron", 20), group("dear", "neuron", 20)]
    curves = {name: 20.0 - np.arange(21) for name in ("free", "dear")}
    budget = within(linear({"free": 0, "dear": 3}), 30)
    found = DynamicProgram().allocate(groups, budget, Evidence(curves=curves))
    assert found == {"free": 20, "dear": 10}


def test_a_table_holds_the_best_plan_of_every_limit() -> None:
    rng = np.random.default_rng(3)
    items = []
    for _ in range(3):
        costs = np.concatenate([[0], np.cumsum(rng.integers(1, 5, 4))])
        items.append((costs.astype(float), np.sort(rng.random(5))[::-1]))
    total = int(sum(costs[-1] for costs, _ in items))
    table = Table(items, bins=total)  # one bin a unit of cost
    for limit in range(total + 1):
        places = table.plan(limit)
        spent = sum(costs[p] for p, (costs, _) in zip(places, items, strict=True))
        lost = sum(errors[p] for p, (_, errors) in zip(places, items, strict=True))
        best = min(
            sum(errors[p] for p, (_, errors) in zip(plan, items, strict=True))
            for plan in product(range(5), repeat=3)
            if sum(costs[p] for p, (costs, _) in zip(plan, items, strict=True)) <= limit
        )
        assert spent <= limit
        assert lost == pytest.approx(best)


def test_a_hundred_and_twenty_groups_take_less_than_a_second() -> None:
    """Measured at 0.1 s; the bound leaves room for a busy machine."""
    groups = layers(60, neurons=4096, heads=8)
    rng = np.random.default_rng(0)
    curves = {g.name: falling(rng, g.size) for g in groups}
    prices = {g.name: 3000 if g.role == "neuron" else 500_000 for g in groups}
    budget = linear(prices)
    start = time.process_time()
    found = DynamicProgram().allocate(
        groups, within(budget, 0.7 * budget.cost(whole(groups))), Evidence(curves=curves)
    )
    assert time.process_time() - start < 1
    assert budget.cost(found) >= 0.7 * budget.cost(whole(groups)) - 3000


# -- evolution --------------------------------------------------------------------------------


def towards(goal: Mapping[str, int]) -> tuple[list[dict[str, int]], Evidence]:
    """A landscape whose best plan is known, and the plans that were asked for."""
    asked: list[dict[str, int]] = []

    def divergence(plans: Sequence[Mapping[str, int]]) -> list[float]:
        asked.extend(dict(counts) for counts in plans)
        return [sum(abs(plan[name] - wanted) for name, wanted in goal.items()) for plan in plans]

    return asked, Evidence(divergence=divergence)


GROUPS = layers(3, neurons=60, heads=4)
PRICES = {g.name: 1 if g.role == "neuron" else 20 for g in GROUPS}
BUDGET = within(linear(PRICES), 300)
GOAL = {"k0": 4, "n0": 60, "k1": 2, "n1": 20, "k2": 3, "n2": 40}


def test_evolution_finds_a_better_plan_within_the_budget() -> None:
    asked, evidence = towards(GOAL)
    search = Evolutionary(generations=40, seed=1)
    found = search.allocate(GROUPS, BUDGET, evidence)
    assert all(BUDGET.met(plan) for plan in asked)
    assert evidence.divergence is not None
    first, last = evidence.divergence([asked[0], found])
    assert last < first / 3
    assert asked[0] == DynamicProgram().allocate(GROUPS, BUDGET, Evidence())


def test_evolution_asks_no_more_than_it_says_and_nothing_twice() -> None:
    asked, evidence = towards(GOAL)
    search = Evolutionary(generations=5, offspring=4)
    search.allocate(GROUPS, BUDGET, evidence)
    assert 10 < len(asked) <= search.evaluations == 21
    assert len({tuple(sorted(plan.items())) for plan in asked}) == len(asked)


def test_the_same_seed_gives_the_same_plan() -> None:
    plans = [
        Evolutionary(seed=seed).allocate(GROUPS, BUDGET, towards(GOAL)[1]) for seed in (7, 7, 8)
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_a_plan_that_nothing_betters_stays() -> None:
    """Every other plan is infinitely far, or not a number."""
    start = DynamicProgram().allocate(GROUPS, BUDGET, Evidence())
    for far in (np.inf, np.nan):
        landscape = Evidence(
            divergence=lambda plans, far=far: [1.0 if p == start else far for p in plans]
        )
        assert Evolutionary().allocate(GROUPS, BUDGET, landscape) == start


@given(problems(), st.integers(0, 100), st.floats(0, 1))
def test_evolution_leaves_nothing_over(
    problem: tuple[list[Group], Budget], seed: int, share: float
) -> None:
    groups, budget = problem
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    rng = np.random.default_rng(seed)
    landscape = Evidence(divergence=lambda plans: rng.random(len(plans)).tolist())
    counts = Evolutionary(generations=3, seed=seed).allocate(groups, budget, landscape)
    assert budget.met(counts)
    for g in groups:
        if counts[g.name] < g.size:
            assert not budget.met(counts | {g.name: counts[g.name] + 1})
