"""What is alive while a piece runs fits the budget, and pieces give what the batch gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from handmade import Builder, Built

from prunec.backends import torch_tables
from prunec.backends.interpreter import Program, without_parameters
from prunec.backends.objective import Objective
from prunec.backends.pieces import alive, pieces
from prunec.backends.torch_feeling import loss_per_error
from prunec.backends.torch_spill import nbytes
from prunec.frontends.weights import ArrayStore

VOCABULARY = 50
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
"""Sums of float32 in another order."""


class InParts(ArrayStore):
    """Tensors of which rows can be had."""

    asked = 0

    def parted(self, name: str) -> bool:
        return name in self

    def rows(self, name: str, where: Any) -> Any:
        self.asked += 1
        return super().rows(name, where)


def writer() -> Built:
    """Embeds tokens, squeezes them through a wide layer, and gives logits."""
    b = Builder()
    y = b.call("aten.embedding.default", b.weight(VOCABULARY, 12), b.tokens(VOCABULARY))
    y = b.call("aten.tanh.default", b.linear(y, 300))
    return b.finish(b.linear(b.linear(y, 12), VOCABULARY))


def tokens(rows: int, length: int = 9) -> dict[str, np.ndarray]:
    return {"x0": np.random.default_rng(0).integers(0, VOCABULARY, (rows, length))}


def most_alive(program: Program, inputs: dict[str, Any]) -> int:
    """The largest sum of values between two operations, outputs apart."""
    env, found = program.start(inputs), 0
    outputs = {value for _, value in program.graph.outputs}
    for i in range(len(program.graph.ops)):
        program.advance(env, i, i + 1)
        held = {n: v for n, v in without_parameters(env).items() if n not in outputs}
        found = max(found, nbytes(held))
    return found


@pytest.mark.parametrize("windows", [1, 2, 3, 7])
def test_the_budget_holds(windows: int) -> None:
    built = writer()
    budget = windows * alive(built.graph, tokens(1)) + 100
    found = pieces(built.graph, tokens(7), budget)
    program = Program(built.graph, built.weights)
    assert max(len(piece["x0"]) for piece in found) <= windows
    assert all(most_alive(program, piece) <= budget for piece in found)
    np.testing.assert_array_equal(np.concatenate([p["x0"] for p in found]), tokens(7)["x0"])


def test_one_sequence_is_the_least() -> None:
    assert [len(p["x0"]) for p in pieces(writer().graph, tokens(3), 0)] == [1, 1, 1]


def test_what_cannot_be_cut_stays_whole() -> None:
    b = Builder()
    built = b.finish(b.linear(b.input(4, 6), 3))
    batch = {name: np.asarray(v) for name, v in built.inputs(2, 3).items()}
    (found,) = pieces(built.graph, batch, 0)
    assert found["x0"].shape == (4, 6)


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table is large, and opened seven rows at a time."""
    monkeypatch.setattr(torch_tables, "LARGE", 1)
    monkeypatch.setattr(torch_tables, "PART", 7 * 4 * 12)


@pytest.mark.usefixtures("small_tables")
def test_tables_in_parts_give_the_same() -> None:
    built = writer()
    store = InParts(built.weights)
    whole, parts = Program(built.graph, built.weights), Program(built.graph, store)
    assert (len(whole.tables), len(parts.tables)) == (0, 2)
    (wanted,), (found,) = (p.run(tokens(2)).values() for p in (whole, parts))
    np.testing.assert_allclose(found, wanted, **ROUNDING)
    assert store.asked == 1 + -(-VOCABULARY // 7)


@pytest.mark.usefixtures("small_tables")
def test_a_token_that_is_none_is_refused() -> None:
    built = writer()
    for wrong in (-1, VOCABULARY):
        with pytest.raises(IndexError, match="out of range"):
            Program(built.graph, InParts(built.weights)).run({"x0": np.array([[0, wrong]])})


@pytest.mark.usefixtures("small_tables")
def test_gradients_without_logits() -> None:
    """Those at the states before the product, from some tokens at a time, against autograd."""
    built = writer()
    results = [op.result for op in built.graph.ops if "linear" in op.name][:2]
    store = InParts(built.weights)
    wanted = loss_per_error(built.graph, built.weights, [tokens(3)], results)
    found = loss_per_error(built.graph, store, [tokens(3)], results)
    assert found == pytest.approx(wanted, rel=1e-5)
    program = Program(built.graph, store)
    inputs = {"x0": torch.from_numpy(tokens(1)["x0"])}
    assert Objective(program, inputs).causal
