"""Benchmarks and the demo: they start, and their own arithmetic is right."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
SHARED = {"common", "runtimes", "torch_pruning_llama"}
COMMANDS = sorted(p for p in BENCHMARKS.glob("*.py") if p.stem not in SHARED)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark as it is imported when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def found(name: str) -> ModuleType:
        return importlib.import_module(name)

    return found


@pytest.mark.parametrize("path", [*COMMANDS, ROOT / "examples" / "demo.py"], ids=lambda p: p.stem)
def test_help_is_the_docstring(path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True
    ).stdout
    first = path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]
    assert first in told


def test_every_benchmark_is_run_by_all_and_told_in_the_readme(load: Any) -> None:
    names = {path.stem for path in COMMANDS}
    assert {*load("all").NAMES, "all"} == names
    told = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert all(f"{name}.py" in told for name in names)


def test_a_command_is_measured(load: Any) -> None:
    code = "import time; kept = b'x' * 200_000_000; time.sleep(0.5); print('{\"a\": 1}')"
    finished = load("common").run([sys.executable, "-c", code])
    assert finished.expect(0).json() == {"a": 1}
    assert finished.seconds > 0.5
    assert finished.peak_rss > 200e6
    assert finished.peak_anonymous is None or finished.peak_anonymous > 200e6


def test_a_command_that_takes_too_long_is_ended(load: Any) -> None:
    finished = load("common").run(
        [sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3
    )
    assert finished.exit_code == -9
    assert finished.seconds < 30


def test_a_command_that_fails_ends_the_benchmark(load: Any) -> None:
    finished = load("common").run([sys.executable, "-c", "raise SystemExit('no luck')"])
    with pytest.raises(SystemExit, match="no luck"):
        finished.expect(0)


@pytest.mark.parametrize(
    ("found", "bounds", "met"),
    [
        (1.0, {"most": 1.0}, True),
        (1.1, {"most": 1.0}, False),
        (0.9, {"least": 0.9}, True),
        (0.8, {"least": 0.9}, False),
        (math.nan, {"most": 1.0}, False),
        (math.inf, {"most": 1.0}, False),
        (None, {"most": 1.0}, False),
    ],
)
def test_figures(load: Any, found: float | None, bounds: dict[str, float], met: bool) -> None:
    (row,) = load("common").figures(load("common").Figure("x", found, **bounds))
    assert row["met"] is met


def test_parameters_are_counted_in_the_file(load: Any, tmp_path: Path) -> None:
    """Written by the library, read from the bytes; tables and heads are not in the blocks."""
    from safetensors.numpy import save_file

    tensors = {
        "model.embed_tokens.weight": np.zeros((7, 4), np.float32),
        "model.layers.0.mlp.down_proj.weight": np.zeros((4, 6), np.float16),
        "model.norm.weight": np.zeros(4, np.float32),
        "lm_head.weight": np.zeros((7, 4), np.float32),
        "position_ids": np.zeros(9, np.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    shapes = load("runtimes").checkpoint(tmp_path)
    assert shapes.keys() == tensors.keys() - {"position_ids"}
    assert load("matrix")._blocks(shapes) == 4 * 6 + 4


def test_rows_that_are_done_are_kept(load: Any, tmp_path: Path) -> None:
    matrix = load("matrix")
    path = tmp_path / "rows.jsonl"
    row = matrix.Row("smollm2", 90, "uniform", "magnitude", "none", 16, 0.005)
    other = matrix.Row("smollm2", 75, "uniform", "magnitude", "none", 16, 0.005)
    state = matrix._State(path, fresh=False)
    state.put(row, {"problems": [], "formats": {}})
    state.put(other, {"problems": ["hf: lost"], "formats": {}})
    with path.open("a") as stream:
        stream.write('{"of": {"model": "sm')  # the run was killed here
    again = matrix._State(path, fresh=False)
    assert again.get(row)["share"] == 90
    assert again.get(other) is None, "what failed is tried again"
    assert matrix._State(path, fresh=True).get(row) is None


def test_the_made_model_is_what_its_configuration_says(load: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    large = load("large_magnitude")
    folder = large._model(tmp_path, "tiny", "float16")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    shapes = load("runtimes").checkpoint(folder)
    assert sum(map(math.prod, shapes.values())) == sum(p.numel() for p in model.parameters())
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert abs(float(model.model.norm.weight.detach().float().mean()) - 1) < 0.05
