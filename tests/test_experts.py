"""Experts as a group: router rows and expert weights together, judged by the routes."""

from __future__ import annotations

import contextlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo

from prunec.backends.interpreter import execute
from prunec.backends.masked import execute_masked
from prunec.backends.torch_routing import watch_routes
from prunec.cli.app import main
from prunec.engines.divergence import MaskedDivergence
from prunec.ir.axes import Selection
from prunec.ir.dialects.aten import ATEN
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.rewrite import rewrite
from prunec.passes.routing import expert_scores, find_routers

EXPERTS, CHOSEN = 6, 2
SHARED: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 80, "num_experts_per_tok": CHOSEN,
    "max_position_embeddings": 64,
}  # fmt: skip


def config(name: str) -> Any:
    if name == "mixtral":
        return transformers.MixtralConfig(**SHARED, num_local_experts=EXPERTS)
    return transformers.Qwen3MoeConfig(
        **SHARED, num_experts=EXPERTS, moe_intermediate_size=32, norm_topk_prob=True
    )


def network(name: str, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        module = transformers.AutoModelForCausalLM.from_config(config(name)).eval()
    module.config.use_cache = False
    return module


@cache
def coupled(name: str) -> tuple[Coupling, dict[str, torch.Tensor]]:
    traced = zoo.trace_hf(network(name, "meta"))
    module = network(name)
    weights = {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}
    weights |= {key: zoo.to_torch(value) for key, value in traced.constants.items()}
    return couple(traced.graph, ATEN), weights


NAMES = ["mixtral", "qwen3_moe"]


def given(batch: int = 2, length: int = 6) -> dict[str, torch.Tensor]:
    return dict(zoo.inputs("llama", batch=batch, length=length))


@pytest.mark.parametrize("name", NAMES)
def test_one_group_a_layer(name: str) -> None:
    groups = [g for g in coupled(name)[0].groups if g.role == "expert"]
    assert [(g.size, g.least) for g in groups] == [(EXPERTS, CHOSEN)] * 2
    for number, group in enumerate(groups):
        layer = f"model.layers.{number}.mlp"
        assert {str(place) for place in group.places} == {
            f"{layer}.gate.weight[0]",
            f"{layer}.experts.gate_up_proj[0]",
            f"{layer}.experts.down_proj[0]",
        }


@pytest.mark.parametrize("name", NAMES)
def test_law_1_with_half_of_everything(name: str) -> None:
    """Half the experts, half the neurons inside, half the query heads of each KV head; the
    reference routes among the experts that stay, in the dense program."""
    coupling, weights = coupled(name)
    rng = np.random.default_rng(0)
    selections = {}
    for group in coupling.groups:
        if group.role in ("expert", "neuron", "query_head"):
            count = max(group.size // 2, group.least)
            selections[group.name] = Selection(np.sort(rng.permutation(group.size)[:count]))
    assert {coupling.by_name[n].role for n in selections} == {"expert", "neuron", "query_head"}
    rewritten = rewrite(coupling, selections)
    small = {name: sliced(value, rewritten.kept.get(name, {})) for name, value in weights.items()}
    batches = [given(), given(3, 9)]
    (*found,) = execute(rewritten.graph, small, batches)
    (*wanted,) = execute_masked(coupling, selections, rewritten, weights, batches)
    for one, other in zip(found, wanted, strict=True):
        assert one["logits"].abs().max() > 0
        assert torch.allclose(one["logits"], other["logits"], atol=1e-5, rtol=1e-5)


def sliced(value: torch.Tensor, kept: Any) -> torch.Tensor:
    for dim, indices in kept.items():
        value = value.index_select(dim, torch.from_numpy(indices))
    return value


@pytest.mark.parametrize("name", NAMES)
def test_routes_are_those_of_the_module(name: str) -> None:
    """Counts and contributions against the router's own outputs and the experts one by one."""
    coupling, weights = coupled(name)
    groups = [g for g in coupling.groups if g.role == "expert"]
    found = watch_routes(coupling.graph, weights, [given()], find_routers(coupling, groups))
    module = network(name)
    block = module.model.layers[1].mlp
    seen: dict[str, Any] = {}
    block.register_forward_hook(lambda _, args, __: seen.update(x=args[0]))
    block.gate.register_forward_hook(lambda _, __, out: seen.update(routes=out))
    with torch.no_grad():
        module(**given())
        x = seen["x"].flatten(0, 1)
        _, share, chosen = seen["routes"]
        tokens, norms = np.zeros(EXPERTS), np.zeros(EXPERTS)
        for token in range(len(x)):
            for route in range(CHOSEN):
                expert = int(chosen[token, route])
                gate, up = (block.experts.gate_up_proj[expert] @ x[token]).chunk(2)
                made = block.experts.down_proj[expert] @ (block.experts.act_fn(gate) * up)
                tokens[expert] += 1
                norms[expert] += float((share[token, route] * made).norm())
    (routed,) = [r for g, r in found.items() if "layers.1" in g]
    assert np.array_equal(routed.tokens, tokens)
    assert routed.norms == pytest.approx(norms, rel=1e-4)
    assert expert_scores("reap", routed) == pytest.approx(norms / np.maximum(tokens, 1), rel=1e-4)
    assert np.array_equal(expert_scores("frequency", routed), tokens)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in NAMES:
        network(name).save_pretrained(root / name)
    tokens = given(4, 12)["input_ids"].numpy()
    np.savez(root / "data.npz", input_ids=tokens, attention_mask=np.ones_like(tokens))
    return root


def prune(model: Path, out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    printed, told = io.StringIO(), io.StringIO()
    data = ("--calibration", str(model.parent / "data.npz"))
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(["prune", str(model), "-o", str(out), *data, *options, "--json"])
    return code, json.loads(printed.getvalue() or "{}"), told.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_it_reloads_as_the_stock_class(saved: Path, tmp_path: Path, name: str) -> None:
    code, report, told = prune(
        saved / name, tmp_path / "out", "--target", "blocks=30%", "--groups",
        "expert,neuron,query_head", "--method", "criterion=wanda,restore=none", "--format",
        "hf,onnx", "--verify",
    )  # fmt: skip
    assert code == 0, told
    kept = {row["role"]: row["kept"] for row in report["groups"] if row["kept"] < row["size"]}
    assert CHOSEN <= kept["expert"] < EXPERTS
    assert "neuron" in kept
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf")
    assert type(small) is type(network(name, "meta"))
    assert sum(p.numel() for p in small.parameters()) == report["pruned"]["params"]
    with torch.no_grad():  # the kernels that the stock class chooses want rows of some length
        assert small(**given()).logits.isfinite().all()


def test_experts_that_nobody_asks_go_first(saved: Path, tmp_path: Path) -> None:
    code, _report, told = prune(
        saved / "mixtral", tmp_path / "out", "--target", "blocks=70%", "--groups", "expert",
        "--experts", "frequency", "--method", "magnitude", "--restore", "none",
    )  # fmt: skip
    assert code == 0, told
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["parameters"]
    coupling, weights = coupled("mixtral")
    groups = [g for g in coupling.groups if g.role == "expert"]
    with np.load(saved / "data.npz") as data:
        feeds = {key: torch.from_numpy(data[key]) for key in data.files}
    found = watch_routes(coupling.graph, weights, [feeds], find_routers(coupling, groups))
    for group in groups:
        kept = plan[group.places[0].parameter]["0"]
        counts = found[group.name].tokens
        gone = [i for i in range(EXPERTS) if i not in kept]
        assert gone
        assert counts[gone].max() <= counts[kept].min()


def test_fewer_than_are_chosen_cannot_stay(saved: Path, tmp_path: Path) -> None:
    plan = {"version": 1, "parameters": {"model.layers.0.mlp.gate.weight": {"0": [3]}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, told = prune(
        saved / "mixtral", tmp_path / "out", "--plan", str(tmp_path / "plan.json")
    )
    assert code == 2
    assert "P835" in told
    assert f"keep between {CHOSEN} and {EXPERTS}" in told


@pytest.mark.parametrize("roles", ["layer,expert,neuron", "sublayer,expert,query_head"])
@pytest.mark.parametrize("allocate", ["dp", "evolutionary"])
def test_experts_compete_with_depth_and_width(
    louder: Path, tmp_path: Path, roles: str, allocate: str
) -> None:
    """An expert that gives nothing goes before anything else does."""
    code, report, told = prune(
        louder, tmp_path / "out", "--target", "blocks=85%", "--groups", roles, "--layout",
        "per-layer", "--format", "onnx", "--allocate", allocate, "--verify",
    )  # fmt: skip
    assert code == 0, told
    assert "Measuring experts" in told
    kept = {row["name"]: row["kept"] for row in report["groups"] if row["role"] == "expert"}
    assert kept["model.layers.1.mlp/expert"] < EXPERTS
    if not kept["model.layers.1.mlp/expert"]:  # all of the layer went, which is a plan too
        assert "model.layers.1/layer" in report["removed"]
        return
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["parameters"]
    stays = plan["model.layers.1.mlp.gate.weight"]["0"]
    assert not set(stays) & set(range(EXPERTS - kept["model.layers.1.mlp/expert"]))


@pytest.fixture(scope="module")
def louder(saved: Path) -> Path:
    """Two of the experts of the second layer give next to nothing, all else matters."""
    module = network("mixtral")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
        module.model.layers[1].mlp.experts.down_proj[:2] *= 1e-3
    module.save_pretrained(saved / "louder")
    return saved / "louder"


def test_search_judges_routes_among_those_that_stay() -> None:
    """Half the experts of one layer, as the rewritten program and as the search sees it."""
    coupling, weights = coupled("mixtral")
    # of matrices this small nothing would be seen in float32
    weights = {
        name: value.detach() * (6 if value.dim() > 1 else 1) for name, value in weights.items()
    }
    arrays = {name: value.numpy() for name, value in weights.items()}
    group = next(g for g in coupling.groups if g.role == "expert")
    scores = np.array([5.0, 1.0, 4.0, 0.0, 3.0, 2.0])
    windows = [{k: v.numpy() for k, v in given(1, 9).items()}]
    measure = MaskedDivergence(coupling, [group], {group.name: scores}, arrays, windows)
    found = measure({group.name: 3})
    small = rewrite(coupling, {group.name: Selection(np.array([0, 2, 4]))})
    cut = {name: sliced(value, small.kept.get(name, {})) for name, value in weights.items()}
    (one,), (other,) = (
        execute(graph, held, [given(1, 9)])
        for graph, held in ((coupling.graph, weights), (small.graph, cut))
    )
    dense, left = (o["logits"].double().log_softmax(-1) for o in (one, other))
    assert found == pytest.approx(float((dense.exp() * (dense - left)).sum(-1).mean()), rel=1e-3)
