"""One law test for each rule of the aten dialect: prune = mask, on a program around the op."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import aten_cases
import numpy as np
import pytest
import torch
from aten_cases import CASES
from handmade import SIZES, Builder, Built

from prunec.backends.interpreter import Program, execute
from prunec.backends.masked import execute_masked
from prunec.ir.axes import Selection
from prunec.ir.dialects.aten import ATEN, RULES, SIGNATURES
from prunec.ir.graph import Graph
from prunec.ir.sizes import dim_size
from prunec.ir.verify import verify
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling, Group
from prunec.passes.rewrite import Rewritten, rewrite

TOLERANCE = 1e-5
"""Relative, float32: masked and sliced sums add the same terms in another order."""

REGISTERED = sorted({*SIGNATURES, *RULES})
EVERY = CASES | aten_cases.SIZES


def base(name: str) -> str:
    """Overloads share a rule unless they have one of their own."""
    return name if name.count(".") == 1 else name.rsplit(".", 1)[0]


@cache
def built(name: str) -> Built:
    b = Builder()
    found = EVERY[base(name) if name not in EVERY else name].build(b)
    return b.finish(*(found if isinstance(found, tuple) else (found,)))


@cache
def coupled(name: str) -> Coupling:
    return couple(built(name).graph, ATEN)


def test_every_rule_has_a_case() -> None:
    assert sorted(set(map(base, REGISTERED)) ^ set(CASES)) == []


@pytest.mark.parametrize("name", REGISTERED)
def test_the_rule_covers_its_operation(name: str) -> None:
    """The case has the operation; its rule neither gives up nor gives another shape."""
    used = {op.name for op in built(name).graph.ops}
    assert name in used | {n.rsplit(".", 1)[0] for n in used}
    found = coupled(name)
    assert found.without_rule == {}
    reasons = {pin.reason for pin in found.pinned}
    assert [r for r in reasons if "does not cover" in r or "its rule [" in r] == []
    assert verify(found.graph) == []


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_groups_are_found(name: str) -> None:
    assert tuple(sorted(g.size for g in coupled(name).groups)) == EVERY[name].groups


@pytest.mark.parametrize("name", sorted(EVERY))
def test_pruning_is_masking(name: str) -> None:
    """Each group alone, all together, and all down to one index."""
    groups = coupled(name).groups
    rng = np.random.default_rng(0)
    for chosen in [*[(g,) for g in groups], groups]:
        check(name, {g.name: part(g, coupled(name), rng) for g in chosen})


@pytest.mark.parametrize("name", sorted(EVERY))
def test_one_index_is_enough(name: str) -> None:
    """A size of one looks like one that broadcasts; the program still means the same."""
    for group in coupled(name).groups:
        check(name, {group.name: Selection(np.array([group.size - 1]))})


def part(group: Group, coupling: Coupling, rng: np.random.Generator) -> Selection:
    """A random half of the indices; under a parent another half for each of its indices."""
    count = group.size // 2

    def some() -> np.ndarray:
        return np.sort(rng.permutation(group.size)[:count])

    if group.parent is None:
        return Selection(some())
    rows = coupling.by_name[group.parent].size
    return Selection(np.stack([some() for _ in range(rows)]), group.parent)


def check(name: str, selections: Mapping[str, Selection]) -> None:
    program, coupling = built(name), coupled(name)
    rewritten = rewrite(coupling, selections)
    assert verify(rewritten.graph) == []
    small = sliced(program.weights, rewritten)
    check_shapes(rewritten.graph, small, program.example)
    feeds = [program.example, program.inputs(2, 3)]
    found = execute(rewritten.graph, small, feeds)
    masked = execute_masked(coupling, selections, rewritten, program.weights, feeds)
    for one, other in zip(found, masked, strict=True):
        for key, wanted in other.items():
            scale = float(wanted.abs().max()) or 1.0
            assert float((one[key] - wanted).abs().max()) <= TOLERANCE * scale


def sliced(weights: Mapping[str, np.ndarray], rewritten: Rewritten) -> dict[str, np.ndarray]:
    found = dict(weights)
    for name, dims in rewritten.kept.items():
        for dim, keep in dims.items():
            found[name] = np.take(found[name], keep, dim)
    return found


@torch.no_grad()
def check_shapes(
    graph: Graph, weights: Mapping[str, np.ndarray], feeds: Mapping[str, torch.Tensor]
) -> None:
    """Every value has the shape that its type says."""
    program = Program(graph, weights)
    env = program.start(feeds)
    for op, step in zip(graph.ops, program.steps, strict=True):
        for result, type_, value in zip(
            op.results, op.types, step(program.operands(op, env)), strict=True
        ):
            env[result] = value
            if type_.dtype != "index":
                assert list(value.shape) == [dim_size(d, SIZES) for d in type_.shape], op.name


@pytest.mark.parametrize("name", sorted(EVERY))
def test_keeping_everything_changes_nothing(name: str) -> None:
    program = built(name)
    everything = {g.name: Selection(np.arange(g.size)) for g in coupled(name).groups}
    assert rewrite(coupled(name), everything).graph is coupled(name).graph
    (found,) = execute(coupled(name).graph, program.weights, [program.example])
    for key, value in program.values.items():
        torch.testing.assert_close(found[key], value)
