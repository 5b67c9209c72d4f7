"""How the loss feels an error in a layer's output, against differences of the loss itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import Builder
from torch.nn import functional as nnf

from prunec.backends import torch_backward
from prunec.backends.objective import shortened
from prunec.backends.torch_feeling import loss_per_error, loss_per_square


@pytest.mark.parametrize("stretch", [torch_backward.STRETCH, 1])
def test_mean_square_of_the_gradient(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """x -> relu(a x) b: half the mean squared norm of the outputs is the loss, known in closed
    form."""
    monkeypatch.setattr(torch_backward, "STRETCH", stretch)
    b = Builder()
    inner = b.linear(b.input("batch", "time", 6), 9)
    outer = b.linear(b.call("aten.relu.default", inner), 4)
    built = b.finish(outer)
    batch = {name: np.asarray(v) for name, v in built.inputs(3, 5).items()}
    shares: list[float] = []
    found = loss_per_error(
        built.graph, built.weights, [batch], [inner.name, outer.name], told=shares.append
    )
    assert 0.7 < sum(shares) < 1.001, "nearly all is told: the last forward pass is none"
    assert max(shares) < 0.3
    w = {name: torch.from_numpy(np.asarray(v)).double() for name, v in built.weights.items()}
    at_inner, at_outer = [], []
    for row in torch.from_numpy(batch["x0"]).double():
        z = row @ w["w0"].T + w["w1"]
        y = z.clamp(min=0) @ w["w2"].T + w["w3"]
        gradient = y / y.numel()  # of the mean over entries of y^2 / 2
        at_outer.append(gradient**2)
        at_inner.append(((gradient @ w["w2"]) * (z > 0)) ** 2)
    np.testing.assert_allclose(found[outer.name], torch.stack(at_outer).mean() / 2, rtol=1e-5)
    np.testing.assert_allclose(found[inner.name], torch.stack(at_inner).mean() / 2, rtol=1e-5)


@pytest.mark.parametrize("rows", [8, 64])
def test_errors_cost_what_is_said(rows: int) -> None:
    """Noise in a layer of a language model moves its distributions as far as expected, whatever
    the number of tokens. It is nearly uniform, as its tokens are, so that both losses agree."""
    b = Builder()
    tokens = b.tokens(23)
    hidden = b.linear(b.call("aten.embedding.default", b.weight(23, 12), tokens), 16)
    built = b.finish(b.linear(b.call("aten.tanh.default", hidden), 23))
    rng = np.random.default_rng(0)
    batch = {"x0": rng.integers(0, 23, (rows, 50))}
    weights = {name: 0.3 * np.asarray(value) for name, value in built.weights.items()}
    felt = loss_per_square(built.graph, weights, [batch], [batch], [hidden.name])[hidden.name]

    table, inner, bias, outer, shift = (torch.from_numpy(w) for w in weights.values())
    value = nnf.linear(table[batch["x0"]], inner, bias)
    noise = 0.2 * torch.from_numpy(rng.standard_normal(value.shape).astype(np.float32))
    dense, moved = (nnf.linear(x.tanh(), outer, shift) for x in (value, value + noise))
    dense, moved = dense.log_softmax(-1), moved.log_softmax(-1)
    distance = (dense.exp() * (dense - moved)).sum(-1).mean()
    assert felt * float(noise.square().sum()) == pytest.approx(float(distance), rel=0.15)


def test_what_the_loss_does_not_read_counts_nothing() -> None:
    b = Builder()
    x = b.input("batch", "time", 6)
    dead, alive = b.linear(x, 5), b.linear(x, 4)
    built = b.finish(b.call("aten.add.Tensor", alive, 0.5))
    batch = {name: np.asarray(v) for name, v in built.inputs(2, 3).items()}
    found = loss_per_error(built.graph, built.weights, [batch], [dead.name, alive.name])
    assert found[alive.name] > 0
    assert found[dead.name] == 0


def test_sequences_are_shortened_alike() -> None:
    """A program of tokens loses the end of every sequence; one of features stays as it is."""
    b = Builder()
    tokens, other = b.tokens(23), b.input("batch", 4)
    y = b.call("aten.embedding.default", b.weight(23, 4), tokens)
    y = b.call("aten.add.Tensor", y, b.call("aten.unsqueeze.default", other, 1))
    built = b.finish(b.linear(y, 23))
    batch = {name: np.asarray(v) for name, v in built.inputs(2, 9).items()}
    found = shortened(built.graph, batch, 5)
    assert [x.shape for x in found.values()] == [(2, 5), (2, 4)]
    np.testing.assert_array_equal(found["x0"], batch["x0"][:, :5])
    assert [x.shape for x in shortened(built.graph, batch, 50).values()] == [(2, 9), (2, 4)]

    plain = Builder()
    built = plain.finish(plain.linear(plain.input("batch", "time", 6), 9))
    batch = {name: np.asarray(v) for name, v in built.inputs(2, 9).items()}
    assert shortened(built.graph, batch, 5)["x0"].shape == (2, 9, 6)
