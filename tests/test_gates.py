"""Trained gates: the hard concrete distribution, the budget, and what the command makes of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from counting import LENGTH, counter, refused, run
from torch import nn

from prunec.passes.lowrank import names_of, plain
from prunec.recovery.budget import PENALTY, Budget
from prunec.recovery.gates import OPEN, open_probability, sampled, settled
from prunec.recovery.pairs import Pair

DRAWS = 400_000
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""What Louizos, Welling and Kingma use."""


def density_below(x: float, log_alpha: float) -> float:
    """The binary concrete distribution: how likely a draw is at most x in (0, 1), equation 23."""
    return float(1 / (1 + np.exp(-(BETA * (np.log(x) - np.log1p(-x)) - log_alpha))))


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, OPEN])
def test_draws_follow_the_closed_distribution(log_alpha: float) -> None:
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sampled(torch.full((DRAWS,), log_alpha, dtype=torch.float64), uniform)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    closed = density_below(-GAMMA / (ZETA - GAMMA), log_alpha)
    bounds = {value: (value - GAMMA) / (ZETA - GAMMA) for value in (0.2, 0.5, 0.9)}
    within = 5 * 0.5 / DRAWS**0.5  # five standard deviations of a share, at most
    assert float((drawn == 0).double().mean()) == pytest.approx(closed, abs=within)
    for value, at in bounds.items():
        below = float((drawn <= value).double().mean())
        assert below == pytest.approx(density_below(at, log_alpha), abs=within)
    whole = 1 - density_below((1 - GAMMA) / (ZETA - GAMMA), log_alpha)
    assert float((drawn == 1).double().mean()) == pytest.approx(whole, abs=within)
    probability = open_probability(torch.tensor(log_alpha, dtype=torch.float64))
    assert float(probability) == pytest.approx(1 - closed, abs=1e-12)


def test_a_draw_is_the_papers_formula() -> None:
    u, log_alpha = np.array([0.01, 0.3, 0.5, 0.99]), np.array([0.4, -1.0, 0.2, 0.0])
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + log_alpha) / BETA))
    wanted = np.minimum(1, np.maximum(0, s * (ZETA - GAMMA) + GAMMA))
    given = sampled(torch.tensor(log_alpha), torch.tensor(u)).numpy()
    np.testing.assert_allclose(given, wanted, atol=1e-12)
    assert 0 < wanted[2] < 1


def test_settled_gates() -> None:
    log_alpha = torch.tensor([-8.0, 0.0, OPEN, 8.0])
    np.testing.assert_allclose(settled(log_alpha), [0, 0.5, 1, 1], atol=1e-6)


def pair(ranks: int = 6, log_alpha: float = OPEN) -> Pair:
    torch.manual_seed(0)
    layer = nn.Linear(10, ranks)
    made = plain(layer.weight.detach().numpy())
    return Pair(layer, made.first, made.second, np.full(ranks, log_alpha))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(10, 6), (2, 3, 10)),
        (nn.Linear(6, 10, bias=False), (4, 6)),
        (nn.Conv2d(10, 6, 1, stride=2, padding=1), (2, 10, 5, 7)),
        (nn.Conv1d(6, 10, 1), (2, 6, 5)),
    ],
)
def test_open_gates_change_nothing(layer: nn.Linear, shape: tuple[int, ...]) -> None:
    weight = layer.weight.detach().numpy()
    made = plain(weight.reshape(weight.shape[:2]))
    taps = [1] * (weight.ndim - 2)
    first, second = (m.reshape(*m.shape, *taps) for m in (made.first, made.second))
    two = Pair(layer, first, second, np.full(len(first), OPEN)).eval()
    x = torch.randn(shape)
    torch.testing.assert_close(two(x), layer(x), atol=1e-5, rtol=1e-5)
    two.log_alpha.data[0] = -8  # type: ignore[union-attr]
    cut_first, cut_second = two.factors()
    assert not np.any(cut_first[0])
    weight = (cut_second.reshape(second.shape[:2]) @ cut_first.reshape(first.shape[:2])).reshape(
        weight.shape
    )
    wanted = two(x)
    layer.weight.data = torch.from_numpy(weight)
    torch.testing.assert_close(wanted, layer(x), atol=1e-5, rtol=1e-5)


def test_the_penalty_is_the_lagrangian() -> None:
    one, other = pair(6), pair(4)
    dense = 10 * 6 + 10 * 4
    budget = Budget((one, other), dense, 0.5, 10)
    each = 1 / (1 + np.exp(-(OPEN - BETA * np.log(0.1 / 1.1))))
    size = (6 * 16 * each + 4 * 14 * each) / dense
    assert float(budget.expected().detach()) == pytest.approx(size, rel=1e-6)
    budget.multipliers.data = torch.tensor([0.3, 2.0])
    for step in range(13):
        wanted = size + min(1, step / 10) * (0.5 - size)
        excess = size - wanted
        said = budget()
        assert float(said.detach()) == pytest.approx(0.3 * excess + 2 * excess**2, rel=1e-4)
    assert wanted == pytest.approx(0.5)
    said.backward()
    assert budget.multipliers.grad is not None
    np.testing.assert_allclose(budget.multipliers.grad, [excess, excess**2], rtol=1e-5)
    assert one.log_alpha is not None
    assert one.log_alpha.grad is not None
    assert (one.log_alpha.grad > 0).all(), "going down closes gates"
    assert PENALTY > 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gates")
    counter(root)
    return root


def asked(home: Path, *more: object) -> tuple[object, ...]:
    text = home / "count.txt"
    return (
        "factorize", home / "dense", "--target", "blocks=50%", "--calibration", text,
        "--calibration-length", LENGTH, *more,
    )  # fmt: skip


def test_gates_reach_the_target(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, report = run(
        *asked(home, "-o", out, "--ranks", "gates", "--steps", 160, "--verify", "--format",
               "onnx,torchscript"),
    )  # fmt: skip
    assert code == 0, report
    assert all(check["passed"] for check in report["checks"])
    training = report["notes"]["training"]
    assert training["expected"] == pytest.approx(training["target"], rel=0.02)
    own = sum(r["rank"] * (r["inputs"] + r["outputs"]) for r in report["layers"])
    dense = sum(r["outputs"] * r["inputs"] for r in report["layers"])
    assert own < dense
    kept = report["params"] - (report["dense"] - blocks(home))
    assert 0.48 * blocks(home) < kept <= 0.5 * blocks(home)
    stored = {
        i.name: tuple(i.dims) for i in onnx.load(out / "onnx" / "model.onnx").graph.initializer
    }
    for row in report["layers"]:
        first, second = names_of(row["weight"])
        assert stored[first] == (row["rank"], row["inputs"])
        assert stored[second] == (row["outputs"], row["rank"])
    assert training["factors"]["loss"][1] < training["factors"]["loss"][0]
    _, once = run(*asked(home, "--dry-run", "--ranks", "energy"))
    losses = [r["sources"][0]["pruned"] for r in (report, once)]
    assert losses[0] < losses[1], "training helps"


def blocks(home: Path) -> int:
    """Parameters without the embedding and the head."""
    from safetensors.torch import load_file

    stored = load_file(home / "dense" / "model.safetensors")
    return sum(t.numel() for n, t in stored.items() if "embed" not in n and "lm_head" not in n)


def test_factors_learn_without_gates(home: Path) -> None:
    _, once = run(*asked(home, "--dry-run"))
    _, taught = run(*asked(home, "--dry-run", "--steps", 30))
    assert [r["rank"] for r in taught["layers"]] == [r["rank"] for r in once["layers"]]
    assert taught["sources"][0]["pruned"] < once["sources"][0]["pruned"]
    assert {r["error"] for r in taught["layers"]} == {None}


def test_an_interrupted_training_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same factors, bit for bit, from the checkpoint at step 50 of the gates."""

    def given(out: str) -> tuple[object, ...]:
        return asked(home, "-o", tmp_path / out, "--ranks", "gates", "--steps", 80, "--resume")

    assert run(*given("whole"))[0] == 0
    counted = Budget.forward

    def stopped(self: Budget) -> torch.Tensor:
        if self.step >= 55:
            raise KeyboardInterrupt
        return counted(self)

    monkeypatch.setattr(Budget, "forward", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        run(*given("broken"))
    assert not (tmp_path / "broken").exists()
    steps: list[float] = []

    def watched(self: Budget) -> torch.Tensor:
        steps.append(float(self.step))
        return counted(self)

    monkeypatch.setattr(Budget, "forward", watched)
    code, report = run(*given("broken"))
    assert code == 0, report
    assert steps == list(range(50, 60)), "those that were missing"
    stored = [onnx.load(tmp_path / out / "onnx" / "model.onnx") for out in ("whole", "broken")]
    whole, broken = ({i.name: i for i in model.graph.initializer} for model in stored)
    assert whole.keys() == broken.keys()
    for name, tensor in whole.items():
        given_, wanted = (onnx.numpy_helper.to_array(t) for t in (broken[name], tensor))
        np.testing.assert_array_equal(given_, wanted, err_msg=name)


def test_mistakes(home: Path, tmp_path: Path) -> None:
    given = asked(home, "-o", tmp_path / "out")
    assert refused(*given, "--steps", 0)[:2] == (2, "P811")
    assert refused(*given, "--lr", "-1")[:2] == (2, "P811")
    assert refused(*given, "--ranks", "doors")[:2] == (2, "P810")
    untaught = (*given, "--method", "svd", "--ranks", "gates", "--calibration", "none")
    code, said, message = refused(*untaught)
    assert (code, said) == (2, "P814")
    assert "it is to learn" in message
    assert not (tmp_path / "out").exists()
