"""Plans: from selections to kept indices of parameters, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from handmade import Builder, Built
from hypothesis import given
from hypothesis import strategies as st

from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Exit, PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Ref
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.rewrite import kept_indices, rewrite
from prunec.planning.planfile import read_plan, write_plan
from prunec.planning.plans import plan_document, selections_of

KV, SHARED, DIM = 3, 4, 2
PATH = Path("plan.json")


@cache
def program() -> Built:
    """An attention layer with shared key heads, and a gated layer behind it."""
    b = Builder()
    x = b.input("batch", "time", 6)

    def heads(count: int) -> Ref:
        y = b.linear(x, count * DIM)
        y = b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), count, DIM))
        return b.call("aten.transpose.int", y, 1, 2)

    q, k, v = heads(KV * SHARED), heads(KV), heads(KV)
    name = "aten.scaled_dot_product_attention.default"
    y = b.call(name, q, k, v, scale=0.5, enable_gqa=True)
    y = b.call("aten.transpose.int", y, 1, 2)
    y = b.call("aten.reshape.default", y, (b.size(y, 0), b.size(y, 1), -1))
    y = b.linear(y, 8)
    gate, up = b.calls("aten.chunk.default", b.linear(y, 18), 2, 2)
    return b.finish(b.down(b.call("aten.mul.Tensor", gate, up)))


@cache
def coupled() -> Coupling:
    return couple(program().graph, ATEN)


def document(selections: Mapping[str, Selection]) -> dict[str, Any]:
    """What a run with these selections writes, through JSON."""
    pruned = SimpleNamespace(
        loaded=SimpleNamespace(coupling=coupled(), removed=()),
        rewritten=rewrite(coupled(), selections),
        compressed=SimpleNamespace(selections=selections),
    )
    found: dict[str, Any] = json.loads(json.dumps(plan_document(cast(Any, pruned))))
    return found


@st.composite
def chosen(draw: st.DrawFn) -> dict[str, Selection]:
    """Proper parts of some groups, ragged where there is a parent."""
    found = {}
    for group in coupled().groups:
        if not draw(st.booleans()):
            continue
        count = draw(st.integers(1, group.size - 1))
        orders = st.permutations(range(group.size))

        def some(orders: Any = orders, count: int = count) -> list[int]:
            return sorted(draw(orders)[:count])

        if group.parent is None or draw(st.booleans()):
            found[group.name] = Selection(np.array(some()))
            continue
        rows = coupled().by_name[group.parent].size
        found[group.name] = Selection(np.array([some() for _ in range(rows)]), group.parent)
    return found


def test_the_program_has_what_is_to_be_tested() -> None:
    found = {g.role: (g.size, g.parent is not None) for g in coupled().groups}
    assert found["kv_head"] == (KV, False)
    assert found["query_head"] == (SHARED, True)


@given(chosen())
def test_round_trip(selections: dict[str, Selection]) -> None:
    """What is read back keeps the same indices of every parameter."""
    plan = document(selections)
    found = selections_of(coupled(), plan, PATH)
    assert {n: s.count for n, s in found.items()} == {n: s.count for n, s in selections.items()}
    wanted, given_ = kept_indices(coupled(), selections), kept_indices(coupled(), found)
    assert wanted.keys() == given_.keys()
    for name, dims in wanted.items():
        assert dims.keys() == given_[name].keys()
        for dim, indices in dims.items():
            np.testing.assert_array_equal(given_[name][dim], indices)


def test_the_document_says_what_is_kept_and_why_the_rest_stays() -> None:
    kv = next(g for g in coupled().groups if g.role == "kv_head")
    plan = document({kv.name: Selection(np.array([0, 2]))})
    rows = [0, 1, 4, 5]  # two rows a head
    assert plan["parameters"]["w2"] == {"0": rows}  # keys
    assert plan["parameters"]["w4"] == {"0": rows}  # values
    queries = [h * SHARED * DIM + i for h in (0, 2) for i in range(SHARED * DIM)]
    assert plan["parameters"]["w0"] == {"0": queries}
    assert plan["parameters"]["w6"] == {"1": queries}  # the output reads the query heads
    assert plan["shapes"]["w6"] == [8, KV * SHARED * DIM]
    assert {g["name"]: (g["size"], g["kept"]) for g in plan["groups"]}[kv.name] == (KV, 2)
    reasons = {pin["reason"] for pin in plan["pinned"]}
    assert reasons == {"graph input", "graph output `y0`"}


def test_a_ragged_plan_is_read_as_ragged() -> None:
    group = next(g for g in coupled().groups if g.role == "query_head")
    keep = np.array([[0, 1], [2, 3], [0, 3]])
    found = selections_of(coupled(), document({group.name: Selection(keep, group.parent)}), PATH)
    np.testing.assert_array_equal(found[group.name].keep, keep)
    assert found[group.name].parent == group.parent


def neurons() -> dict[str, Any]:
    group = next(g for g in coupled().groups if g.size == 9)
    return document({group.name: Selection(np.array([0, 1, 4]))})["parameters"]


def test_the_halves_of_a_chunk_leave_together() -> None:
    """The sum of two equal axes: index i of one half goes with index i of the other."""
    (name,) = [n for n, dims in neurons().items() if dims.get("0") == [0, 1, 4, 9, 10, 13]][:1]
    assert coupled().graph.parameters[name].type.shape[0] == 18


@pytest.mark.parametrize("damage", ["lacking", "other", "pinned", "half"])
def test_an_inconsistent_plan_is_refused(damage: str) -> None:
    parameters = neurons()
    fused = next(n for n, dims in parameters.items() if len(dims.get("0", [])) == 6)
    match damage:
        case "lacking":
            del parameters[fused]
        case "other":
            parameters[fused] = {"0": [0, 1, 5, 9, 10, 14]}
        case "pinned":
            parameters["w0"] = {"1": [0, 1]}
        case "half":
            parameters[fused] = {"0": [0, 1, 4, 9, 10, 11]}
    with pytest.raises(PrunecError, match="P835") as caught:
        selections_of(coupled(), {"parameters": parameters}, PATH)
    assert caught.value.exit_code is Exit.USAGE


def test_a_ragged_plan_must_keep_equal_counts() -> None:
    """Two query heads under one key head and three under another are no tensor."""
    group = next(g for g in coupled().groups if g.role == "query_head")
    keep = Selection(np.array([[0, 1], [2, 3], [0, 3]]), group.parent)
    plan = document({group.name: keep})
    third = [(2 * SHARED + 2) * DIM + i for i in range(DIM)]  # of the last key head
    for name, dim in (("w0", "0"), ("w1", "0"), ("w6", "1")):
        dims = plan["parameters"][name]
        dims[dim] = sorted([*dims[dim], *third])
    with pytest.raises(PrunecError, match=r"P8\d\d") as caught:
        selections_of(coupled(), plan, PATH)
    assert caught.value.exit_code is Exit.USAGE


def test_a_plan_must_keep_something_of_each_group() -> None:
    """One part of a sum, and nothing of the other."""
    b = Builder()
    joined = b.call("aten.cat.default", (b.rows(4), b.rows(8)), 1)
    coupling = couple(b.finish(b.down(joined)).graph, ATEN)
    (mixed,) = [n for n, p in coupling.graph.parameters.items() if p.type.shape == (3, 12)]
    plan = {"parameters": {mixed: {"1": [0, 1, 2, 3]}}}
    with pytest.raises(PrunecError, match="P835"):
        selections_of(coupling, plan, PATH)


def test_through_a_file(tmp_path: Path) -> None:
    group = next(g for g in coupled().groups if g.size == 9)
    plan = document({group.name: Selection(np.array([2, 3]))})
    write_plan(plan, tmp_path / "plan.json")
    shapes = {
        name: tuple(int(n) for n in p.type.shape) for name, p in coupled().graph.parameters.items()
    }
    found = read_plan(tmp_path / "plan.json", shapes)
    assert found["parameters"] == plan["parameters"]
    assert selections_of(coupled(), found, PATH)[group.name].keep.tolist() == [2, 3]
