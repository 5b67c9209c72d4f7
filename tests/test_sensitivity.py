"""`prunec sensitivity` against removals made by hand in the modules that the model consists of."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_experts
import torch
import zoo

from prunec.cli.app import main
from prunec.engines.damage import Damage
from prunec.ir.diagnostics import PrunecError
from prunec.progress import Silent
from prunec.verbs import sensitivity as subject
from prunec.verbs.sensitivity import SensitivityOptions, SensitivityReport, sensitivity

LAYERS, HEADS, INSIDE = 3, 6, 8
SAMPLES, LENGTH = 3, 16
CLOSE = 1e-5
"""Sums in float32 of logits near one, in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama, and beside it the tokens to measure on."""
    root = tmp_path_factory.mktemp("models")
    network().save_pretrained(root / "llama")
    np.savez(root / "data.npz", **{k: v.numpy() for k, v in tokens().items()})
    return root


def network() -> Any:
    module = zoo.build("llama", num_hidden_layers=LAYERS)
    with torch.no_grad():  # random weights this small change nothing
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return module


def tokens() -> dict[str, torch.Tensor]:
    ids = zoo.inputs("llama", batch=SAMPLES, length=LENGTH)["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def options(folder: Path, **changes: Any) -> SensitivityOptions:
    chosen: dict[str, Any] = {
        "calibration": str(folder / "data.npz"), "calibration_samples": SAMPLES,
        "calibration_length": LENGTH,
    }  # fmt: skip
    return SensitivityOptions(str(folder / "llama"), **{**chosen, **changes})


@pytest.fixture(scope="module")
def report(folder: Path) -> SensitivityReport:
    return sensitivity(options(folder), Silent())


def loss(module: Any) -> float:
    """Mean over all tokens but the first of each window."""
    given = tokens()
    with torch.no_grad():
        logits = module(**given, use_cache=False).logits[:, :-1].double()
    return float(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), given["input_ids"][:, 1:].flatten())
    )


def divergence(module: Any) -> float:
    with torch.no_grad():
        dense, other = (
            m(**tokens(), use_cache=False).logits.double().log_softmax(-1)
            for m in (network(), module)
        )
    return float((dense.exp() * (dense - other)).sum(-1).mean())


def without_layer(module: Any) -> None:
    del module.model.layers[1]


def without_mlp(module: Any) -> None:
    module.model.layers[2].mlp.down_proj.weight.data.zero_()


def without_head(module: Any) -> None:
    """The second query head of the second KV head."""
    at = (3 + 1) * INSIDE
    module.model.layers[0].self_attn.o_proj.weight.data[:, at : at + INSIDE] = 0


def without_kv_head(module: Any) -> None:
    module.model.layers[0].self_attn.o_proj.weight.data[:, 3 * INSIDE :] = 0


REMOVALS: dict[str, Callable[[Any], None]] = {
    "model.layers.1/layer": without_layer,
    "model.layers.2.mlp/sublayer": without_mlp,
    "model.layers.0.self_attn/query_head[4]": without_head,
    "model.layers.0.self_attn/kv_head[1]": without_kv_head,
}


@pytest.mark.parametrize("name", REMOVALS)
def test_a_row_is_what_removing_by_hand_gives(report: SensitivityReport, name: str) -> None:
    module = network()
    dense = loss(module)
    REMOVALS[name](module)
    (row,) = [row for row in report.rows if row.name == name]
    assert report.loss == pytest.approx(dense, rel=CLOSE)
    assert row.loss == pytest.approx(loss(module) - dense, abs=CLOSE * dense)
    assert row.divergence == pytest.approx(divergence(module), rel=1e-3, abs=CLOSE)
    increase = math.exp(loss(module)) - math.exp(dense)
    assert row.perplexity == pytest.approx(increase, rel=1e-3, abs=1e-2)


def test_everything_that_there_is(report: SensitivityReport) -> None:
    counts: dict[str, int] = {}
    for row in report.rows:
        counts[row.role] = counts.get(row.role, 0) + 1
    assert counts == {
        "query_head": LAYERS * HEADS,
        "kv_head": LAYERS * 2,
        "neuron": LAYERS * len(subject.RATIOS),
        "sublayer": 2 * LAYERS,
        "layer": LAYERS,
    }
    assert not report.skipped
    layers = [row.params for row in report.rows if row.role == "layer"]
    module = network()
    assert layers == [sum(p.numel() for p in module.model.layers[0].parameters())] * LAYERS


def test_fast_is_the_gradient_times_the_branch(folder: Path) -> None:
    found = sensitivity(options(folder, fast=True, groups=("sublayer",)), Silent())
    module = network()
    seen: list[torch.Tensor] = []
    module.model.layers[1].mlp.register_forward_hook(
        lambda _, __, out: (out.retain_grad(), seen.append(out))[1]
    )
    wanted = 0.0
    for ids in tokens()["input_ids"]:
        logits = module(ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[1:]).backward()
        branch = seen.pop()
        assert branch.grad is not None
        wanted += float((branch * branch.grad).sum(-1).abs().sum()) / SAMPLES
    (row,) = [row for row in found.rows if row.name == "model.layers.1.mlp/sublayer"]
    assert row.estimate == pytest.approx(wanted, rel=1e-3)
    assert math.isnan(row.loss)


class Stopped(Exception):
    pass


def test_a_killed_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before the end is not measured again, and the result is the same."""
    calls: list[str | None] = []
    call = Damage.__call__

    def counted(self: Damage, name: str | None, window: int, pieces: Any) -> None:
        calls.append(name)
        if len(calls) == 9:
            raise Stopped
        call(self, name, window, pieces)

    monkeypatch.setattr(Damage, "__call__", counted)
    monkeypatch.setattr(subject, "SAVE_EVERY", 0.0)
    asked = options(folder, groups=("layer", "sublayer"), out=tmp_path / "out")
    with pytest.raises(Stopped):
        sensitivity(asked, Silent())
    assert not (tmp_path / "out").exists()
    before = len(calls)
    resumed = sensitivity(asked, Silent())
    variants = 3 * LAYERS
    # one dense run a window that is not done; seven variants were done
    assert len(calls) - before == SAMPLES * (variants + 1) - 7
    monkeypatch.undo()
    fresh = sensitivity(options(folder, groups=("layer", "sublayer")), Silent())
    assert resumed.rows == fresh.rows
    written = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert len(written["rows"]) == variants
    assert (tmp_path / "out" / "sensitivity.svg").read_text().count("<svg") == 1


def test_an_unknown_role(folder: Path) -> None:
    with pytest.raises(PrunecError, match="no banana that can be removed alone"):
        sensitivity(options(folder, groups=("banana",)), Silent())


def test_the_command_prints_a_table(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(
            ["sensitivity", str(folder / "llama"), "--calibration", str(folder / "data.npz"),
             "--calibration-samples", "1", "--groups", "layer"]
        )  # fmt: skip
    assert code == 0
    assert "model.layers.2/layer" in printed.getvalue()
    assert "KL divergence" in printed.getvalue()


# -- experts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixtures")
    for name in test_experts.NAMES:
        mixture(name).save_pretrained(root / name)
    np.savez(root / "data.npz", **{k: v.numpy() for k, v in tokens().items()})
    return root


def mixture(name: str) -> Any:
    module = test_experts.network(name)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return module


def asked(mixtures: Path, name: str, **changes: Any) -> SensitivityOptions:
    return SensitivityOptions(
        str(mixtures / name), calibration=str(mixtures / "data.npz"), calibration_samples=SAMPLES,
        calibration_length=LENGTH, groups=("expert",), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("name", test_experts.NAMES)
def test_an_expert_less_is_the_module_without_it(mixtures: Path, name: str) -> None:
    """Its tokens are routed among the others."""
    found = sensitivity(asked(mixtures, name), Silent())
    assert len(found.rows) == 2 * test_experts.EXPERTS
    module = mixture(name)
    dense, mlp = loss(module), module.model.layers[0].mlp
    left = [i for i in range(test_experts.EXPERTS) if i != 3]
    for owner, part in (
        (mlp.gate, "weight"), (mlp.experts, "gate_up_proj"), (mlp.experts, "down_proj")
    ):  # fmt: skip
        setattr(owner, part, torch.nn.Parameter(getattr(owner, part)[left]))
    mlp.gate.num_experts = mlp.experts.num_experts = len(left)
    (row,) = [row for row in found.rows if row.name == "model.layers.0.mlp/expert[3]"]
    assert found.loss == pytest.approx(dense, rel=CLOSE)
    assert row.loss == pytest.approx(loss(module) - dense, abs=CLOSE * dense)
    assert abs(row.loss) > 100 * CLOSE * dense
    assert row.params == sum(p.numel() for p in mixture(name).parameters()) - sum(
        p.numel() for p in module.parameters()
    )


def test_the_estimate_of_an_expert_is_that_of_its_share(mixtures: Path) -> None:
    """The share of a token's routes times its gradient, of the tokens that go there."""
    found = sensitivity(asked(mixtures, "qwen3_moe", fast=True), Silent())
    module = mixture("qwen3_moe")
    seen: list[torch.Tensor] = []
    gate = module.model.layers[1].mlp.gate
    softmax = torch.nn.functional.softmax

    def kept(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shares = softmax(logits, *args, **kwargs)
        shares.retain_grad()
        seen.append(shares)
        return shares

    wanted = torch.zeros(test_experts.EXPERTS)
    patch = pytest.MonkeyPatch()  # the softmax of this gate, and of no attention
    gate.register_forward_pre_hook(lambda *_: patch.setattr(torch.nn.functional, "softmax", kept))
    gate.register_forward_hook(lambda *_: patch.undo())
    for ids in tokens()["input_ids"]:
        logits = module(ids[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[1:]).backward()
        shares = seen.pop()
        assert shares.grad is not None
        wanted += (shares * shares.grad).abs().sum(0).detach() / SAMPLES
    estimates = [row.estimate for row in found.rows if ".1." in row.name]
    assert estimates == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-7)
