"""The laws of the rewrite, on random programs: prune = mask, identity, two steps = one, types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from graphs import random_graphs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from programs import Program

from prunec.backends.interpreter import execute
from prunec.backends.masked import execute_masked
from prunec.ir.axes import Selection
from prunec.ir.dialects.aten import ATEN
from prunec.ir.verify import verify
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling, Group
from prunec.passes.rewrite import Rewritten, rewrite

QUICK = settings(max_examples=16, phases=(Phase.explicit, Phase.reuse, Phase.generate))
"""Each program is traced by torch.export, which takes most of a second: few examples, and no
shrinking, since a failing program is small already."""

TOLERANCE = 1e-5
"""Relative, float32: masked and sliced sums add the same terms in another order."""


def arrays(program: Program) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in program.parameters.items()}


def sliced(weights: Mapping[str, np.ndarray], rewritten: Rewritten) -> dict[str, np.ndarray]:
    found = dict(weights)
    for name, dims in rewritten.kept.items():
        for dim, keep in dims.items():
            found[name] = np.take(found[name], keep, dim)
    return found


def draw_selection(data: st.DataObject, coupling: Coupling, group: Group) -> Selection:
    """A random proper part of the group's indices, ragged under its parent now and then."""
    count = data.draw(st.integers(1, group.size - 1), label=f"kept of {group.name}")

    def some() -> list[int]:
        return sorted(data.draw(st.permutations(range(group.size)))[:count])

    if group.parent is None or not data.draw(st.booleans(), label="ragged"):
        return Selection(np.array(some()))
    rows = coupling.by_name[group.parent].size
    return Selection(np.array([some() for _ in range(rows)]), group.parent)


def draw_selections(data: st.DataObject, coupling: Coupling) -> dict[str, Selection]:
    groups = [g for g in coupling.groups if g.size > 1]
    if not groups:
        return {}
    names = data.draw(
        st.lists(st.sampled_from([g.name for g in groups]), unique=True, min_size=1, max_size=4)
    )
    return {name: draw_selection(data, coupling, coupling.by_name[name]) for name in names}


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    worst = 0.0
    for name, value in wanted.items():
        assert found[name].shape == value.shape
        scale = float(value.abs().max()) or 1.0
        worst = max(worst, float((found[name] - value).abs().max()) / scale)
    return worst


@QUICK
@given(random_graphs(), st.data())
def test_pruning_is_masking(program: Program, data: st.DataObject) -> None:
    coupling = couple(program.graph, ATEN)
    selections = draw_selections(data, coupling)
    rewritten = rewrite(coupling, selections)
    weights = arrays(program)
    feeds = [program.inputs(2, 5), program.inputs(3, 7)]
    found = list(execute(rewritten.graph, sliced(weights, rewritten), feeds))
    masked = list(execute_masked(coupling, selections, rewritten, weights, feeds))
    for one, other in zip(found, masked, strict=True):
        assert difference(one, other) <= TOLERANCE


@QUICK
@given(random_graphs())
def test_keeping_everything_is_the_identity(program: Program) -> None:
    coupling = couple(program.graph, ATEN)
    everything = {g.name: Selection(np.arange(g.size)) for g in coupling.groups}
    assert rewrite(coupling, everything).graph is coupling.graph
    assert rewrite(coupling, {}).graph is coupling.graph


@QUICK
@given(random_graphs(), st.data())
def test_two_steps_equal_one(program: Program, data: st.DataObject) -> None:
    """Dropping a, then b from what is left, gives the program and weights of dropping both."""
    coupling = couple(program.graph, ATEN)
    groups = [g for g in coupling.groups if g.size > 2 and g.parent is None]
    if not groups:
        return
    group = data.draw(st.sampled_from(groups))
    first = np.arange(group.size - 1)
    second = np.arange(group.size - 2)
    weights = arrays(program)
    once = rewrite(coupling, {group.name: Selection(second)})
    step = rewrite(coupling, {group.name: Selection(first)})
    stepped = rewrite(couple(untyped(step.graph), ATEN), _renamed(step, group, second))
    assert [op.args for op in once.graph.ops] == [op.args for op in stepped.graph.ops]
    both = sliced(sliced(weights, step), stepped)
    for name, value in sliced(weights, once).items():
        np.testing.assert_array_equal(both[name], value)


def untyped(graph: Any) -> Any:
    """The graph as a frontend would give it: without axes."""
    from dataclasses import replace

    def bare(type_: Any) -> Any:
        return replace(type_, axes=())

    return replace(
        graph,
        inputs=tuple(replace(v, type=bare(v.type)) for v in graph.inputs),
        parameters={n: replace(p, type=bare(p.type)) for n, p in graph.parameters.items()},
        ops=tuple(replace(op, types=tuple(map(bare, op.types))) for op in graph.ops),
    )


def _renamed(step: Rewritten, group: Group, keep: np.ndarray) -> dict[str, Selection]:
    """Inference finds the same group again in the smaller program, at the same places. Two factors
    of one dimension have the same places, and may now be of one size: then the name tells."""
    again = couple(untyped(step.graph), ATEN)
    found = [g for g in again.groups if g.places == group.places and g.size == group.size - 1]
    if len(found) > 1:
        found = [g for g in found if g.name == group.name]
    assert len(found) == 1, f"{group.name} is not found again"
    return {found[0].name: Selection(keep)}


@QUICK
@given(random_graphs(), st.data())
def test_types_hold_after_rewriting(program: Program, data: st.DataObject) -> None:
    """The rewritten graph is well formed, and running it gives the shapes that its types say."""
    coupling = couple(program.graph, ATEN)
    rewritten = rewrite(coupling, draw_selections(data, coupling))
    assert verify(rewritten.graph) == []
    typed = {p.name: p.type.shape for p in rewritten.graph.parameters.values()}
    for name, value in sliced(arrays(program), rewritten).items():
        if name in typed:
            assert value.shape == typed[name]


@QUICK
@given(random_graphs())
def test_every_dimension_is_in_a_group_or_pinned(program: Program) -> None:
    """No silence: each dimension of each parameter with more than one index is accounted for."""
    coupling = couple(program.graph, ATEN)
    known = {
        (place.parameter, place.dim)
        for item in (*coupling.groups, *coupling.pinned)
        for place in item.places
    }
    for parameter in coupling.graph.parameters.values():
        for dim, size in enumerate(parameter.type.shape):
            assert size == 1 or (parameter.name, dim) in known
