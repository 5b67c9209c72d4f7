"""One decoding step: traced with its cache, timed, planned for."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from test_timing import PLAIN, Pretended, counted
from transformers import PreTrainedModel

from prunec.backends.torch_module import to_fx
from prunec.cli.app import main
from prunec.frontends.torch_hf import trace_hf
from prunec.frontends.torch_step import grown, past_shapes, trace_step
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Graph
from prunec.output.tensor_view import TensorView
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.regions import find_regions
from prunec.timing.program import Program
from prunec.timing.stopwatch import Stopwatch

EXACT = 1e-5
"""Both compute in float32, in the order of the same operations."""


def model(name: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = zoo.build(name, **settings).eval()
    return made


def told(*arguments: str) -> tuple[int, dict[str, Any], str]:
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main([*arguments, "--json"])
    return code, json.loads(printed.getvalue() or "{}"), errors.getvalue()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    model("llama", num_hidden_layers=3, intermediate_size=512).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_a_step_is_what_the_model_does_next(name: str) -> None:
    """Gemma's windows are shorter than what was read before."""
    dense = model(name)
    tokens = torch.randint(0, 100, (2, 12))
    with torch.no_grad():
        before = dense(input_ids=tokens[:, :-1], use_cache=True).past_key_values
        past = [x for layer in before.layers for x in (layer.keys.clone(), layer.values.clone())]
        wanted = dense(input_ids=tokens[:, -1:], past_key_values=before, use_cache=True)
    traced = trace_step(dense, tokens.shape[1] - 1)
    buffers = {**dict(dense.named_buffers()), **dense.state_dict()}
    weights = {**{k: x.numpy() for k, x in buffers.items()}, **traced.constants}
    step: Any = to_fx(traced.graph, TensorView(weights, traced.graph))
    with torch.no_grad():
        found = step(tokens[:, -1:], *past)
    given = dict(zip([n for n, _ in traced.graph.outputs], _listed(found), strict=True))
    torch.testing.assert_close(given["logits"], wanted.logits, atol=EXACT, rtol=EXACT)
    for number, layer in enumerate(before.layers):
        kept = given[f"present_{number}_key"][:, :, -layer.keys.shape[2] :]
        torch.testing.assert_close(kept, layer.keys, atol=EXACT, rtol=EXACT)


def _listed(found: Any) -> list[torch.Tensor]:
    return list(found.values()) if isinstance(found, dict) else list(found)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3", "mixtral"])
def test_a_step_has_the_groups_and_regions_of_the_model(name: str) -> None:
    dense = model(name)
    whole = couple(trace_hf(dense).graph, ATEN)
    traced = trace_step(dense, 40)
    step = couple(traced.graph, ATEN, caches=grown(traced.graph))
    assert _places(step) == _places(whole)
    found = find_regions(step)
    assert {r.name for r in found} == {r.name for r in find_regions(whole)}
    layers = [region for region in found if region.role == "layer"]
    assert all(len(region.caches) == 2 for region in layers)


def _places(coupling: Coupling) -> dict[str, set[Any]]:
    return {group.name: set(group.places) for group in coupling.groups}


@pytest.mark.parametrize(
    ("groups", "steps"), [("neuron,query_head,kv_head", 1), ("layer", 1), ("neuron,kv_head", 2)]
)
def test_a_target_of_a_step_is_met(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, steps: int
) -> None:
    made = Pretended(counted)
    opened: list[Graph] = []

    def open_(watch: Stopwatch, program: Program) -> Any:
        opened.append(program.graph)
        return made.open(watch, program)

    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Stopwatch, "open", open_)
    monkeypatch.setattr(Stopwatch, "race", lambda self, p, laps=(): made.race(p, laps))
    data = ("--calibration", "self", "--calibration-samples", "2", "--calibration-length", "16")
    code, report, errors = told(
        "prune", str(llama), "-o", str(tmp_path / "out"), "--target", "speedup=1.25x",
        "--phase", "decode", "--length", "64", "--groups", groups, "--steps", str(steps),
        *(data if groups == "layer" else ("--method", "magnitude")), "--format", "hf",
    )  # fmt: skip
    assert code == 0, errors
    time = report["notes"]["time"]
    assert (time["phase"], time["length"]) == ("decode", 64)
    assert time["speedup"] >= 1.25 * 0.97
    assert time["predicted"] == pytest.approx(time["pruned"], rel=0.05)
    models = [g for g in opened if any(name.startswith("present") for name, _ in g.outputs)]
    whole, last = models[0], models[-1]
    assert "past" in whole.symbols
    assert dict(whole.outputs).keys() >= {"logits", "present_0_key"}
    left = len(report["removed"])
    assert len(last.inputs) == len(whole.inputs) - 2 * left
    assert bool(left) == (groups == "layer")


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_bench_takes_a_step(llama: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    code, report, errors = told(
        "bench", str(llama), "--phase", "decode", "--batch", "3", "--length", "20",
        "--runtime", runtime, "--repeat", "2", "--threads", "1",
    )  # fmt: skip
    assert code == 0, errors
    (row,) = report["rows"]
    assert (report["phase"], row["runtime"]) == ("decode", runtime)
    assert row["tokens_per_second"] == pytest.approx(3 / row["median"])


def test_windows_hold_what_they_keep() -> None:
    from prunec.frontends.torch_step import empty_cache

    dense = model("gemma3")
    shapes = past_shapes(empty_cache(dense), 2, 40)
    window = dense.config.sliding_window
    assert shapes["past_0_key"][2] == window - 1 < 40


@pytest.mark.parametrize("verb", ["prune", "bench"])
def test_what_keeps_no_cache_takes_no_step(tmp_path: Path, verb: str) -> None:
    model("bert").save_pretrained(tmp_path / "bert")
    asked = ("-o", str(tmp_path / "out"), "--target", "latency=70%", *PLAIN)
    code, report, _ = told(
        verb, str(tmp_path / "bert"), "--phase", "decode", *(asked if verb == "prune" else ())
    )
    (error,) = report["error"]["diagnostics"]
    assert (code, error["code"]) == (2, "P868")
    assert "prefill" in error["help"]


def test_a_file_that_reads_whole_sequences_takes_no_step(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    code, _, errors = told("prune", str(llama), "-o", str(out), "--target", "params=80%", *PLAIN)
    assert code == 0, errors
    file = str(out / "onnx" / "model.onnx")
    code, report, _ = told("bench", file, "--phase", "decode")
    (error,) = report["error"]["diagnostics"]
    assert (code, error["code"]) == (2, "P868")
    assert "cache" in error["message"]
