"""`prunec eval x.onnx`: perplexity of exported decoders, similarity of exported encoders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worded

from prunec.cli.app import main

WINDOW = 24


class Chosen(torch.nn.Module):
    """Token ids and a mask in, one output out: by its position, or pooled over the tokens."""

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return found.mean(1) if self.pooled else found


def exported(folder: Path, kind: str, *, length: int | None = None, pooled: bool = False) -> Path:
    """A file with a tokenizer beside it; `length` fixes how many tokens it reads."""
    folder.mkdir()
    worded.tokenizer().save_pretrained(folder)
    model = worded.build(kind).eval()
    model.config.use_cache = False
    ids = torch.arange(length or 7)[None] % worded.WORDS
    dims = {0: "batch"} if length else {0: "batch", 1: "sequence"}
    torch.onnx.export(
        Chosen(model, pooled), (ids, torch.ones_like(ids)), str(folder / "model.onnx"),
        dynamo=False, opset_version=17, input_names=["input_ids", "attention_mask"],
        output_names=["scores"],
        dynamic_axes={"input_ids": dims, "attention_mask": dims, "scores": dims},
    )  # fmt: skip
    return folder / "model.onnx"


def windows() -> list[torch.Tensor]:
    ids = torch.tensor([i % worded.WORDS + 3 for i in range(100)])
    return list(ids[: 100 // WINDOW * WINDOW].reshape(-1, WINDOW))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(worded.text(100))
    return path


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--window", str(WINDOW), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return found


def pruned(model: Path, out: Path, target: str) -> Path:
    command = ["prune", str(model), "-o", str(out), "--target", target, "--method", "magnitude"]
    assert main([*command, "--json"]) == 0
    return out


def loss(model: Any) -> float:
    """Mean negative log-likelihood of every token but the first of each window."""
    with torch.no_grad():
        losses = [model(input_ids=w[None], labels=w[None]).loss.item() for w in windows()]
    return float(np.mean(losses))


def test_a_decoder_has_the_perplexity_that_torch_finds(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the exporter called its output."""
    model = exported(tmp_path / "m", "decoder")
    (row,) = rows(capsys, "eval", model, "--data", data)
    assert row["perplexity"] == pytest.approx(math.exp(loss(worded.build("decoder"))), rel=1e-5)
    assert row["similarity"] is None
    out = pruned(model, tmp_path / "small", "params=90%")
    dense, small = rows(capsys, "eval", out, "--data", data, "--against", model)
    assert dense["perplexity"] == row["perplexity"]
    assert small["perplexity"] == pytest.approx(dense["perplexity"], rel=0.5)
    assert small["perplexity"] != dense["perplexity"]
    assert small["params"] < dense["params"]


@pytest.mark.parametrize("pooled", [False, True], ids=["by token", "by text"])
def test_an_encoder_is_compared_with_the_dense_file(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], pooled: bool
) -> None:
    model = exported(tmp_path / "m", "encoder", pooled=pooled)
    out = pruned(model, tmp_path / "small", "params=90%")
    dense, small = rows(capsys, "eval", out, "--data", data, "--against", model)
    assert (dense["perplexity"], dense["similarity"]) == (None, None)
    assert 0.9 < small["similarity"] < 1
    written = out / "onnx" / "model.onnx"
    expected = np.mean([cosine(model, written, window.numpy()) for window in windows()])
    assert small["similarity"] == pytest.approx(float(expected), abs=1e-6)
    same = rows(capsys, "eval", model, "--data", data, "--against", model)
    assert same[1]["similarity"] == pytest.approx(1)


def cosine(one: Path, other: Path, ids: Any) -> float:
    """Of the mean outputs of a window, by ONNX Runtime alone."""
    from onnx_files import run

    feeds = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
    a, b = (run(path, feeds)[0].reshape(-1, 16).mean(0) for path in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_windows_are_as_long_as_a_file_of_fixed_size_reads(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = exported(tmp_path / "fixed", "decoder", length=20)
    free = exported(tmp_path / "free", "decoder")
    (row,) = rows(capsys, "eval", fixed, "--data", data)
    main(["eval", str(free), "--data", str(data), "--window", "20", "--json"])
    (wanted,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["perplexity"] == pytest.approx(wanted["perplexity"], rel=1e-5)
