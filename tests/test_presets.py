"""Every preset of `--method` from a saved model to what remains of it, on tiny models."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worded
import zoo

from prunec.ir.diagnostics import Exit
from prunec.measuring.breakdown import source_rows
from prunec.options.prune import PruneOptions
from prunec.options.target import parse_target
from prunec.passes.methods import PRESETS
from prunec.progress import Silent
from prunec.reports.summary import prune_report
from prunec.runs import calibrating
from prunec.runs import run as runs
from prunec.runs.loading import SlicedWeights, load
from prunec.verbs.pipeline import Pruned, prune, run_passes

MODELS = ("llama", "bert")
SAMPLES, LENGTH = 6, 32
SHARE = 70
METHODS = (*PRESETS, "auto,restore=cross", "auto,allocate=evolutionary", "ziplm,criterion=obs-swap")
"""All presets, and combinations of parts that no preset has."""
CHANGED: dict[str, set[str]] = {"none": set(), "bias": {"bias"}}
"""What restorers change of a layer; others change all of it."""
HAS = {"llama": {"weight"}, "bert": {"weight", "bias"}}
"""What layers have; llama has no biases, and gets none."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder and an encoder with a tokenizer of words, and a text of words at random."""
    root = tmp_path_factory.mktemp("presets")
    for name in MODELS:
        zoo.build(name).save_pretrained(root / name)
        worded.tokenizer().save_pretrained(root / name)
    words = random.Random(0).choices(range(worded.WORDS), k=8 * SAMPLES * LENGTH)
    (root / "text.txt").write_text(" ".join(f"w{i}" for i in words))
    return root


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Any:
    """All presets of a model share its tracing, which takes longer than all the rest."""
    once = lru_cache(maxsize=len(MODELS))(
        lambda model: load(
            model, trust_remote_code=False, need_weights=True, hashed=True, progress=Silent()
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load", lambda model, **_: once(model))
        # a batch for each window: of five or more one is held apart to judge restoring by
        patch.setattr(calibrating, "TOKENS_AT_ONCE", LENGTH)
        yield


def asked(folder: Path, model: str, method: str, **options: Any) -> PruneOptions:
    return PruneOptions(
        model=str(folder / model),
        targets=(parse_target(f"blocks={SHARE}%"),),
        method=method,
        calibration=str(folder / "text.txt"),
        calibration_samples=SAMPLES,
        calibration_length=LENGTH,
        layout="per-layer",
        **options,
    ).settle()


def pruned(folder: Path, model: str, method: str, **options: Any) -> Pruned:
    return run_passes(asked(folder, model, method, dry_run=True, **options), Silent())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_a_preset_meets_the_target_and_leaves_a_whole_model(
    model: str, method: str, folder: Path
) -> None:
    found = pruned(folder, model, method)
    report = prune_report(found, (), (), source_rows(found, Silent()))

    (target,) = report.targets
    neurons = [g.params_per_index for g in report.groups if g.role == "neuron"]
    assert target.met
    assert target.limit - target.left <= sum(neurons), "less than a neuron of each layer too few"

    parameters = found.rewritten.graph.parameters
    assert sum(1 for g in report.groups if g.kept is not None and g.kept < g.size) >= 2
    for name, parameter in parameters.items():
        assert found.weights[name].shape == tuple(parameter.type.shape), name
        assert np.isfinite(found.weights[name]).all(), name
    for row in report.sources:
        assert np.isfinite(row.pruned)
        assert row.pruned < 1.5 * row.dense if model == "llama" else row.pruned < 1

    sliced = SlicedWeights(found.loaded.weights, found.rewritten.kept)
    changed = {n for n in parameters if not np.array_equal(found.weights[n], sliced[n])}
    expected = CHANGED.get(found.options.restore, HAS[model]) & HAS[model]
    assert {name.rsplit(".", 1)[1] for name in changed} == expected


@pytest.mark.parametrize("method", ["auto", "flap", "slimllm", "osscar"])
def test_the_same_seed_gives_the_same_model(method: str, folder: Path) -> None:
    first, second = (pruned(folder, "llama", method, seed=3) for _ in range(2))
    assert first.compressed.selections.keys() == second.compressed.selections.keys()
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, second.weights[name])


@pytest.mark.parametrize("model", MODELS)
def test_presets_are_not_the_same_thing_by_many_names(model: str, folder: Path) -> None:
    """What they keep differs: a preset that fell back to another would not be noticed otherwise."""
    kept: dict[Any, str] = {}
    for method in ("magnitude", "taylor", "wanda-sp", "flap", "slimgpt", "slimllm", "minitron"):
        selections = pruned(folder, model, method).compressed.selections
        choice = tuple((name, s.keep.tobytes()) for name, s in sorted(selections.items()))
        assert choice not in kept, f"{method} keeps what {kept[choice]} keeps"
        kept[choice] = method


@pytest.mark.parametrize(("model", "method"), [("llama", "slimgpt"), ("bert", "flap")])
def test_widths_that_differ_by_layer_are_written(
    model: str, method: str, folder: Path, tmp_path: Path
) -> None:
    """The smaller model is the masked one, and what was written loads and does the same."""
    report = prune(asked(folder, model, method, out=tmp_path / "out", verify=True), Silent())
    assert report.exit_code == Exit.DONE
    assert {check.name: check.passed for check in report.checks} == {"law 1": True, "hf": True}
    widths = {g.kept for g in report.groups if g.role == "neuron"}
    assert len(widths) == 2, "each of the two layers has its own"
