"""Decoders with a cache of keys and values among their inputs and outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunec.cli.app import main

KV, SHARED, INSIDE, WIDTH, VOCABULARY, LAYERS = 4, 2, 6, 20, 37, 2

LAYER = """
  h{i}_q = MatMul(x{i}, h{i}.q)
  h{i}_k = MatMul(x{i}, h{i}.k)
  h{i}_v = MatMul(x{i}, h{i}.v)
  h{i}_q4 = Reshape(h{i}_q, heads)
  h{i}_k4 = Reshape(h{i}_k, kv)
  h{i}_v4 = Reshape(h{i}_v, kv)
  h{i}_kt = Transpose<perm = [0, 2, 1, 3]>(h{i}_k4)
  h{i}_vt = Transpose<perm = [0, 2, 1, 3]>(h{i}_v4)
  present.{i}.key = Concat<axis = 2>(past.{i}.key, h{i}_kt)
  present.{i}.value = Concat<axis = 2>(past.{i}.value, h{i}_vt)
  h{i}_qt = Transpose<perm = [0, 2, 1, 3]>(h{i}_q4)
  h{i}_k5 = Unsqueeze(present.{i}.key, two)
  h{i}_v5 = Unsqueeze(present.{i}.value, two)
  h{i}_ke = Expand(h{i}_k5, shared)
  h{i}_ve = Expand(h{i}_v5, shared)
  h{i}_kr = Reshape(h{i}_ke, merged)
  h{i}_vr = Reshape(h{i}_ve, merged)
  h{i}_kk = Transpose<perm = [0, 1, 3, 2]>(h{i}_kr)
  h{i}_s = MatMul(h{i}_qt, h{i}_kk)
  h{i}_p = Softmax<axis = -1>(h{i}_s)
  h{i}_o = MatMul(h{i}_p, h{i}_vr)
  h{i}_ot = Transpose<perm = [0, 2, 1, 3]>(h{i}_o)
  h{i}_or = Reshape(h{i}_ot, flat)
  h{i}_a = MatMul(h{i}_or, h{i}.o)
  x{j} = Add(x{i}, h{i}_a)
"""


def decoder(path: Path, seed: int = 0) -> Path:
    """Attention layers whose keys and values are appended to those of what came before."""
    rng = np.random.default_rng(seed)
    cache = f"float[batch, {KV}, past, {INSIDE}] past.{{i}}.{{kind}}"
    present = f"float[batch, {KV}, total, {INSIDE}] present.{{i}}.{{kind}}"
    kinds = [(i, kind) for i in range(LAYERS) for kind in ("key", "value")]
    given = ["int64[batch, sequence] input_ids", *(cache.format(i=i, kind=k) for i, k in kinds)]
    made = [f"float[batch, sequence, {VOCABULARY}] logits"]
    made += [present.format(i=i, kind=k) for i, k in kinds]
    body = "".join(LAYER.format(i=i, j=i + 1) for i in range(LAYERS))
    text = (
        '<ir_version: 10, opset_import: ["" : 17]>\n'
        f"g ({', '.join(given)}) => ({', '.join(made)}) {{\n"
        f"  x0 = Gather(embed, input_ids)\n{body}  logits = MatMul(x{LAYERS}, head)\n}}"
    )
    names = [name for i, kind in kinds for name in (f"past.{i}.{kind}", f"present.{i}.{kind}")]
    names += [f"h{i}.{w}" for i in range(LAYERS) for w in "qkvo"]
    for name in names:  # the text form has no dots
        text = text.replace(name, name.replace(".", "__"))
    model = onnx.parser.parse_model(text)
    heads = KV * SHARED * INSIDE
    shapes = {"embed": (VOCABULARY, WIDTH), "head": (WIDTH, VOCABULARY)}
    for i in range(LAYERS):
        shapes |= {f"h{i}__q": (WIDTH, heads), f"h{i}__o": (heads, WIDTH)}
        shapes |= {f"h{i}__{w}": (WIDTH, KV * INSIDE) for w in "kv"}
    for name, shape in shapes.items():
        array = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    vectors = {
        "heads": (0, 0, KV * SHARED, INSIDE), "kv": (0, 0, KV, INSIDE), "flat": (0, 0, heads),
        "shared": (1, 1, SHARED, 1, 1), "merged": (0, KV * SHARED, -1, INSIDE), "two": (2,),
    }  # fmt: skip
    for name, numbers in vectors.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(numbers), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return decoder(tmp_path / "model.onnx")


def pruned(
    capsys: pytest.CaptureFixture[str], model: Path, out: Path, *options: str
) -> dict[str, Any]:
    capsys.readouterr()
    command = ["prune", str(model), "-o", str(out), "--method", "magnitude", "--verify", "--json"]
    assert main([*command, *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values
    }


def test_caches_stay_unless_they_may_change(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pruned(capsys, model, tmp_path / "out", "--target", "params=90%")
    assert {g["role"] for g in report["groups"] if g["kept"] < g["size"]} == {"query_head"}
    pins = [pin for pin in report["pinned"] if pin["axis"].startswith("kv_head")]
    assert len(pins) == LAYERS
    assert all("graph input" in pin["reason"] for pin in pins)
    assert report["interface"] == []
    written = onnx.load(tmp_path / "out/onnx/model.onnx").graph
    assert shapes(written.input) == shapes(onnx.load(model).graph.input)


def test_kv_heads_take_their_part_of_the_cache(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pruned(
        capsys, model, tmp_path / "out", "--target", "blocks=60%", "--groups", "kv_head",
        "--allow-interface-change",
    )  # fmt: skip
    (check,) = report["checks"]
    assert check["passed"]
    assert check["name"] == "law 1"
    kept = {g["kept"] for g in report["groups"] if g["role"] == "kv_head"}
    assert kept == {2}
    caches = [f"{i}__{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    assert [(row["kind"], row["name"]) for row in report["interface"]] == [
        *(("input", f"past__{name}") for name in caches),
        *(("output", f"present__{name}") for name in caches),
    ]
    assert all(row["dense"][1] == KV and row["pruned"][1] == 2 for row in report["interface"])
    written = onnx.load(tmp_path / "out/onnx/model.onnx").graph
    assert shapes(written.input)["past__0__key"] == ["batch", 2, "past", INSIDE]
    assert shapes(written.output)["present__1__value"] == ["batch", 2, "total", INSIDE]
    assert shapes(written.input)["input_ids"] == ["batch", "sequence"]
    card = (tmp_path / "out/README.md").read_text()
    assert "Changed inputs and outputs" in card
    page = (tmp_path / "out/report.html").read_text()
    assert "<td>past__0__key</td><td>batch × 4 × past × 6</td><td>batch × 2 × past × 6</td>" in page


def test_a_pruned_cache_is_fed_back(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading a text in two parts, by way of the smaller cache, fills it like reading it whole."""
    from onnx_files import session

    pruned(
        capsys, model, tmp_path / "out", "--target", "blocks=60%", "--groups", "kv_head",
        "--allow-interface-change",
    )  # fmt: skip
    run = session(tmp_path / "out/onnx/model.onnx")
    names = [output.name for output in run.get_outputs()]
    ids = np.arange(14).reshape(2, 7) % VOCABULARY

    def step(tokens: Any, past: dict[str, Any]) -> dict[str, Any]:
        found = run.run(names, {"input_ids": tokens, **past})
        return dict(zip(names, found, strict=True))

    past = {
        value.name: np.zeros((2, 2, 0, INSIDE), np.float32)
        for value in run.get_inputs()
        if value.name.startswith("past")
    }
    first = step(ids[:, :4], past)
    fed = {name: first[name.replace("past", "present")] for name in past}
    second = step(ids[:, 4:], fed)
    assert second["present__0__key"].shape == (2, 2, 7, INSIDE)
    # no causal mask: the last token sees all in both
    whole = step(ids, past)
    np.testing.assert_allclose(second["present__0__key"], whole["present__0__key"], atol=1e-5)


def test_other_models_have_no_such_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", "somewhere", "--dry-run", "--target", "params=90%"]
    assert main([*command, "--allow-interface-change"]) == 2
    assert "error[P816]" in capsys.readouterr().err


# Layers


def in_layers(path: Path) -> Path:
    """The decoder with names of nodes that tell the layer, as exporters give them."""
    model = onnx.load(decoder(path))
    for node in model.graph.node:
        layer = re.search(r"(?:^h|present__)(\d)_", node.output[0])
        if layer is not None:
            node.name = f"/layers.{layer[1]}/attn/{node.output[0]}"
    onnx.save(model, path)
    return path


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    return in_layers(tmp_path / "model.onnx")


def fed(rows: int = 4, past: int = 3, length: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    caches = {
        f"past__{i}__{kind}": rng.standard_normal((rows, KV, past, INSIDE)).astype(np.float32)
        for i in range(LAYERS)
        for kind in ("key", "value")
    }
    return {"input_ids": rng.integers(0, VOCABULARY, (rows, length)), **caches}


def without_layer(model: Path, layer: int, out: Path) -> Path:
    """Written by hand: the nodes of the other layer, which reads what the first one read."""
    proto = onnx.load(model)
    graph = proto.graph
    mine = [n for n in graph.node if n.name.startswith(f"/layers.{layer}/")]
    mine += [n for n in graph.node if n.output[0] == f"x{layer + 1}"]
    for node in mine:
        graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == f"x{layer + 1}":
                node.input[i] = f"x{layer}"
    for values in (graph.input, graph.output):
        for value in [v for v in values if f"__{layer}__" in v.name]:
            values.remove(value)
    for tensor in [t for t in graph.initializer if t.name.startswith(f"h{layer}__")]:
        graph.initializer.remove(tensor)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, out)
    return out


@pytest.mark.parametrize("order", ["sleb", "shortgpt", "angular"])
def test_a_layer_goes_with_its_cache(
    layered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    from onnx_files import session

    np.savez(tmp_path / "data.npz", **fed())
    report = pruned(
        capsys, layered, tmp_path / "out", "--target", "params=80%", "--groups", "layer",
        "--depth", order, "--calibration", str(tmp_path / "data.npz"), "--allow-interface-change",
    )  # fmt: skip
    (name,) = report["removed"]
    layer = int(name.removeprefix("layers.")[0])
    assert name == f"layers.{layer}.attn/layer" or name == f"layers.{layer}/layer"
    (check,) = report["checks"]
    assert check["passed"]
    gone = [f"{layer}__{kind}" for kind in ("key", "value")]
    assert [(row["kind"], row["name"], row["pruned"]) for row in report["interface"]] == [
        *(("input", f"past__{name}", None) for name in gone),
        *(("output", f"present__{name}", None) for name in gone),
    ]
    written = tmp_path / "out/onnx/model.onnx"
    wanted = without_layer(layered, layer, tmp_path / "by-hand.onnx")
    kinds = [sorted(n.op_type for n in onnx.load(p).graph.node) for p in (written, wanted)]
    assert kinds[0] == kinds[1]
    found, expected = session(written), session(wanted)
    for rows, past, length in ((4, 3, 8), (1, 0, 5)):
        feeds = fed(rows, past, length)
        feeds = {value.name: feeds[value.name] for value in expected.get_inputs()}
        names = [value.name for value in expected.get_outputs()]
        assert {value.name for value in found.get_inputs()} == set(feeds)
        assert [value.name for value in found.get_outputs()] == names
        for one, other in zip(found.run(names, feeds), expected.run(names, feeds), strict=True):
            np.testing.assert_array_equal(one, other)
    assert "| input | past" in (tmp_path / "out/README.md").read_text()
    assert "<td>removed</td>" in (tmp_path / "out/report.html").read_text()


def test_without_leave_layers_are_kept_with_the_reason(
    layered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", **fed())
    command = ["prune", str(layered), "-o", str(tmp_path / "out"), "--target", "params=80%"]
    options = ["--groups", "layer", "--calibration", str(tmp_path / "data.npz")]
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err
    assert "error[P409]: 2 regions are kept" in said
    assert "past__0__key, past__0__value" in said
    assert "--allow-interface-change" in said
    assert not (tmp_path / "out").exists()


def test_the_length_of_what_came_before_is_asked_of_another_cache(
    layered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first cache tells the length to all; when its layer goes, the other one does."""
    from onnx_files import session

    proto = onnx.load(layered)
    graph = proto.graph
    lengths = onnx.parser.parse_graph(
        "g () => () { s = Shape<start = 2, end = 3>(past__0__key)\n"
        " f = Cast<to = 1>(s)\n logits = Add(plain, f) }"
    )
    graph.node[-1].output[0] = "plain"
    graph.node.extend(lengths.node)
    onnx.save(proto, layered)
    np.savez(tmp_path / "data.npz", **fed())
    plan = ["--groups", "layer", "--depth", "angular", "--calibration", str(tmp_path / "data.npz")]
    report = pruned(
        capsys, layered, tmp_path / "out", "--target", "params=80%", *plan,
        "--allow-interface-change",
    )  # fmt: skip
    (check,) = report["checks"]
    assert check["passed"]
    left = {value.name for value in session(tmp_path / "out/onnx/model.onnx").get_inputs()}
    (name,) = report["removed"]
    other = 1 - int(name.removeprefix("layers.")[0])
    assert left == {"input_ids", f"past__{other}__key", f"past__{other}__value"}
