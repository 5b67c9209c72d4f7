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
SHARED = {
    "common", "compose_page", "quality_page", "quality_plot", "quality_rows", "random_llama",
    "runtimes", "rival_home", "survivors", "torch_pruning_llama", "torch_pruning_rows",
}  # fmt: skip
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
    assert {*load("all").NAMES, *load("all").LONG, "all"} == names
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

    made = load("random_llama")
    folder = made.random_llama(tmp_path, "tiny", "float16")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    shapes = load("runtimes").checkpoint(folder)
    assert sum(map(math.prod, shapes.values())) == sum(p.numel() for p in model.parameters())
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert abs(float(model.model.norm.weight.detach().float().mean()) - 1) < 0.05


# quality.py: its commands answer at once, and from what they are asked


class Answers:
    """Stands for `common.run`: dense perplexity 20, and what each method makes of it."""

    def __init__(self, ratios: dict[str, float], encoder: bool = False) -> None:
        self.ratios, self.encoder = ratios, encoder
        self.asked: list[list[str]] = []

    def __call__(self, command: Any, **_: Any) -> Any:
        from common import Finished

        words = [str(word) for word in command][1:]
        self.asked.append(words)
        code, document = getattr(self, f"_{words[0]}")(words)
        told = "" if code == 0 else "error[P999]: no luck"
        return Finished(tuple(words), code, 2.0, 3.0, 10**9, None, json.dumps(document), told)

    def _inspect(self, words: list[str]) -> tuple[int, Any]:
        sizes = {"params": 1000, "blocks": 500, "flops": 10**9, "length": 512}
        return 0, {"sizes": sizes}

    def _prune(self, words: list[str]) -> tuple[int, Any]:
        method, out = words[words.index("--method") + 1], Path(words[words.index("-o") + 1])
        if method not in self.ratios:
            return 1, None
        (out / "hf").mkdir(parents=True)
        (out / "method").write_text(method)
        sizes = {"params": 900, "blocks": 400, "flops": 8 * 10**8, "length": 512}
        groups = [{"role": "neuron", "size": 80, "kept": kept} for kept in (40, 60)]
        return 0, {"pruned": sizes, "seconds": {"trace": 0.5, "prune": 1.0}, "groups": groups}

    def _eval(self, words: list[str]) -> tuple[int, Any]:
        out = Path(words[1]).parent / "method"
        ratio = self.ratios[out.read_text()] if out.exists() else 1.0
        value = None if ratio == math.inf else 20 * ratio
        row = {"dense": False, "perplexity": value, "similarity": None}
        if self.encoder:
            against = "--against" in words
            row |= {"perplexity": None, "similarity": 1 / ratio if against else None}
        return 0, {"rows": [{"dense": True}, row] if "--against" in words else [row]}


@pytest.fixture
def quality(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs quality.py on a folder that is no model with the answers given."""
    module = load("quality")
    for name in ("wikitext2-valid.txt", "wikitext2-test.txt"):
        (tmp_path / name).write_text("a text")
    (tmp_path / "m").mkdir()
    common = ["--data-dir", tmp_path, "--state", tmp_path / "q.jsonl", "--models", tmp_path / "m"]

    def run(answers: Answers, *options: object) -> Any:
        monkeypatch.setattr(module, "measured", answers)
        return module.run([str(word) for word in (*common, *options)])

    return run


def met(found: Any) -> dict[str, bool]:
    return {figure["what"]: figure["met"] for figure in found["figures"]}


def test_the_most_telling_rows_are_measured_first(load: Any) -> None:
    rows = load("quality_rows")
    found = rows.order(["a", "b"], [90, 80, 70, 60], ["auto", "flap"])
    assert len(found) == len(set(found)) == 16
    assert [(row.model, row.share) for row in found[::2]] == [
        ("a", 80), ("a", 60), ("b", 80), ("b", 60), ("a", 90), ("a", 70), ("b", 90), ("b", 70),
    ]  # fmt: skip
    assert [row.method for row in found[:2]] == ["auto", "flap"]


def test_quality_is_told_against_dense_and_against_the_best(quality: Any) -> None:
    answers = Answers({"auto": 1.2, "flap": 1.19, "magnitude": math.inf})
    found = quality(answers, "--shares", 80, "--methods", "auto", "flap", "magnitude")
    dense, auto, _, magnitude = found["rows"]
    assert dense["quality"] == dict.fromkeys(["wikitext", "docs", "code"], 20)
    assert auto["ratio"]["docs"] == pytest.approx(1.2)
    assert (auto["params"], auto["flops"], auto["seconds"]) == (900, 8 * 10**8, 2.0)
    assert (auto["peak_rss"], auto["parts"]["prune"]) == (10**9, 1.0)
    assert auto["kept"] == {"neuron": {"share": 0.625, "least": 0.5, "most": 0.75}}
    assert magnitude["quality"]["code"] is None
    assert met(found) == {
        "rows that failed": True,
        "m 80 %, wikitext: auto over flap": True,
        "m 80 %, docs: auto over flap": True,
        "m 80 %: spread of counts": True,
    }
    texts = {words[words.index("--data") + 1] for words in answers.asked if words[0] == "eval"}
    assert {Path(text).name for text in texts} == {"wikitext2-test.txt", "docs.txt", "code.txt"}
    assert all("per-layer" in words for words in answers.asked if words[0] == "prune")


def test_auto_behind_another_is_not_met(quality: Any) -> None:
    found = quality(Answers({"auto": 1.2, "fasp": 1.18}), "--methods", "auto", "fasp")
    assert [row["share"] for row in found["rows"]] == [100, *[80] * 2, *[60] * 2, 90, 90, 70, 70,
                                                       50, 50]  # fmt: skip
    assert not met(found)["m 60 %, wikitext: auto over fasp"]
    assert met(found)["m 60 %, docs: auto over fasp"]


def test_bounds_on_auto_itself_hold_for_smollm2_as_promised(load: Any) -> None:
    def row(share: int, ratio: float) -> dict[str, Any]:
        texts = ("wikitext", "docs", "code")
        kind = {"model": "smollm2", "share": share, "method": "auto", "metric": "perplexity"}
        quality, ratios = dict.fromkeys(texts, 23.5 * ratio), dict.fromkeys(texts, ratio)
        return kind | {"params": 1, "quality": quality, "ratio": ratios}

    judged = load("quality").judged
    assert met({"figures": judged([row(80, 1.2), row(60, 1.8)], promised=True)}) == {
        "rows that failed": True,
        "smollm2 80 %: auto, perplexity": True,
        "smollm2 80 %, docs: auto over dense": True,
        "smollm2 80 %, code: auto over dense": True,
        "smollm2 60 %: auto, perplexity": False,
    }
    assert list(met({"figures": judged([row(80, 1.2)], promised=False)})) == ["rows that failed"]


def test_an_encoder_is_told_by_similarity_in_shorter_windows(quality: Any) -> None:
    answers = Answers({"auto": 1.01, "flap": 1.2}, encoder=True)
    found = quality(answers, "--shares", 60, "--methods", "auto", "flap")
    assert [row["metric"] for row in found["rows"]] == ["similarity"] * 3
    assert found["rows"][0]["quality"]["wikitext"] == 1
    assert found["rows"][1]["quality"]["wikitext"] == pytest.approx(1 / 1.01)
    assert all(met(found).values())
    last = answers.asked[-1]
    assert (last[last.index("--window") + 1], last[last.index("--max-windows") + 1]) == (
        "128",
        "80",
    )


def test_a_run_that_fails_is_a_row_and_is_tried_again(quality: Any) -> None:
    options = ("--shares", 80, "--methods", "flap", "taylor")
    found = quality(Answers({"flap": 1.3}), *options)
    assert found["rows"][2]["error"] == "exit code 1: error[P999]: no luck"
    assert not met(found)["rows that failed"]
    again = Answers({"taylor": 1.5})
    found = quality(again, *options)
    assert [words[words.index("--method") + 1] for words in again.asked if "--method" in words] == [
        "taylor"
    ]
    assert [row["method"] for row in found["rows"]] == ["dense", "flap", "taylor"]
    assert not any("error" in row for row in found["rows"])


def test_rows_hold_for_their_settings_and_survive_a_cut(quality: Any, tmp_path: Path) -> None:
    options = ("--shares", 80, "--methods", "flap")
    quality(Answers({"flap": 1.3}), *options)
    with (tmp_path / "q.jsonl").open("a") as stream:
        stream.write('\n{"of": {"model": "cut o')
    other = Answers({"flap": 1.4})
    quality(other, *options, "--samples", 8)
    assert len(other.asked) == 8, "inspect and three texts; prune and three texts"
    last = Answers({})
    assert quality(last, *options, "--samples", 8)["rows"][1]["ratio"]["code"] == 1.4
    assert quality(last, *options)["rows"][1]["ratio"]["code"] == 1.3
    assert not last.asked


def test_the_page_shows_what_there_is_and_what_is_missing(quality: Any, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    methods = ("--methods", "magnitude", "flap", "auto", "taylor")
    quality(Answers({"magnitude": math.inf, "flap": 1.5, "auto": 1.25}), "--shares", 80, *methods)
    found = quality(
        Answers({}), "--shares", 80, 60, *methods, "--write", tmp_path / "docs"
    )  # measures nothing
    assert (found["rows"], found["plotted"], len(found["missing"])) == (5, 9, 4)
    page = (tmp_path / "docs" / "quality.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "25.00" in line]
    assert rows == [
        "| `auto` | 0.00 M | 80.00% | 0.80 " + 3 * "| 25.00 | 1.25 " + "| 2 | 1.00 |  |"
    ]
    names = [line.split(" | ")[0] for line in page.splitlines() if " M | " in line]
    assert names == ["| dense", "| `auto`", "| `flap`", "| `magnitude`"]
    assert "overflows" in page
    assert "`taylor` failed: exit code 1: error[P999]: no luck" in page
    assert "Not measured: magnitude, flap, auto, taylor." in page
    assert "quality.py --write docs" in page
    plot = (tmp_path / "docs" / "quality.svg").read_text()
    words = {node.text for node in ElementTree.fromstring(plot).iter() if node.text}
    assert {"auto", "flap", "dense", "m, wikitext", "perplexity"} <= words
    quality(Answers({}), "--shares", 80, 60, *methods, "--write", tmp_path / "docs")
    assert (tmp_path / "docs" / "quality.svg").read_text() == plot, "the same rows, the same file"
