"""Allocators: the target is met, and counts are ones that runtime and layout can hold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunec.passes.allocators import Budget, Evidence, Global, Uniform, least_counts
from prunec.passes.coupling import Group

ROLES = ("neuron", "query_head", "kv_head", "head_dim", "hidden", "channel", "expert")


def group(name: str, role: str, size: int) -> Group:
    return Group(name, role, size, ())


def linear(prices: Mapping[str, int], fixed: int = 0) -> Budget:
    """A cost that is a price for each index; the limit is set by `within`."""
    return Budget(lambda counts: fixed + sum(prices[n] * k for n, k in counts.items()), 0.0)


def within(budget: Budget, limit: float, **changes: object) -> Budget:
    fields = {"round_to": budget.round_to, "allowed": budget.allowed} | changes
    return Budget(budget.cost, limit, **fields)  # type: ignore[arg-type]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Group], Budget]:
    """Groups of any roles and sizes, and a linear cost."""
    roles = draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=6))
    groups = [group(f"g{i}", role, draw(st.integers(2, 60))) for i, role in enumerate(roles)]
    prices = {g.name: draw(st.integers(1, 50)) for g in groups}
    return groups, linear(prices, draw(st.integers(0, 500)))


def whole(groups: list[Group]) -> dict[str, int]:
    return {g.name: g.size for g in groups}


@given(problems(), st.floats(0, 1))
def test_uniform_meets_what_can_be_met(problem: tuple[list[Group], Budget], share: float) -> None:
    groups, budget = problem
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    counts = Uniform().allocate(groups, budget)
    assert budget.met(counts)
    assert all(1 <= counts[g.name] <= g.size for g in groups)


@given(problems(), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_lower_target_leaves_no_more_of_a_rung(
    problem: tuple[list[Group], Budget], shares: list[float]
) -> None:
    """Never more in all; group by group too, until heads free more than was asked for."""
    groups, budget = problem
    groups = [group(g.name, "neuron", g.size) for g in groups]
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    low, high = (least + share * (most - least) for share in sorted(shares))
    fewer = Uniform().allocate(groups, within(budget, low))
    more = Uniform().allocate(groups, within(budget, high))
    assert budget.cost(fewer) <= budget.cost(more)
    assert all(fewer[g.name] <= more[g.name] for g in groups)


@given(problems())
def test_nothing_is_taken_when_all_fits(problem: tuple[list[Group], Budget]) -> None:
    groups, budget = problem
    budget = within(budget, budget.cost(whole(groups)))
    assert Uniform().allocate(groups, budget) == whole(groups)


def test_the_same_share_of_every_group_of_a_role() -> None:
    groups = [group("a", "neuron", 100), group("b", "neuron", 200), group("c", "query_head", 9)]
    budget = linear({"a": 1, "b": 1, "c": 10})
    counts = Uniform().allocate(groups, within(budget, budget.cost(whole(groups)) - 120))
    assert counts == {"a": 60, "b": 120, "c": 9}


def test_neurons_go_before_heads_and_heads_before_the_last_neurons() -> None:
    """Neurons to a third, query heads to a half, then key heads."""
    groups = [group("n", "neuron", 90), group("q", "query_head", 8), group("k", "kv_head", 4)]
    budget = linear({"n": 1, "q": 10, "k": 100})
    whole_cost = budget.cost(whole(groups))
    assert Uniform().allocate(groups, within(budget, whole_cost - 60)) == {
        "n": 30, "q": 8, "k": 4,
    }  # fmt: skip
    assert Uniform().allocate(groups, within(budget, whole_cost - 100)) == {
        "n": 30, "q": 4, "k": 4,
    }  # fmt: skip
    assert Uniform().allocate(groups, within(budget, whole_cost - 300)) == {
        "n": 30, "q": 4, "k": 2,
    }  # fmt: skip


def test_what_a_head_frees_too_much_goes_back_to_neurons() -> None:
    groups = [group("n", "neuron", 90), group("q", "query_head", 8)]
    budget = linear({"n": 1, "q": 50})
    counts = Uniform().allocate(groups, within(budget, budget.cost(whole(groups)) - 70))
    assert counts == {"n": 70, "q": 7}


@pytest.mark.parametrize("step", [2, 8])
def test_wide_groups_are_rounded(step: int) -> None:
    """Where a group is wide enough for it; three heads are not."""
    groups = [group("n", "neuron", 96), group("q", "query_head", 3)]
    budget = linear({"n": 1, "q": 10})
    for less in range(0, 100, 7):
        counts = Uniform().allocate(
            groups, within(budget, budget.cost(whole(groups)) - less, round_to=step)
        )
        assert counts["n"] % step == 0
        assert 1 <= counts["q"] <= 3


@given(problems(), st.floats(0, 1))
def test_only_counts_that_the_layout_holds(
    problem: tuple[list[Group], Budget], share: float
) -> None:
    groups, budget = problem
    allowed = {g.name: [k for k in range(1, g.size) if g.size % k == 0] for g in groups[::2]}
    budget = within(budget, 0, allowed=allowed)
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    counts = Uniform().allocate(groups, budget)
    assert budget.met(counts)
    for name, choices in allowed.items():
        assert counts[name] in [*choices, *(g.size for g in groups if g.name == name)]


def test_least_counts_keep_one_of_each() -> None:
    groups = [group("a", "neuron", 7), group("b", "kv_head", 2)]
    budget = linear({"a": 1, "b": 1})
    assert least_counts(groups, budget) == {"a": 1, "b": 1}
    assert least_counts(groups, within(budget, 0, allowed={"a": [3, 5]})) == {"a": 3, "b": 1}


# -- one ranking over all groups --------------------------------------------------------------


@given(problems(), st.integers(0, 100), st.floats(0, 1))
def test_global_meets_what_its_floor_allows(
    problem: tuple[list[Group], Budget], seed: int, share: float
) -> None:
    groups, budget = problem
    rng = np.random.default_rng(seed)
    scores = {g.name: rng.random(g.size) for g in groups}
    floor = {g.name: max(1, round(0.2 * g.size)) for g in groups}
    least, most = budget.cost(floor), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    counts = Global().allocate(groups, budget, Evidence(scores))
    assert budget.met(counts)
    assert all(floor[g.name] <= counts[g.name] <= g.size for g in groups)


def test_global_takes_from_where_little_stands_out() -> None:
    """Of two groups of the same size, more is left of the one with many high scores."""
    groups = [group("flat", "neuron", 10), group("steep", "neuron", 10)]
    scores = {
        "flat": np.array([1.0] * 5 + [9.0] * 5),
        "steep": np.array([1.0] * 9 + [9.0]),
    }
    budget = within(linear({"flat": 1, "steep": 1}), 8)
    counts = Global().allocate(groups, budget, Evidence(scores))
    assert budget.met(counts)
    assert counts["flat"] > counts["steep"]


def test_global_ranks_by_the_mean_over_the_parent() -> None:
    """A ragged group gives each of its ranks the mean score of that rank under all parents."""
    inner = Group("q", "query_head", 4, (), parent="kv")
    scores = {"q": np.array([[4.0, 3.0, 2.0, 1.0], [10.0, 20.0, 30.0, 40.0]])}
    budget = within(linear({"q": 1}), 2)
    assert Global().allocate([inner], budget, Evidence(scores)) == {"q": 2}
