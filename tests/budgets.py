"""Groups and budgets for tests of allocators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from prunec.passes.allocators import Budget
from prunec.passes.coupling import Group

__all__ = ["group", "layers", "linear", "problems", "whole", "within"]

ROLES = ("neuron", "query_head", "kv_head", "head_dim", "hidden", "channel", "expert")


def group(name: str, role: str, size: int) -> Group:
    return Group(name, role, size, ())


def layers(count: int, neurons: int, heads: int) -> list[Group]:
    """Key heads and neurons in turn, as in a decoder."""
    return [
        g
        for i in range(count)
        for g in (group(f"k{i}", "kv_head", heads), group(f"n{i}", "neuron", neurons))
    ]


def linear(prices: Mapping[str, int], fixed: int = 0) -> Budget:
    """A cost that is a price for each index; the limit is set by `within`."""
    return Budget(lambda counts: fixed + sum(prices[n] * k for n, k in counts.items()), 0.0)


def within(budget: Budget, limit: float, **changes: Any) -> Budget:
    return replace(budget, limit=limit, **changes)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Group], Budget]:
    """Groups of any roles and sizes, and a linear cost."""
    roles = draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=6))
    groups = [group(f"g{i}", role, draw(st.integers(2, 60))) for i, role in enumerate(roles)]
    prices = {g.name: draw(st.integers(1, 50)) for g in groups}
    return groups, linear(prices, draw(st.integers(0, 500)))


def whole(groups: list[Group]) -> dict[str, int]:
    return {g.name: g.size for g in groups}
