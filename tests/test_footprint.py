"""`memory=` and `flops=`, counted from the ONNX file that a run wrote and from nothing else.

The file is run with the inputs of every product exposed: how many multiply-adds it takes follows
from the shapes that ONNX Runtime saw.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zoo

from prunec.cli.app import main

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
BATCH, LENGTH = 2, 24
WITHIN = 0.01

MODELS: dict[str, dict[str, Any]] = {
    "llama_tied": {"intermediate_size": 160},
    "gpt2": {},
    "bert": {"intermediate_size": 160},
    "vit": {},
    "resnet": {"embedding_size": 24, "hidden_sizes": [48, 40]},
}
WRITERS = ("llama_tied", "gpt2")
"""Those that keep keys and values."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model with random weights."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            zoo.build(name, **MODELS[name]).save_pretrained(root / name)
        return root / name

    return folder


def prune(model: Path, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    printed, told = io.StringIO(), io.StringIO()
    arguments = ["prune", str(model), "-o", str(out), "--method", "magnitude", *options, "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(arguments)
    assert printed.getvalue(), told.getvalue()
    return code, json.loads(printed.getvalue())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], dict[str, int]]:
    """What the benchmark of the same name counts in a file."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    count = importlib.import_module("footprint").count
    return lambda path, model: count(path, BATCH, LENGTH, model in WRITERS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_flops_are_those_of_the_file(
    saved: Callable[[str], Path],
    counted: Callable[[Path, str], dict[str, int]],
    tmp_path: Path,
    model: str,
    layout: str,
) -> None:
    code, report = prune(
        saved(model), tmp_path / "out", "--target", "flops=70%", "--format", "onnx",
        "--batch", str(BATCH), "--length", str(LENGTH), "--layout", layout,
    )  # fmt: skip
    found = counted(tmp_path / "out" / "onnx" / "model.onnx", model)["flops"]
    (target,) = report["targets"]
    assert code == 0
    assert found == target["left"]
    assert found / target["dense"] == pytest.approx(0.7, rel=WITHIN)


@pytest.mark.parametrize("model", MODELS)
def test_memory_is_that_of_the_file(
    saved: Callable[[str], Path],
    counted: Callable[[Path, str], dict[str, int]],
    tmp_path: Path,
    model: str,
) -> None:
    code, report = prune(
        saved(model), tmp_path / "out", "--target", "memory=80%", "--format", "onnx",
        "--batch", str(BATCH), "--length", str(LENGTH), "--layout", "per-layer",
    )  # fmt: skip
    (target,) = report["targets"]
    found = counted(tmp_path / "out" / "onnx" / "model.onnx", model)
    assert code == 0
    assert found["cache"] == report["pruned"]["kv_cache_bytes"]
    assert bool(found["cache"]) == (model in WRITERS)
    assert (found["weights"] + found["cache"]) / target["limit"] == pytest.approx(1, rel=WITHIN)


def test_targets_combine(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """The tighter one decides; both hold."""
    code, report = prune(
        saved("llama_tied"), tmp_path / "out", "--target", "params=90%", "--target", "flops=60%",
        "--target", "memory=1MB", "--format", "onnx", "--layout", "per-layer", "--dtype", "f16",
    )  # fmt: skip
    assert code == 0
    shares = {t["text"]: t["left"] / t["limit"] for t in report["targets"]}
    assert max(shares.values()) == pytest.approx(1, rel=WITHIN)
    assert all(share <= 1 for share in shares.values())


def test_a_target_that_no_width_meets(
    saved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", str(saved("llama_tied")), "-o", str(tmp_path / "out")]
    code = main([*arguments, "--target", "memory=10KB", "--method", "magnitude"])
    told = capsys.readouterr().err
    assert code == 3
    assert "P403" in told
    assert "bytes of memory remain" in told
    assert "ask for at least memory=" in told
    assert not (tmp_path / "out").exists()
