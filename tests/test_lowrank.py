"""Low rank: factors against a reference written from the paper, and `prunec factorize`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import zoo
from counting import LENGTH, counter, refused, run
from handmade import Builder, Built

from prunec.backends.interpreter import execute
from prunec.ir.axes import Selection
from prunec.ir.dialects.aten import ATEN
from prunec.passes.cost import Cost
from prunec.passes.couple import couple
from prunec.passes.coupling import Place
from prunec.passes.lowrank import (
    Factors,
    Spectrum,
    energy,
    factorable,
    factorize,
    names_of,
    params_left,
    pays,
    plain,
    uniform,
    whitened,
)
from prunec.passes.rewrite import rewrite


def data(m: int = 20, n: int = 32, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A random layer and correlated inputs with unlike norms."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((tokens, n)) @ (np.eye(n) + 0.5 * rng.standard_normal((n, n)))
    return rng.standard_normal((m, n)), mixed * np.exp(rng.standard_normal(n))


def best(w: np.ndarray, x: np.ndarray, rank: int) -> np.ndarray:
    """The matrix of this rank whose outputs are nearest to X W', without any Cholesky factor:
    reduced-rank regression projects the outputs X W' on their leading right singular vectors."""
    _, _, vt = np.linalg.svd(x @ w.T, full_matrices=False)
    return vt[:rank].T @ vt[:rank] @ w


@pytest.mark.parametrize("rank", [1, 5, 12, 19])
def test_the_error_is_that_of_the_theory(rank: int) -> None:
    w, x = data()
    made = whitened(w, x.T @ x)
    small = made.second[:, :rank] @ made.first[:rank]
    error = np.square(x @ (w - small).T).sum()
    assert error == pytest.approx(np.square(made.singular[rank:]).sum(), rel=1e-4)
    wanted = np.square(x @ (w - best(w, x, rank)).T).sum()
    assert error == pytest.approx(wanted, rel=1e-4), "nothing of this rank is nearer"
    # the ridge is 1e-9 of the mean square of the inputs
    np.testing.assert_allclose(small, best(w, x, rank), atol=1e-4 * np.abs(w).max())


@pytest.mark.parametrize("rank", [1, 5, 19])
def test_plain_is_the_best_for_the_weights(rank: int) -> None:
    w, _ = data()
    made = plain(w)
    error = np.square(w - made.second[:, :rank] @ made.first[:rank]).sum()
    u, d, vt = np.linalg.svd(w)
    assert error == pytest.approx(np.square(d[rank:]).sum())
    assert error == pytest.approx(np.square(w - (u[:, :rank] * d[:rank]) @ vt[:rank]).sum())


def test_activations_beat_weights_at_every_rank() -> None:
    w, x = data()
    aware, blind = whitened(w, x.T @ x), plain(w)

    def error(made: Factors, rank: int) -> float:
        return float(np.square(x @ (w - made.second[:, :rank] @ made.first[:rank]).T).sum())

    assert all(error(aware, k) < error(blind, k) for k in range(1, 20))


@pytest.mark.parametrize("shape", [(20, 32), (32, 20)])
def test_full_rank_is_the_matrix(shape: tuple[int, int]) -> None:
    w, x = data(*shape)
    for made in (plain(w), whitened(w, x.T @ x)):
        assert made.first.shape == (20, shape[1])
        np.testing.assert_allclose(made.second @ made.first, w, atol=1e-6)


def test_inputs_that_never_vary() -> None:
    w, x = data()
    x[:, 3:9] = 0
    made = whitened(w, x.T @ x)
    assert np.isfinite(made.first).all()
    np.testing.assert_allclose(x @ (made.second @ made.first).T, x @ w.T, atol=1e-6)


def spectra() -> dict[str, Spectrum]:
    rng = np.random.default_rng(0)
    return {
        name: Spectrum(m, n, np.sort(rng.exponential(size=min(m, n)) ** power)[::-1])
        for name, m, n, power in (("a", 64, 64, 1), ("b", 64, 16, 3), ("c", 128, 96, 0.3))
    }


@pytest.mark.parametrize("allocate", [uniform, energy])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_ranks_fill_the_target(allocate: object, share: float) -> None:
    found = spectra()
    dense = params_left(found, {})
    ranks = allocate(found, int(share * dense))  # type: ignore[operator]
    left = params_left(found, ranks)
    assert left <= share * dense
    assert left > share * dense - 2 * sum(s.each for s in found.values()), "and leave no more"
    assert all(pays(found[name], rank) for name, rank in ranks.items())


def test_energy_goes_where_it_matters() -> None:
    found = spectra()
    ranks = energy(found, params_left(found, {}) // 2)
    flat, steep = (ranks.get(n, len(found[n].singular)) / len(found[n].singular) for n in "cb")
    assert steep < flat


def two_layers() -> Built:
    b = Builder()
    y = b.call("aten.tanh.default", b.up(16))
    return b.finish(b.linear(y, 10))


def two_products() -> Built:
    """The same with weights that are [in, out]."""
    b = Builder()
    y = b.call("aten.addmm.default", b.weight(16), b.input("batch", 24), b.weight(24, 16))
    return b.finish(b.call("aten.mm.default", b.call("aten.tanh.default", y), b.weight(16, 10)))


@pytest.mark.parametrize("program", [two_layers, two_products])
@pytest.mark.parametrize("rank", [3, 10])
def test_the_new_axis_is_a_group_like_others(rank: int, program: Callable[[], Built]) -> None:
    built = program()
    dense = couple(built.graph, ATEN)
    found = factorable(dense, frozenset())
    weights = {name: np.asarray(array) for name, array in built.weights.items()}
    full = {y.weight: min(weights[y.weight].shape) for y in found.found}
    assert len(full) == 2
    coupling = couple(factorize(built.graph, full).graph, ATEN)
    made = dict(weights)
    selections = {}
    dims = {y.weight: y.dim for y in found.found}
    turned = {
        name: array if dims[name] else array.T for name, array in weights.items() if name in dims
    }
    for name in full:
        factors, (first, second) = plain(turned[name]), names_of(name)
        made |= {first: factors.first.astype(np.float32), second: factors.second.astype(np.float32)}
        (group,) = [g for g in coupling.groups if Place(first, 0) in g.places]
        assert {(p.parameter, p.dim) for p in group.places} == {(first, 0), (second, 1)}
        selections[group.name] = Selection(np.arange(min(rank, full[name])))
    small = rewrite(coupling, selections)
    sliced = {
        n: a if n not in small.kept else _taken(a, small.kept[n])
        for n, a in made.items()
        if n in small.graph.parameters
    }
    feeds = [{k: np.asarray(v) for k, v in built.inputs(3, 7).items()}]
    (found_out,) = execute(small.graph, sliced, feeds)
    for name in full:
        first, second = names_of(name)
        assert sliced[first].shape[0] == min(rank, full[name])
        product = (sliced[second] @ sliced[first]).astype(np.float32)
        weights[name] = product if dims[name] else product.T
    (wanted,) = execute(built.graph, weights, feeds)
    for key, value in wanted.items():
        torch.testing.assert_close(found_out[key], value, atol=1e-5, rtol=1e-5)


def _taken(array: np.ndarray, kept: dict[int, np.ndarray]) -> np.ndarray:
    for dim, indices in kept.items():
        array = np.take(array, indices, dim)
    return array


def test_weights_that_are_stored_turned_round(tmp_path: Path) -> None:
    network = zoo.build("gpt2")
    network.save_pretrained(tmp_path / "dense")
    ids = np.random.default_rng(0).integers(0, network.config.vocab_size, (4, 16))
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    code, report = run(
        "factorize", tmp_path / "dense", "-o", tmp_path / "out", "--target", "blocks=70%",
        "--calibration", tmp_path / "ids.npz", "--verify",
    )  # fmt: skip
    assert code == 0, report
    assert [c["passed"] for c in report["checks"]] == [True]
    rows = {row["weight"]: (row["outputs"], row["inputs"]) for row in report["layers"]}
    width = network.config.n_embd
    (packed,) = {size for name, size in rows.items() if name.endswith("c_attn.weight")}
    assert packed == (3 * width, width)


@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet"])
def test_every_matrix_is_taken_or_told(name: str) -> None:
    coupling = couple(zoo.model(name).traced.graph, ATEN)
    found = factorable(coupling, Cost(coupling).outer)
    matrices = {
        n
        for n, p in coupling.graph.parameters.items()
        if p.kind == "parameter" and len(p.type.shape) > 1
    }
    assert {y.weight for y in found.found} | set(found.left) == matrices
    if name == "llama":
        assert len(found.found) == 7 * 2, "a layer"
    if name == "gpt2":
        assert len(found.found) == 4 * 2, "a layer"
    if name == "resnet":
        assert "a convolution of more than one tap or group" in found.left.values()
        assert found.found, "those of one tap"


# The command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lowrank")
    counter(root)
    return root


def logits(path: Path, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return session.run(None, {v.name: feeds[v.name] for v in session.get_inputs()})[0]


@pytest.mark.parametrize(
    ("method", "ranks"), [("svd-llm", "uniform"), ("svd-llm", "energy"), ("svd", "uniform")]
)
def test_all_formats_agree_and_the_target_is_met(
    method: str, ranks: str, home: Path, tmp_path: Path
) -> None:
    code, report = run(
        "factorize", home / "dense", "-o", tmp_path / "out", "--target", "blocks=70%", "--method",
        method, "--ranks", ranks, "--calibration", home / "count.txt", "--calibration-length",
        LENGTH, "--format", "onnx,torchscript", "--verify",
    )  # fmt: skip
    assert code == 0, report
    assert {c["name"]: c["passed"] for c in report["checks"]} == {"onnx": True, "torchscript": True}
    assert report["target"] == "blocks=70%"
    written = onnx.load(tmp_path / "out" / "onnx" / "model.onnx")
    stored = {i.name: tuple(i.dims) for i in written.graph.initializer}
    for row in report["layers"]:
        first, second = names_of(row["weight"])
        assert stored[first] == (row["rank"], row["inputs"])
        assert stored[second] == (row["outputs"], row["rank"])
        assert row["weight"] not in stored
    source = report["sources"][0]
    assert source["pruned"] < 3 * source["dense"] + 1.5


def test_activations_beat_weights_on_a_model(home: Path) -> None:
    losses = {}
    for method in ("svd-llm", "svd"):
        _, report = run(
            "factorize", home / "dense", "--dry-run", "--target", "blocks=50%", "--method", method,
            "--calibration", home / "count.txt", "--calibration-length", LENGTH,
        )  # fmt: skip
        losses[method] = report["sources"][0]["pruned"]
    assert losses["svd-llm"] < losses["svd"]


def test_what_cannot_be(home: Path, tmp_path: Path) -> None:
    given = ("factorize", home / "dense", "-o", tmp_path / "out")
    code, said, message = refused(*given, "--target", "params=80%", "--format", "hf")
    assert (code, said) == (2, "P816")
    assert "one matrix where there are two" in message
    assert refused(*given)[:2] == (2, "P812")
    assert refused(*given, "--target", "flops=70%")[:2] == (2, "P812")
    assert refused(*given, "--target", "params=1%", "--method", "svd")[:2] == (3, "P403")
    assert refused(*given, "--target", "params=80%", "--calibration", "none")[:2] == (2, "P814")
    given = ("factorize", tmp_path / "model.onnx", "-o", tmp_path / "out", "--method", "svd")
    (tmp_path / "model.onnx").touch()
    assert refused(*given, "--target", "params=80%")[:2] == (2, "P816")
    assert not (tmp_path / "out").exists()


def test_layers_that_cannot_be_two(tmp_path: Path) -> None:
    sizes = {"depths": [1], "hidden_sizes": [16], "embedding_size": 16, "layer_type": "basic"}
    zoo.build("resnet", **sizes).save_pretrained(tmp_path / "dense")
    given = ("factorize", tmp_path / "dense", "-o", tmp_path / "out", "--method", "svd")
    code, said, message = refused(*given, "--target", "params=80%")
    assert (code, said) == (2, "P402")
    assert "a convolution of more than one tap or group (3 weights)" in message


def test_matrices_that_stay_whole(tmp_path: Path) -> None:
    """Where all ranks of a matrix are worth their numbers, two factors are no smaller."""
    sizes = {"intermediate_size": 3, "num_hidden_layers": 1}
    zoo.build("llama", **sizes).save_pretrained(tmp_path / "dense")
    code, report = run(
        "factorize", tmp_path / "dense", "-o", tmp_path / "out", "--target", "blocks=70%",
        "--method", "svd", "--ranks", "energy", "--verify",
    )  # fmt: skip
    assert code == 0, report
    two = {row["weight"] for row in report["layers"]}
    whole = {n for n, why in report["left"].items() if why == "two factors would be larger"}
    assert whole, report["layers"]
    assert not two & whole
    written = onnx.load(tmp_path / "out" / "onnx" / "model.onnx")
    stored = {i.name for i in written.graph.initializer}
    assert whole <= stored
    assert not two & stored
