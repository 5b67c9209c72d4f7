"""`prunec quantize` on a tiny model: what ONNX Runtime then runs, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import worded
import zoo
from onnx import numpy_helper

from prunec.cli.app import main

HIDDEN, LENGTH, SAMPLES = 64, 32, 6
SIZES = {
    "hidden_size": HIDDEN, "intermediate_size": 96, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder, its ONNX file, and a text."""
    root = tmp_path_factory.mktemp("quantize")
    zoo.build("llama", **SIZES).save_pretrained(root / "llama")
    worded.tokenizer().save_pretrained(root / "llama")
    (root / "text.txt").write_text(worded.text(8 * SAMPLES * LENGTH))
    code, told = called(
        "sparsify", str(root / "llama"), "-o", str(root / "sparse"), "--sparsity", "2:4",
        "--method", "magnitude", "--format", "onnx",
    )  # fmt: skip
    assert code == 0, told
    return root


def called(*arguments: str) -> tuple[int, str]:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(list(arguments))
    return code, printed.getvalue() or told.getvalue()


def quantized(model: Path, out: Path, *options: str) -> dict[str, Any]:
    code, printed = called("quantize", str(model), "-o", str(out), *options, "--json")
    assert code == 0, printed
    found: dict[str, Any] = json.loads(printed)
    return found


def logits(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(3, 60, (2, 17))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {n: x for n, x in feeds.items() if n in names})[0]


CASES = {
    "int8": (("--quantize", "int8"), "MatMulInteger", 0.1),
    "int8 weights": (
        ("--quantize", "int8", "--activations", "float", "--block", "16"), "MatMulNBits", 0.03,
    ),
    "int4": (("--quantize", "int4", "--block", "16"), "MatMulNBits", 0.4),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_runs_and_is_near(case: str, folder: Path, tmp_path: Path) -> None:
    options, operation, allowed = CASES[case]
    dense = folder / "sparse" / "onnx" / "model.onnx"
    report = quantized(dense, tmp_path / "out", *options)
    small = tmp_path / "out" / "onnx" / "model.onnx"
    assert report["operations"][operation] >= 14
    assert report["formats"][0]["bytes"] < report["dense_bytes"]
    wanted, found = logits(dense), logits(small)
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 0 < error < allowed


def test_blocks_are_as_asked_for(folder: Path, tmp_path: Path) -> None:
    """Each 4-bit product says how long its blocks are, and has a scale for each."""
    quantized(folder / "sparse", tmp_path / "out", "--quantize", "int4", "--block", "16")
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMulNBits"]
    for node in products:
        given = {a.name: a.i for a in node.attribute}
        assert given["block_size"] == 16
        assert stored[node.input[2]].size == given["N"] * given["K"] // 16
    assert len(products) >= 14


@pytest.mark.parametrize("case", ["int8 weights", "int4"])
def test_a_head_tied_to_the_embedding_is_stored_once(case: str, tmp_path: Path) -> None:
    """The lookup reads the blocks of the head, and finds the rows that the head has."""
    zoo.build("llama", **SIZES, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    options, _, allowed = CASES[case]
    quantized(tmp_path / "tied", tmp_path / "out", *options, "--calibration", "none")
    path = tmp_path / "out" / "onnx" / "model.onnx"
    graph = onnx.load(path).graph
    (head,) = [n for n in graph.node if n.op_type == "MatMulNBits" and "logits" in n.output]
    (lookup,) = [n for n in graph.node if n.op_type == "GatherBlockQuantized"]
    assert lookup.input[0] == head.input[1]
    scales = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    assert np.array_equal(scales[lookup.input[2]][..., 0], scales[head.input[2]])
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"parameters": {"model.norm.weight": {"0": list(range(HIDDEN))}}}))
    code, told = called(
        "prune", str(tmp_path / "tied"), "-o", str(tmp_path / "whole"), "--plan", str(plan),
        "--calibration", "none", "--restore", "none", "--format", "onnx",
    )  # fmt: skip
    assert code == 0, told
    wanted, found = logits(tmp_path / "whole" / "onnx" / "model.onnx"), logits(path)
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < allowed


def test_blocks_that_do_not_divide_are_told(folder: Path, tmp_path: Path) -> None:
    model = folder / "sparse" / "onnx" / "model.onnx"
    report = quantized(model, tmp_path / "out", "--quantize", "int4", "--block", "64")
    (warning,) = report["warnings"]
    assert warning["code"] == "P858"
    assert "--round-to 64" in warning["help"]
    assert len(report["padded"]) == 2, "96 neurons in each of two layers"


def test_static_ranges_come_from_the_data(folder: Path, tmp_path: Path) -> None:
    report = quantized(
        folder / "llama", tmp_path / "out", "--quantize", "int8", "--activations", "static",
        "--calibration", str(folder / "text.txt"), "--calibration-samples", str(SAMPLES),
        "--calibration-length", str(LENGTH),
    )  # fmt: skip
    assert report["operations"]["QuantizeLinear"] > 0
    (error,) = report["error"].values()
    assert 0 < error < 0.5


BAD = {
    "nothing asked for": ((), "P812"),
    "no such kind": (("--quantize", "int3"), "P810"),
    "no such block": (("--quantize", "int4", "--block", "48"), "P855"),
    "static weights": (("--quantize", "int4", "--activations", "static"), "P852"),
    "static without data": (
        ("--quantize", "int8", "--activations", "static", "--calibration", "none"),
        "P814",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_diagnostic(case: str, folder: Path, tmp_path: Path) -> None:
    options, expected = BAD[case]
    code, told = called("quantize", str(folder / "sparse"), "-o", str(tmp_path / "o"), *options)
    errors = [line for line in told.splitlines() if line.startswith("error[")]
    assert [line[6:10] for line in errors] == [expected], told
    assert code == 2
    assert not (tmp_path / "o").exists()


def test_what_is_quantised_already_is_refused(folder: Path, tmp_path: Path) -> None:
    quantized(folder / "sparse", tmp_path / "once", "--quantize", "int8")
    small = tmp_path / "once" / "onnx" / "model.onnx"
    code, told = called("quantize", str(small), "-o", str(tmp_path / "o"), "--quantize", "int4")
    assert code == 2
    assert "P856" in told
    assert "MatMulInteger" in told
