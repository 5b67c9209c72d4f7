"""`prunec emit`: a model in other formats, as it is, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import worded
import zoo
from transformers import AutoModelForCausalLM

from prunec.cli.app import main

IDS = np.random.default_rng(0).integers(3, 60, (2, 17))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder, and what is left of it in custom code."""
    root = tmp_path_factory.mktemp("emit")
    zoo.build("llama").save_pretrained(root / "llama")
    worded.tokenizer().save_pretrained(root / "llama")
    code, told = called(
        "prune", root / "llama", "-o", root / "small", "--target", "blocks=70%", "--layout",
        "per-layer", "--method", "magnitude", "--allocate", "log-depth", "--groups", "neuron",
    )  # fmt: skip
    assert code == 0, told
    return root


def called(*arguments: object) -> tuple[int, dict[str, Any]]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        code = main([*map(str, arguments), "--json"])
    return code, json.loads(printed.getvalue())


def logits(model: Path) -> np.ndarray:
    trust = (model / "modeling_prunec.py").exists()
    network = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=trust).eval()
    with torch.no_grad():
        found: np.ndarray = network(input_ids=torch.from_numpy(IDS), use_cache=False).logits.numpy()
    return found


@pytest.mark.parametrize("name", ["llama", "small"])
def test_every_format_computes_what_the_model_does(name: str, folder: Path, tmp_path: Path) -> None:
    source = folder / name
    code, report = called(
        "emit", source, "-o", tmp_path / "out", "--format", "hf,onnx,torchscript", "--verify"
    )
    assert code == 0
    assert [row["name"] for row in report["formats"]] == ["hf", "onnx", "torchscript"]
    assert [row["passed"] for row in report["checks"]] == [True, True, True]
    checkpoint = source / "hf" if name == "small" else source
    wanted = logits(checkpoint)
    np.testing.assert_array_equal(logits(tmp_path / "out" / "hf"), wanted)
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"))
    (found,) = session.run(None, {v.name: feeds[v.name] for v in session.get_inputs()})
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"{report['params']:,} parameters" in card
    assert ("trust_remote_code=True" in card) == (name == "small")


def test_a_recipe_repeats_it(folder: Path, tmp_path: Path) -> None:
    called("emit", folder / "llama", "-o", tmp_path / "out", "--format", "torchscript")
    recipe = tmp_path / "out" / "recipe.yaml"
    code, report = called("emit", "--recipe", recipe, "-o", tmp_path / "again")
    assert code == 0
    assert [row["name"] for row in report["formats"]] == ["torchscript"]


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    code, report = called("emit", folder / "llama", "-o", tmp_path / "out", "--dry-run")
    assert code == 0
    assert report["formats"] == []
    assert not (tmp_path / "out").exists()


BAD = {
    "no output": ((), "P812"),
    "unknown format": (("-o", "OUT", "--format", "gguf"), "P810"),
    "the model itself": (("-o", "MODEL", "--overwrite"), "P821"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_diagnostic_for_each_mistake(case: str, folder: Path, tmp_path: Path) -> None:
    given, wanted = BAD[case]
    places = {"OUT": tmp_path / "out", "MODEL": folder / "llama"}
    code, document = called("emit", folder / "llama", *(places.get(g, g) for g in given))
    (said,) = document["error"]["diagnostics"]
    assert (code, said["code"]) == (2, wanted)
    assert said["help"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("formats", [(), ("--format", "hf")])
def test_an_onnx_file_is_one_already(
    formats: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not read before it is refused")
    code, document = called("emit", tmp_path / "model.onnx", "-o", tmp_path / "out", *formats)
    (said,) = document["error"]["diagnostics"]
    assert (code, said["code"]) == (2, "P816")
    assert "checkpoint that" in said["help"]
