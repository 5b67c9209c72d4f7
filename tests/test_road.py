"""`prunec run`: several stages in one resumable run, on a decoder that has learned to count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from counting import LENGTH, counter, refused, run

from prunec.options.plain_yaml import load_yaml
from prunec.recovery import run as recovering
from prunec.road.planning import plan_road
from prunec.road.reading import read_road

STAGES = ["1-prune", "2-recover", "3-quantize", "4-eval"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("road")
    counter(root)
    return root


def road(home: Path, **changes: dict[str, Any]) -> Path:
    """A recipe of the whole road; `changes` by verb."""
    text = str(home / "count.txt")
    stages: dict[str, dict[str, Any]] = {
        "prune": {
            "target": "blocks=50%", "method": "wanda-sp", "calibration": text,
            "calibration-length": LENGTH, "layout": "per-layer", "round-to": 16,
        },
        "recover": {
            "data": text, "steps": 20, "batch": 4, "length": LENGTH, "rank": 4, "lr": 1e-2,
            "save-every": 10,
        },
        "quantize": {"quantize": "int8", "activations": "float", "block": 16},
        "eval": {"data": text, "window": LENGTH, "max-windows": 10},
    }  # fmt: skip
    content = {
        "model": str(home / "dense"),
        "stages": [{verb: given | changes.get(verb, {})} for verb, given in stages.items()],
    }
    path = home / "road.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def done(home: Path) -> tuple[dict[str, Any], Path]:
    """The whole road, interrupted once while it recovers."""
    out, recipe = home / "out", road(home)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovering, "recover", broken)
        code, _ = run("run", recipe, "-o", out)
    assert code == 130
    assert [p.name for p in sorted(out.iterdir()) if p.is_dir()] == ["1-prune"]
    assert (out / "1-prune" / "hf" / "config.json").is_file(), "what is done is usable"
    code, report = run("run", recipe, "-o", out)
    assert code == 0, report
    return report, out


def test_all_stages_in_one_run(done: tuple[dict[str, Any], Path]) -> None:
    report, out = done
    assert [row["name"] for row in report["stages"]] == STAGES
    assert [row["kept"] for row in report["stages"]] == [True, False, False, False]
    prune, recover, quantize, evaluation = (row["told"] for row in report["stages"])
    assert prune["targets"][0]["met"]
    assert recover["after"] < recover["before"]
    assert recover["teacher"] == report["model"], "the dense model teaches unless told otherwise"
    assert quantize["operations"]["MatMulNBits"] >= 14
    dense, small = evaluation["rows"]
    assert dense["dense"]
    assert small["bytes"] < dense["bytes"]
    assert small["perplexity"] < 60, "it still knows more than how many words there are"
    assert json.loads((out / "report.json").read_text())["stages"][3]["told"] == evaluation


def test_each_stage_reads_what_the_one_before_left(done: tuple[dict[str, Any], Path]) -> None:
    report, out = done
    models = [row["told"].get("model") for row in report["stages"][:3]]
    assert models[1:] == [str(out / "1-prune" / "hf"), str(out / "2-recover" / "hf")]
    session = onnxruntime.InferenceSession(str(out / "3-quantize" / "onnx" / "model.onnx"))
    ids = np.arange(3, 3 + LENGTH)[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits = session.run(None, {v.name: feeds[v.name] for v in session.get_inputs()})[0]
    assert (logits[0, 4:-1].argmax(-1) == ids[0, 5:]).mean() > 0.5, "it counts"


def test_a_second_run_does_nothing_again(done: tuple[dict[str, Any], Path], home: Path) -> None:
    report, out = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    code, again = run("run", home / "road.yaml", "-o", out)
    assert code == 0
    assert all(row["kept"] for row in again["stages"])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    assert [r["told"] for r in again["stages"]] == [r["told"] for r in report["stages"]]


def test_what_changed_is_done_again_and_all_after_it(
    done: tuple[dict[str, Any], Path], home: Path
) -> None:
    _, out = done
    changed = road(home, quantize={"block": 32})
    _, report = run("run", changed, "-o", out, "--dry-run")
    assert [bool(row["key"]) for row in report["stages"]] == [True, True, False, False]
    code, report = run("run", changed, "-o", out)
    assert code == 0
    assert [row["kept"] for row in report["stages"]] == [True, True, False, False]
    (home / "count.txt").touch()  # data are told apart by size and time
    _, report = run("run", changed, "-o", out, "--dry-run")
    assert [bool(row["key"]) for row in report["stages"]] == [False] * 4


@pytest.mark.parametrize("stage", ["", *STAGES[:3]])
def test_the_recipe_beside_each_output_is_one(
    stage: str, done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, out = done
    code, report = run("run", out / stage / "recipe.yaml", "-o", tmp_path / "again", "--dry-run")
    assert code == 0
    verbs = [stage.partition("-")[2]] if stage else [s.partition("-")[2] for s in STAGES]
    assert [row["verb"] for row in report["stages"]] == verbs


def test_a_stage_alone_from_its_own_recipe(
    done: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, out = done
    code, _ = run("run", out / "3-quantize" / "recipe.yaml", "-o", tmp_path / "again")
    assert code == 0
    first, again = (
        (folder / "onnx" / "model.onnx").read_bytes()
        for folder in (out / "3-quantize", tmp_path / "again" / "1-quantize")
    )
    assert first == again


BAD = {
    "unknown stage": ("stages: [{prnue: {}}]", "P880", "did you mean prune?"),
    "unknown option": ("stages: [{prune: {targt: params=75%}}]", "P841", "did you mean targets?"),
    "unknown key": ("{stages: [prune], modle: x}", "P841", "did you mean model?"),
    "wrong type": ("stages: [{quantize: {quantize: 8}}]", "P841", "quotes"),
    "a switch": ("stages: [{prune: {steps: true}}]", "P841", ""),
    "no stages": ("model: x", "P880", "prunec run --help"),
    "empty": ("stages: []", "P880", "prune"),
    "two verbs": ("stages: [{prune: {}, eval: {}}]", "P880", "one verb"),
    "no options": ("stages: [{prune: 7}]", "P880", "one verb"),
    "no data": ("stages: [recover]", "P812", "data"),
    "not YAML": ("stages: [", "P840", "recipe"),
    "no verb": ("verb: fly", "P880", "one of prune"),
    "no model": ("stages: [{quantize: {quantize: int8}}]", "P900", "MODEL"),
    "missing model": ("{model: ./nothing, stages: [{quantize: {quantize: int8}}]}", "P100", ""),
    "refused by the verb": ("{model: DENSE, stages: [{prune: {target: params=0%}}]}", "P802", ""),
    "after quantising": (
        "{model: DENSE, stages: [{quantize: {quantize: int8}}, {quantize: {quantize: int4}}]}",
        "P881", "quantise last",
    ),
    "nothing to train": (
        "{model: DENSE, stages: [{sparsify: {sparsity: 2:4, method: magnitude, format: onnx}},"
        " {recover: {data: self}}]}",
        "P881", "add hf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_one_diagnostic_for_a_bad_recipe(case: str, home: Path, tmp_path: Path) -> None:
    text, wanted, remedy = BAD[case]
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(text.replace("DENSE", str(home / "dense")))
    code, document = run("run", recipe, "-o", tmp_path / "out")
    (said,) = document["error"]["diagnostics"]
    assert code == (1 if wanted == "P100" else 2), "a missing model is no wrong usage"
    assert said["code"] == wanted
    assert remedy in said["help"]
    assert not (tmp_path / "out").exists()


def test_the_mistakes_of_all_stages_at_once(home: Path, tmp_path: Path) -> None:
    recipe = road(home, prune={"method": "magic"}, quantize={"quantize": "int9"})
    code, document = run("run", recipe, "-o", tmp_path / "out")
    places = [said["where"] for said in document["error"]["diagnostics"]]
    assert code == 2
    assert places == ["stage 1-prune, --method", "stage 3-quantize, --quantize"]


def test_a_folder_that_is_no_run_stays(home: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, message = refused("run", road(home), "-o", tmp_path)
    assert code == 2
    assert "no folder of prunec run" in message
    assert (tmp_path / "thesis.txt").exists()


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("[2:4, 1e-4, 12, -3, 1.5, 50%, 4:8, '7', true, .5, 010, 0]")
    found = ["2:4", 1e-4, 12, -3, 1.5, "50%", "4:8", "7", True, 0.5, "010", 0]
    assert load_yaml(file) == found


@pytest.mark.parametrize(
    ("quantize", "given", "wanted"),
    [
        ({"quantize": "int4", "block": 64}, {}, 64),
        ({"quantize": "int8", "activations": "float"}, {}, 32),
        ({"quantize": "int4"}, {"round-to": 8}, 8),
        ({"quantize": "int8"}, {}, None),
    ],
)
def test_widths_are_whole_blocks_of_the_quantisation_that_follows(
    quantize: dict[str, Any], given: dict[str, Any], wanted: int | None, home: Path, tmp_path: Path
) -> None:
    stages = [{"prune": {"target": "blocks=50%"} | given}, {"quantize": quantize}]
    path = tmp_path / "road.yaml"
    path.write_text(yaml.safe_dump({"model": str(home / "dense"), "stages": stages}))
    planned = plan_road(read_road(path), tmp_path / "out", trust=False)
    assert planned[0].options.round_to == wanted
