"""Allocators by formula: the target is met, by counts that runtime and layout can hold, and these
are what the papers' formulas say, computed here anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from budgets import group, layers, linear, problems, whole, within
from hypothesis import given
from hypothesis import strategies as st

from prunec.passes.allocators import (
    ALLOCATORS,
    BlockInfluence,
    Budget,
    Evidence,
    Global,
    LogDepth,
    Uniform,
    least_counts,
)
from prunec.passes.allocators.depth import depths
from prunec.passes.allocators.evidence import NEEDS
from prunec.passes.coupling import Consumer, Group, Place
from prunec.passes.methods import ALLOCATORS as NAMES

# -- the budget -------------------------------------------------------------------------------


def test_least_counts_keep_one_of_each() -> None:
    groups = [group("a", "neuron", 7), group("b", "kv_head", 2)]
    budget = linear({"a": 1, "b": 1})
    assert least_counts(groups, budget) == {"a": 1, "b": 1}
    assert least_counts(groups, within(budget, 0, allowed={"a": [3, 5]})) == {"a": 3, "b": 1}
    wide = [group("a", "neuron", 70)]
    assert least_counts(wide, within(linear({"a": 1}), 0, round_to=8)) == {"a": 8}


def test_a_whole_group_stays_whole_though_no_multiple() -> None:
    budget = within(linear({"a": 1}), 0, round_to=8)
    wide = group("a", "neuron", 70)
    found = [budget.rounded(wide, count) for count in (0, 11.9, 12, 66, 67.5, 70)]
    assert found == [8, 8, 16, 64, 70, 70]


@given(problems(), st.integers(1, 9))
def test_levels_are_what_rounding_gives(problem: tuple[list[Group], Budget], step: int) -> None:
    groups, budget = problem
    allowed = {groups[0].name: [1, groups[0].size // 2 or 1]}
    budget = within(budget, 0, round_to=step, allowed=allowed)
    for g in groups:
        found = {budget.rounded(g, count) for count in np.linspace(0, g.size, 20 * g.size)}
        assert budget.levels(g) == tuple(sorted(found))


# -- all of them ------------------------------------------------------------------------------

BY_FORMULA = {"global": Global(), "block-influence": BlockInfluence(), "log-depth": LogDepth()}


def evidence(groups: list[Group], seed: int) -> Evidence:
    rng = np.random.default_rng(seed)
    scores = {g.name: rng.random(g.size) for g in groups}
    return Evidence(scores, influence={g.name: float(rng.random()) for g in groups[1:]})


@pytest.mark.parametrize("name", BY_FORMULA)
@given(problems(), st.integers(0, 100), st.floats(0, 1), st.integers(1, 4))
def test_the_budget_is_met_and_no_further_level_fits(
    name: str, problem: tuple[list[Group], Budget], seed: int, share: float, step: int
) -> None:
    groups, budget = problem
    allowed = {g.name: [k for k in range(1, g.size) if g.size % k == 0] for g in groups[::3]}
    budget = within(budget, 0, allowed=allowed, round_to=step)
    least, most = budget.cost(least_counts(groups, budget)), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    counts = BY_FORMULA[name].allocate(groups, budget, evidence(groups, seed))
    assert budget.met(counts)
    for g in groups:
        levels = budget.levels(g)
        assert counts[g.name] in levels
        for more in levels[levels.index(counts[g.name]) + 1 :][:1]:
            assert not budget.met(counts | {g.name: more})


@pytest.mark.parametrize("name", BY_FORMULA)
def test_counts_within_three_thousandths_where_neurons_are_fine(name: str) -> None:
    """Whatever a head frees, neurons take up: 30 layers like those of a small Llama."""
    groups = layers(30, neurons=1536, heads=3)
    prices = {g.name: 1728 if g.role == "neuron" else 300_000 for g in groups}
    budget = linear(prices, 3_000_000)
    for share in (0.9, 0.8, 0.6, 0.45):
        limit = share * budget.cost(whole(groups))
        counts = BY_FORMULA[name].allocate(groups, within(budget, limit), evidence(groups, 0))
        assert limit * 0.997 <= budget.cost(counts) <= limit


def test_all_names_have_an_allocator_that_says_what_it_needs() -> None:
    assert tuple(ALLOCATORS) == NAMES
    for make in ALLOCATORS.values():
        assert make(0).needs <= set(NEEDS)
        assert make(0) == make(0)


# -- the same share of every layer ------------------------------------------------------------


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


def test_layers_of_one_size_stay_alike() -> None:
    """The rest of the budget, less than one neuron of every layer, is left."""
    groups = layers(5, neurons=40, heads=2)
    budget = linear(dict.fromkeys(whole(groups), 7))
    for less in range(0, 800, 53):
        limit = budget.cost(whole(groups)) - less
        counts = Uniform().allocate(groups, within(budget, limit))
        assert len({counts[g.name] for g in groups if g.role == "neuron"}) == 1


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


@pytest.mark.parametrize("role", ["vocab", "rank", "feature", "hidden"])
def test_every_role_gives_way_in_the_end(role: str) -> None:
    groups = [group("a", role, 10)]
    assert Uniform().allocate(groups, within(linear({"a": 3}), 12)) == {"a": 4}


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


# -- one ranking over all groups --------------------------------------------------------------


def ranked(
    scores: Mapping[str, np.ndarray], prices: Mapping[str, int], limit: float
) -> dict[str, int]:
    """FLAP's search written out: standardised scores of all groups in one list, the best taken
    first, each counted with its price; a group is done at the first index that does not fit."""
    entries = []
    for name, values in scores.items():
        z = (values - values.mean()) / values.std()
        entries += [(float(v), name) for v in np.sort(z)[:-1]]  # the best one stays anyway
    counts = dict.fromkeys(scores, 1)
    spent = sum(prices.values())
    done = set()
    for _, name in sorted(entries, reverse=True):
        if name in done or spent + prices[name] > limit:
            done.add(name)
            continue
        counts[name] += 1
        spent += prices[name]
    return counts


@given(st.integers(0, 10_000), st.floats(0.05, 1))
def test_global_takes_down_one_ranking(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    groups = [group(f"g{i}", "neuron", int(rng.integers(2, 30))) for i in range(4)]
    scores = {g.name: rng.gamma(0.5, 10.0 ** rng.integers(-3, 3), g.size) for g in groups}
    prices = {g.name: int(rng.integers(1, 9)) for g in groups}
    budget = linear(prices)
    least, most = sum(prices.values()), budget.cost(whole(groups))
    limit = least + share * (most - least)
    found = Global(floor=0).allocate(groups, within(budget, limit), Evidence(scores))
    assert found == ranked(scores, prices, limit)


@given(problems(), st.integers(0, 100), st.floats(0, 1))
def test_global_keeps_its_floor(
    problem: tuple[list[Group], Budget], seed: int, share: float
) -> None:
    groups, budget = problem
    floor = {g.name: max(1, round(0.2 * g.size)) for g in groups}
    least, most = budget.cost(floor), budget.cost(whole(groups))
    budget = within(budget, least + share * (most - least))
    counts = Global().allocate(groups, budget, evidence(groups, seed))
    assert all(floor[g.name] <= counts[g.name] <= g.size for g in groups)


def test_global_lowers_its_floor_for_a_target_below_it() -> None:
    groups = [group("a", "neuron", 100), group("b", "neuron", 100)]
    scores = {"a": np.arange(100.0), "b": np.arange(100.0) ** 4}
    budget = within(linear({"a": 1, "b": 1}), 30)
    counts = Global().allocate(groups, budget, Evidence(scores))
    assert sum(counts.values()) == 30
    assert all(10 <= count <= 20 for count in counts.values())


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


def test_global_gives_what_a_head_freed_to_neurons() -> None:
    """The head that goes last costs 30 and 20 are wanted: 10 neurons come back, best first."""
    groups = [group("n", "neuron", 100), group("k", "kv_head", 2)]
    scores = {"n": np.arange(100.0), "k": np.array([0.0, 1.0])}
    budget = linear({"n": 1, "k": 30})
    z = (scores["n"] - 49.5) / scores["n"].std()
    before = int((z > -1).sum())  # ranked above the lesser head
    counts = Global().allocate(groups, within(budget, before + 60 - 20), Evidence(scores))
    assert counts == {"n": before + 10, "k": 1}


def test_global_ranks_by_the_mean_over_the_parent() -> None:
    """A ragged group gives each of its ranks the mean score of that rank under all parents."""
    inner = Group("q", "query_head", 4, (), parent="kv")
    scores = {"q": np.array([[4.0, 3.0, 2.0, 1.0], [10.0, 20.0, 30.0, 40.0]])}
    budget = within(linear({"q": 1}), 2)
    assert Global().allocate([inner], budget, Evidence(scores)) == {"q": 2}


# -- ratios by influence ----------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [2.0, 10.0])
def test_ratios_are_the_mean_times_a_softmax_of_cosines(alpha: float) -> None:
    cosines = np.array([0.75, 0.9, 0.97, 0.93, 0.88])
    groups = [group(f"g{i}", "neuron", 10_000) for i in range(5)]
    budget = linear(dict.fromkeys(whole(groups), 3))
    limit = 0.8 * budget.cost(whole(groups))
    known = {g.name: 1 - c for g, c in zip(groups, cosines, strict=True)}
    found = BlockInfluence(alpha).allocate(groups, within(budget, limit), Evidence(influence=known))
    softmax = np.exp(alpha * cosines) / np.exp(alpha * cosines).sum()
    ratios = 0.2 * len(groups) * softmax
    np.testing.assert_allclose([1 - found[g.name] / 10_000 for g in groups], ratios, atol=2e-4)


def test_ratios_for_small_alpha_are_the_linear_schedule() -> None:
    """Adapt-Pruner: the mean less an amplitude times the centred importance -cos."""
    cosines = np.array([0.75, 0.9, 0.97, 0.93, 0.88])
    groups = [group(f"g{i}", "neuron", 100_000) for i in range(5)]
    budget = linear(dict.fromkeys(whole(groups), 3))
    limit = 0.8 * budget.cost(whole(groups))
    known = {g.name: 1 - c for g, c in zip(groups, cosines, strict=True)}
    found = BlockInfluence(0.1).allocate(groups, within(budget, limit), Evidence(influence=known))
    importance = -cosines - (-cosines).mean()
    linearised = 0.2 - 0.2 * 0.1 * importance
    ratios = [1 - found[g.name] / 100_000 for g in groups]
    np.testing.assert_allclose(ratios, linearised, atol=5e-5)
    assert np.ptp(ratios) > 50 * 5e-5


def test_a_layer_on_no_stream_takes_the_mean_influence() -> None:
    groups = [group(name, "neuron", 1000) for name in "abc"]
    budget = linear(dict.fromkeys(whole(groups), 1))
    known = {"a": 0.1, "c": 0.3}
    found = BlockInfluence().allocate(groups, within(budget, 2400), Evidence(influence=known))
    full = BlockInfluence().allocate(
        groups, within(budget, 2400), Evidence(influence={**known, "b": 0.2})
    )
    assert found == full
    assert found["a"] < found["b"] < found["c"]


# -- ratios by depth --------------------------------------------------------------------------


def test_ratios_grow_with_the_logarithm_of_depth() -> None:
    groups = [group(f"g{i}", "neuron", 10_000) for i in range(8)]
    budget = linear(dict.fromkeys(whole(groups), 2))
    found = LogDepth(first=0.2).allocate(groups, within(budget, 0.75 * 160_000))
    shape = 0.2 + 0.8 * np.log(1 + np.arange(8)) / np.log(8)
    ratios = shape * 0.25 / shape.mean()  # the last ratio is what meets the target
    np.testing.assert_allclose([1 - found[g.name] / 10_000 for g in groups], ratios, atol=2e-4)
    assert ratios[0] == pytest.approx(0.2 * ratios[-1])


def test_one_layer_alone_takes_the_whole_ratio() -> None:
    assert LogDepth().allocate([group("a", "neuron", 10)], within(linear({"a": 1}), 6)) == {"a": 6}


def test_groups_of_one_layer_have_one_depth() -> None:
    """Key and query heads share the output projection; what nothing consumes stands alone."""

    def reads(*ops: str) -> tuple[Consumer, ...]:
        return tuple(Consumer(op, Place(op, 1), "%x", 2) for op in ops)

    groups = [
        Group("k0", "kv_head", 2, (), consumers=reads("%o0")),
        Group("q0", "query_head", 3, (), consumers=reads("%o0", "%p0")),
        Group("n0", "neuron", 9, (), consumers=reads("%d0")),
        Group("lonely", "head_dim", 4, ()),
        Group("k1", "kv_head", 2, (), consumers=reads("%o1")),
    ]
    assert depths(groups) == {"k0": 0, "q0": 0, "n0": 1, "lonely": 2, "k1": 3}
