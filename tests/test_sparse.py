"""Masks and updates against small references in NumPy, written from the papers' formulas.

References look at the weight W (m, n) and at the inputs X (tokens, n) themselves; the passes have
second moments, and work in blocks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from handmade import Builder, Built
from sparse_papers import gone, sparsegpt, wanda

from prunec.backends.torch_stream import TorchStream
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.passes.cost import Cost
from prunec.passes.couple import couple
from prunec.passes.profile import Moments
from prunec.passes.sparse import Layer, NofM, Share, check_fits, layers, parse_pattern
from prunec.passes.sparse import sparsify as run_pass
from prunec.passes.sparse.layers import block_of
from prunec.passes.sparse.patterns import smallest, violations
from prunec.passes.sparse.pruners import Magnitude, SparseGPT, Wanda
from prunec.passes.sparse.ratios import one_threshold, outlier_shares, owl, uniform

PATTERNS = {"50%": Share(0.5), "40%": Share(0.4), "2:4": NofM(2, 4), "4:8": NofM(4, 8)}
TOLERANCE = 1e-8
"""Relative: both sides compute in float64, in another order."""


def data(m: int = 24, n: int = 64, tokens: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A random layer and correlated inputs with unlike norms."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((tokens, n)) @ (np.eye(n) + 0.3 * rng.standard_normal((n, n)))
    return rng.standard_normal((m, n)), mixed * np.exp(rng.standard_normal(n))


def moments(x: np.ndarray) -> Moments:
    return Moments(len(x), (x**2).sum(0), x.sum(0), x.T @ x)


def table(w: np.ndarray) -> np.ndarray:
    """A matrix as a table of one part without taps."""
    return w[None, :, None]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wanda_is_the_papers(pattern: str) -> None:
    w, x = data()
    found = Wanda().prune(table(w), [moments(x)], PATTERNS[pattern])[0, :, 0]
    np.testing.assert_array_equal(found, wanda(w, x, PATTERNS[pattern]))


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_sparsegpt_is_the_papers(pattern: str, block: int) -> None:
    w, x = data()
    found = SparseGPT(block).prune(table(w), [moments(x)], PATTERNS[pattern])[0, :, 0]
    wanted = sparsegpt(w, x, PATTERNS[pattern], block)
    np.testing.assert_array_equal(found == 0, wanted == 0)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_blocks_never_cut_a_group() -> None:
    w, x = data(n=60)
    pattern = NofM(3, 6)
    found = SparseGPT(block=16).prune(table(w), [moments(x)], pattern)[0, :, 0]
    assert violations(found, 1, pattern) == 0
    np.testing.assert_allclose(found, sparsegpt(w, x, pattern, 12), rtol=TOLERANCE, atol=TOLERANCE)


def test_what_was_never_seen_goes() -> None:
    w, x = data()
    x[:, [3, 40]] = 0
    found = SparseGPT().prune(table(w), [moments(x)], Share(0.5))[0, :, 0]
    assert not found[:, [3, 40]].any()
    assert np.isfinite(found).all()


def test_each_method_loses_less_than_the_one_before() -> None:
    """||(W - W') X'|| / ||W X'||: by magnitude, by Wanda, and made up for."""
    w, x = data(m=64, n=128, tokens=600)
    errors = [
        np.linalg.norm((w - method.prune(table(w), [moments(x)], Share(0.5))[0, :, 0]) @ x.T)
        for method in (Magnitude(), Wanda(), SparseGPT())
    ]
    assert errors[0] > 1.1 * errors[1]
    assert errors[1] > 1.1 * errors[2]


@pytest.mark.parametrize("compare", ["row", "layer"])
def test_magnitude(compare: str) -> None:
    w, _ = data()
    found = Magnitude(compare).prune(table(w), [], Share(0.5))[0, :, 0]
    rows = np.abs(w) if compare == "row" else np.abs(w).reshape(1, -1)
    np.testing.assert_array_equal(found == 0, gone(rows, Share(0.5)).reshape(w.shape))
    np.testing.assert_array_equal(found[found != 0], w[found != 0])


def test_ties_go_by_index() -> None:
    scores = np.array([[2, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    wanted = [[False, True, True, False, True], [True, True, True, False, False]]
    assert smallest(scores, 3).tolist() == wanted
    assert not smallest(scores, 0).any()
    assert smallest(scores, 5).all()


def test_taps_of_a_convolution() -> None:
    """All taps of an output compete; an N:M group lies along the channels of one tap."""
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((6, 8, 3, 3)), rng.standard_normal((50, 8))
    layer = Layer("w", 1, (), taps=True)
    tabled = layer.table(w, 8)
    assert tabled.shape == (1, 6, 9, 8)
    shared = layer.stored(Wanda().prune(tabled, [moments(x)], Share(0.5)), w.shape)
    assert (np.count_nonzero(shared.reshape(6, -1), axis=1) == 36).all()
    scores = np.abs(w) * np.sqrt((x**2).sum(0))[None, :, None, None]
    for own, kept in zip(scores, shared, strict=True):
        assert own[kept == 0].max() <= own[kept != 0].min()
    grouped = layer.stored(Wanda().prune(tabled, [moments(x)], NofM(2, 4)), w.shape)
    assert violations(grouped, 1, NofM(2, 4)) == 0
    np.testing.assert_array_equal(layer.stored(tabled, w.shape), w)


def test_parts_of_a_grouped_convolution() -> None:
    """Each group of outputs is judged by the inputs that it reads."""
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((6, 4, 1)), rng.standard_normal((50, 12)) * np.arange(1, 13)
    layer = Layer("w", 1, (), taps=True)
    tabled = layer.table(w, 12)
    assert tabled.shape == (3, 2, 1, 4)
    parts = [moments(x).part(s, s + 4) for s in (0, 4, 8)]
    found = layer.stored(Wanda().prune(tabled, parts, Share(0.5)), w.shape)
    for group in range(3):
        own = slice(2 * group, 2 * group + 2)
        wanted = wanda(w[own, :, 0], x[:, 4 * group : 4 * group + 4], Share(0.5))
        np.testing.assert_array_equal(found[own, :, 0], wanted)


def test_one_threshold_for_all_layers() -> None:
    rng = np.random.default_rng(3)
    sizes = {"a.w": 1.0, "b.w": 0.3, "c.w": 2.0}
    weights = {n: (s * rng.standard_normal((8, 20))).astype(np.float32) for n, s in sizes.items()}
    own = [Layer(name, 1, (), taps=False) for name in weights]
    shares = one_threshold(own, weights, 0.4)
    flat = np.sort(np.concatenate([np.abs(w).reshape(-1) for w in weights.values()]))
    limit = flat[int(0.4 * flat.size) - 1]
    for name, weight in weights.items():
        assert shares[name] == pytest.approx(np.mean(np.abs(weight) <= limit), abs=1e-12)
        pruned = Magnitude("layer").prune(table(weight), [], Share(shares[name]))[0, :, 0]
        np.testing.assert_array_equal(pruned == 0, np.abs(weight) <= limit)


def test_ties_at_the_threshold_are_shared_out() -> None:
    weights = {name: np.ones((10, 10), dtype=np.float32) for name in "abc"}
    own = [Layer(name, 1, (), taps=False) for name in weights]
    assert one_threshold(own, weights, 0.4) == dict.fromkeys("abc", 0.4)


def test_owl_is_the_papers() -> None:
    """What stays of a block with D outliers is 2 lambda (D - min) / (max - min), about a mean."""
    own = [Layer(f"layers.{i}.{part}", 1, (), taps=False) for i in range(3) for part in "ab"]
    sizes = {y.weight: 100 if y.weight.endswith("a") else 50 for y in own}
    shares = owl({"layers.0": 0.05, "layers.1": 0.01, "layers.2": 0.03}, own, sizes, 0.6)
    stays = np.array([1.0, 0.0, 0.5]) * 2 * 0.08
    wanted = 1 - (stays - stays.mean() + 0.4)
    for i in range(3):
        assert shares[f"layers.{i}.a"] == shares[f"layers.{i}.b"] == pytest.approx(wanted[i])
    assert sum(shares[w] * n for w, n in sizes.items()) / sum(sizes.values()) == pytest.approx(0.6)


def test_blocks_by_name() -> None:
    assert block_of("model.layers.3.mlp.experts.7.w1") == "model.layers.3"
    assert block_of("classifier.weight") == "classifier.weight"


def program() -> tuple[Built, dict[str, np.ndarray]]:
    b = Builder()
    y = b.call("aten.tanh.default", b.up(12))
    y = b.call("aten.tanh.default", b.linear(y, 8))
    built = b.finish(b.down(y))
    return built, {name: np.asarray(value) for name, value in built.weights.items()}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_each_layer_is_judged_on_the_sparse_stream(method: str) -> None:
    """6 to 12 (w0, w1), to 8 (w2, w3), to 3 (w4, w5), tanh in between: a forward pass in NumPy
    through what is sparse already."""
    built, weights = program()
    coupling = couple(built.graph, ATEN)
    found = layers(coupling, ())
    assert [y.weight for y in found.found] == ["w0", "w2", "w4"]
    example = {k: np.asarray(v) for k, v in built.inputs(4, 9).items()}
    pruner = Wanda() if method == "wanda" else SparseGPT()
    replaced: dict[str, np.ndarray] = {}
    with TorchStream(coupling.graph, weights, [example], replaced=replaced) as stream:
        run_pass(
            found.found,
            pruner,
            Share(0.5),
            uniform(found.found, 0.5),
            weights,
            stream.replace,
            stream,
        )
    x = example["x0"].reshape(-1, 6).astype(np.float64)
    for name, bias in (("w0", "w1"), ("w2", "w3"), ("w4", "w5")):
        w = weights[name].astype(np.float64)
        wanted = wanda(w, x, Share(0.5)) if method == "wanda" else sparsegpt(w, x, Share(0.5), 128)
        np.testing.assert_array_equal(replaced[name] == 0, wanted == 0)
        np.testing.assert_allclose(replaced[name], wanted, rtol=1e-3, atol=1e-4)  # float32 stream
        x = np.tanh(x @ replaced[name].astype(np.float64).T + weights[bias])


LAYERS = {
    "llama": {"linears": 14, "left": {"an embedding, or it makes the output": 2}},
    "gpt2": {"linears": 8, "left": {"an embedding, or it makes the output": 2}},
}


@pytest.mark.parametrize("name", LAYERS)
def test_all_layers_within_blocks_are_found(name: str) -> None:
    coupling = couple(zoo.model(name).traced.graph, ATEN)
    found = layers(coupling, Cost(coupling).outer)
    assert len(found.found) == LAYERS[name]["linears"]
    reasons = list(found.left.values())
    assert {r: reasons.count(r) for r in reasons} == LAYERS[name]["left"]
    for layer in found.found:  # GPT-2 stores its matrices the other way round
        assert layer.dim == (0 if name == "gpt2" else 1)


def test_every_convolution_of_a_network_is_found() -> None:
    module = zoo.model("resnet").module
    coupling = couple(zoo.model("resnet").traced.graph, ATEN)
    outer = Cost(coupling).outer
    found = layers(coupling, outer).found
    convolutions = [n for n, m in module.named_modules() if isinstance(m, torch.nn.Conv2d)]
    names = {layer.weight for layer in found}
    assert names == {f"{name}.weight" for name in convolutions} - outer
    assert len(names) == len(convolutions) - 2, "two are added up to the output"
    assert all(layer.taps and layer.dim == 1 for layer in found)


def test_outliers() -> None:
    """The share of |W_ij| ||X_j|| above five times their mean over a block."""
    built, weights = program()
    weights["w2"] = weights["w2"].copy()
    weights["w2"][0, 0] *= 100
    coupling = couple(built.graph, ATEN)
    own = layers(coupling, ()).found
    example = {k: np.asarray(v) for k, v in built.inputs(4, 9).items()}
    with TorchStream(coupling.graph, weights, [example]) as stream:
        found = outlier_shares(own, weights, stream)
    x = example["x0"].reshape(-1, 6).astype(np.float64)
    for name, bias in (("w0", "w1"), ("w2", "w3"), ("w4", "w5")):
        scores = np.abs(weights[name]) * np.sqrt((x**2).sum(0))
        assert found[name] == pytest.approx(np.mean(scores > 5 * scores.mean()))
        x = np.tanh(x @ weights[name].astype(np.float64).T + weights[bias])
    assert found["w2"] > 0


@pytest.mark.parametrize("text", ["0", "0%", "100%", "1", "0:4", "4:4", "5:4", "half", "2:", "-1%"])
def test_sparsities_that_leave_nothing_or_everything(text: str) -> None:
    with pytest.raises(PrunecError) as raised:
        parse_pattern(text)
    (told,) = raised.value.diagnostics
    assert (told.code, int(raised.value.exit_code)) == ("P850", 2)


@pytest.mark.parametrize("text", ["50%", "0.5", " 37.5% ", "2:4", "4:8", "1:16"])
def test_sparsities_print_as_they_are_read(text: str) -> None:
    pattern = parse_pattern(text)
    assert parse_pattern(str(pattern)) == pattern


def test_a_pattern_that_does_not_divide_a_layer() -> None:
    own = [Layer("a", 1, (), taps=False), Layer("b", 0, (), taps=False)]
    check_fits(own, {"a": 8, "b": 12}, NofM(2, 4))
    with pytest.raises(PrunecError) as raised:
        check_fits(own, {"a": 8, "b": 12}, NofM(4, 8))
    (told,) = raised.value.diagnostics
    assert told.code == "P851"
    assert "b (12)" in told.message
    assert "--leave" in told.help
