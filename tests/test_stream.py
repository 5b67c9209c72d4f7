"""The calibration stream, against a forward pass written out in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from handmade import Builder, Built

from prunec.backends.torch_stream import BUDGET, TorchStream
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.passes.compress import Compressed, compress, sites
from prunec.passes.couple import couple
from prunec.passes.coupling import Consumer, Coupling
from prunec.passes.criteria import Magnitude, Wanda
from prunec.passes.profile import Seen
from prunec.passes.restore import LeastSquares
from prunec.passes.rewrite import rewrite

GRAM = frozenset({"gram"})
TOLERANCE = 1e-5
"""Relative, float32: torch and NumPy add in another order."""


@cache
def program() -> Built:
    """6 to 12 (w0, w1), to 8 (w2, w3), to 3 (w4, w5), rectified in between."""
    b = Builder()
    y = b.call("aten.relu.default", b.up(12))
    y = b.call("aten.relu.default", b.linear(y, 8))
    return b.finish(b.down(y))


@cache
def coupled() -> Coupling:
    return couple(program().graph, ATEN)


def batches() -> list[dict[str, np.ndarray]]:
    """Three batches of unlike sizes."""
    sizes = ((2, 5), (3, 4), (1, 7))
    return [
        {name: np.asarray(value) for name, value in program().inputs(*size).items()}
        for size in sizes
    ]


def consumers() -> list[Consumer]:
    """Of the 12 and of the 8, in the order of the program."""
    found = [site.consumers for site in sites(coupled(), coupled().groups)]
    return [consumer for several in found for consumer in several]


def forward(weights: Mapping[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the two consumers read, as rows."""
    rows = x.reshape(-1, 6)
    first = np.maximum(rows @ weights["w0"].T + weights["w1"], 0)
    return first, np.maximum(first @ weights["w2"].T + weights["w3"], 0)


def inputs(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    parts = [forward(weights, batch["x0"]) for batch in batches()]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def check(seen: Seen, x: np.ndarray) -> None:
    assert seen.held is None
    found = seen.fit.moments
    x = x.astype(np.float64)
    assert found.tokens == len(x) == 2 * 5 + 3 * 4 + 7
    np.testing.assert_allclose(found.sums, x.sum(0), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(found.squares, (x**2).sum(0), rtol=TOLERANCE, atol=TOLERANCE)
    if found.gram is not None:
        np.testing.assert_allclose(found.gram, x.T @ x, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("budget", [BUDGET, 0, 1000])
def test_moments_are_those_of_a_forward_pass(budget: int) -> None:
    """One stop after the other; with all, none and some of the values kept in memory."""
    first, second = consumers()
    wanted = inputs(program().weights)
    with TorchStream(program().graph, program().weights, batches(), budget) as stream:
        (found,) = stream.observe([first], GRAM)
        check(found, wanted[0])
        assert found.fit.moments.gram is not None
        (found,) = stream.observe([second])
        check(found, wanted[1])
        assert found.fit.moments.gram is None


def test_several_consumers_at_one_stop() -> None:
    """The stream looks ahead for the later ones, and stands at the first."""
    first, second = consumers()
    wanted = inputs(program().weights)
    with TorchStream(program().graph, program().weights, batches()) as stream:
        for _ in range(2):
            ahead, here = stream.observe([second, first], GRAM)
            check(ahead, wanted[1])
            check(here, wanted[0])


def test_what_is_replaced_counts_from_there_on() -> None:
    """Zeroed columns of the first consumer: the second sees what the smaller program gives it."""
    first, second = consumers()
    kept = np.array([0, 3, 4, 7, 11])
    zeroed = np.zeros_like(program().weights["w2"])
    zeroed[:, kept] = program().weights["w2"][:, kept]
    smaller = {
        **program().weights,
        "w0": program().weights["w0"][kept],
        "w1": program().weights["w1"][kept],
        "w2": program().weights["w2"][:, kept],
    }
    with TorchStream(program().graph, program().weights, batches()) as stream:
        stream.observe([first])
        stream.replace({"w2": zeroed})
        (found,) = stream.observe([second], GRAM)
    check(found, inputs(smaller)[1])


def test_targets_are_the_outputs_of_the_dense_program() -> None:
    """The second layer sees drifted inputs, and is told what it gave before."""
    first, second = consumers()
    weights = program().weights
    changed = weights | {"w2": weights["w2"] * 0.5}
    with TorchStream(program().graph, weights, batches(), dense=program().graph) as stream:
        stream.observe([first])
        stream.replace({"w2": changed["w2"]})
        (found,) = stream.observe([second], frozenset({"gram", "targets"}))
    x, dense = inputs(changed)[1], inputs(weights)[1]
    y = dense @ weights["w4"].T + weights["w5"]
    check(found, x)
    targets = found.fit.targets
    assert targets is not None
    np.testing.assert_allclose(targets.cross, y.T @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(targets.sums, y.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(targets.squares, (y**2).sum(), rtol=1e-4)


def test_targets_hold_what_the_residual_stream_lacks() -> None:
    """x + up(relu(down(x))) twice: the second block is told to make up for the first one's error.

    With its inputs' targets met exactly, the sum of both streams would be the dense one again.
    """
    b = Builder()
    x = b.input("batch", "time", 6)
    for _ in range(2):
        x = b.call("aten.add.Tensor", x, b.linear(b.call("aten.relu.default", b.linear(x, 9)), 6))
    built = b.finish(x)
    weights, coupling = built.weights, couple(built.graph, ATEN)
    first, second = (s.consumers[0] for s in sites(coupling, coupling.groups))
    lost = weights | {"w2": weights["w2"] * 0.0}
    rows = np.asarray(built.inputs(2, 5)["x0"]).reshape(-1, 6)

    def block(w: Mapping[str, np.ndarray], x: np.ndarray, i: int) -> np.ndarray:
        inner = np.maximum(x @ w[f"w{i}"].T + w[f"w{i + 1}"], 0)
        return x + inner @ w[f"w{i + 2}"].T + w[f"w{i + 3}"]

    dense, drifted = block(weights, rows, 0), block(lost, rows, 0)
    wanted = block(weights, dense, 4) - drifted
    batch = {name: np.asarray(v) for name, v in built.inputs(2, 5).items()}
    with TorchStream(built.graph, weights, [batch], dense=built.graph) as stream:
        stream.observe([first])
        stream.replace({"w2": lost["w2"]})
        (found,) = stream.observe([second], frozenset({"targets"}))
    assert found.fit.targets is not None
    np.testing.assert_allclose(found.fit.targets.sums, wanted.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.fit.targets.squares, (wanted**2).sum(), rtol=1e-4)


def test_every_fifth_batch_is_held_apart() -> None:
    first, _ = consumers()
    several = batches() * 2
    with TorchStream(program().graph, program().weights, several) as stream:
        (found,) = stream.observe([first], frozenset({"held"}))
    assert found.held is not None
    assert found.held.moments.tokens == 3 * 4  # the second of the second round
    assert found.whole.moments.tokens == 2 * (2 * 5 + 3 * 4 + 7)


def run(restorer: LeastSquares | None, budget: int = BUDGET) -> Compressed:
    counts = {g.name: g.size // 2 for g in coupled().groups}
    weights = program().weights
    with TorchStream(program().graph, weights, batches(), budget) as stream:
        return compress(coupled(), coupled().groups, counts, Wanda(), weights, stream, restorer)


@pytest.mark.parametrize("restorer", [None, LeastSquares()])
def test_each_site_is_judged_on_the_pruned_stream(restorer: LeastSquares | None) -> None:
    """Scores of the second site are Wanda's on the inputs of the really smaller program."""
    found = run(restorer)
    weights = {**program().weights, **found.weights}
    kept = rewrite(coupled(), found.selections).kept
    smaller = dict(weights)
    for name, dims in kept.items():
        for dim, indices in dims.items():
            smaller[name] = smaller[name].take(indices, dim)
    whole_second = {
        **smaller,
        **{name: weights[name].take(kept["w2"][1], 1) for name in ("w2",)},
        "w3": weights["w3"],
    }
    seen = inputs(whole_second)[1].astype(np.float64)
    scores = np.abs(program().weights["w4"]).sum(0) * np.linalg.norm(seen, axis=0)
    group = next(g for g in coupled().groups if g.size == 8)
    wanted = np.sort(np.argsort(-scores, kind="stable")[:4])
    np.testing.assert_array_equal(found.selections[group.name].keep, wanted)


def test_restored_layers_do_better_on_what_they_saw() -> None:
    """The output of the second layer, before it is pruned itself, comes nearer to the dense one."""
    dense = inputs(program().weights)[0] @ program().weights["w2"].T + program().weights["w3"]
    errors = {}
    for name, restorer in (("plain", None), ("restored", LeastSquares())):
        found = run(restorer)
        weights = {**program().weights, **found.weights}
        # full width, zero where pruned: the first layer's neurons are whole in this pass
        given = inputs(program().weights)[0] @ weights["w2"].T + weights["w3"]
        errors[name] = float(((given - dense) ** 2).sum())
    assert errors["restored"] < errors["plain"]


def test_spilled_and_unspilled_give_the_same() -> None:
    kept, spilled = run(LeastSquares()), run(LeastSquares(), budget=0)
    for name, selection in kept.selections.items():
        np.testing.assert_array_equal(selection.keep, spilled.selections[name].keep)
    assert kept.weights.keys() == spilled.weights.keys()
    for name, weight in kept.weights.items():  # sums of each sequence, not of each batch
        np.testing.assert_allclose(weight, spilled.weights[name], rtol=TOLERANCE, atol=TOLERANCE)


def test_spilled_values_are_deleted() -> None:
    with TorchStream(program().graph, program().weights, batches(), 0) as stream:
        stream.observe(consumers()[:1])
        assert stream.store.folder is not None
        folder = Path(stream.store.folder.name)
        assert any(folder.iterdir())
    assert not folder.exists()


def test_overflow_is_told() -> None:
    first, _ = consumers()
    weights = {**program().weights, "w0": np.full((12, 6), 3e38, np.float32)}
    with (
        TorchStream(program().graph, weights, batches()) as stream,
        pytest.raises(PrunecError, match="P310"),
    ):
        stream.observe([first])


def test_selections_already_made_are_followed() -> None:
    chosen = {g.name: Selection(np.arange(1, g.size, 2)) for g in coupled().groups}
    weights = program().weights
    with TorchStream(program().graph, weights, batches()) as stream:
        found = compress(
            coupled(), coupled().groups, {}, Magnitude(), weights, stream, LeastSquares(),
            chosen=chosen,
        )  # fmt: skip
    assert found.selections == chosen
    assert (found.weights["w2"][:, ::2] == 0).all()
    assert (found.weights["w4"][:, ::2] == 0).all()


def test_sites_come_in_the_order_of_the_program() -> None:
    found = [[g.size for g in site.groups] for site in sites(coupled(), coupled().groups[::-1])]
    assert found == [[12], [8]]
