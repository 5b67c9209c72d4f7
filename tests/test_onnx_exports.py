"""ONNX files that torch exports: groups and layers of the traced model, law 1, other sizes."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import onnx
import pytest
import torch
from exporters import WAYS, export
from onnx_files import Halved, difference, feeds_of, halved, run
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from prunec.backends.onnx_edit import edit, save
from prunec.frontends.torch_hf import trace_hf
from prunec.ir.dialects.aten import ATEN
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling
from prunec.passes.regions import find_regions
from prunec.passes.remove import remove
from prunec.passes.rewrite import Rewritten

TOLERANCE = 1e-5
"""Relative, float32: masked and sliced sums add the same terms in another order."""

SIZES = ((2, 17), (3, 29))
"""Batch sizes and lengths."""


def bert() -> Any:
    config = BertConfig(
        vocab_size=101, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80, max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def llama() -> Any:
    config = LlamaConfig(
        vocab_size=131, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, intermediate_size=80, head_dim=8, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


Case = tuple[Any, Halved, str]
MODELS = {"bert": bert, "llama": llama}


@pytest.fixture(
    scope="module", params=[f"{model}-{way}" for model in MODELS for way in WAYS if way != "cache"]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    which, _, way = request.param.partition("-")
    torch.manual_seed(0)
    model = MODELS[which]()
    folder = tmp_path_factory.mktemp(request.param)
    path = export(model, way, folder / "model.onnx")
    return model, halved(path, folder / "small.onnx"), way


def shape(coupling: Coupling) -> Counter[tuple[str, int]]:
    """Roles and sizes of the groups within blocks."""
    return Counter((g.role, g.size) for g in coupling.groups)


def test_the_groups_are_those_of_the_traced_model(case: Case) -> None:
    model, pruned, _ = case
    assert shape(pruned.coupling) == shape(couple(trace_hf(model).graph, ATEN))


def named(pruned: Halved, sizes: tuple[int, int]) -> dict[str, int]:
    """Sizes by their symbols: exporters call these as they like."""
    return {
        str(dim): size
        for value in pruned.program.graph.inputs
        for dim, size in zip(value.type.shape, sizes, strict=True)
    }


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_pruning_is_masking(case: Case, sizes: tuple[int, int]) -> None:
    _, pruned, _ = case
    assert pruned.law(named(pruned, sizes)) <= TOLERANCE


def test_the_layers_are_those_of_the_traced_model(case: Case) -> None:
    model, pruned, _ = case
    roles, wanted = (
        [region.role for region in find_regions(coupling)]
        for coupling in (pruned.coupling, couple(trace_hf(model).graph, ATEN))
    )
    assert roles == wanted == ["sublayer", "sublayer", "layer"] * 2


def test_without_a_layer_it_is_the_smaller_network(case: Case) -> None:
    """Exported in the same way; torch's legacy exporter is not always true to the network."""
    model, pruned, way = case
    layer = next(r for r in find_regions(pruned.coupling) if r.role == "layer")
    graph = remove(pruned.coupling, [layer]).graph
    made = edit(pruned.original(), Rewritten(graph, {}), pruned.program.weights, set())
    path, wanted = (pruned.out.with_name(f"{name}.onnx") for name in ("shallow", "wanted"))
    save(made, pruned.program.model, path)
    smaller = copy.deepcopy(model)
    del next(m for m in smaller.modules() if isinstance(m, torch.nn.ModuleList))[0]
    export(smaller, way, wanted)
    feeds = feeds_of(graph, named(pruned, (2, 17)))
    assert difference(run(path, feeds), run(wanted, feeds)) <= TOLERANCE


def test_what_is_not_pruned_stays_as_it_was(case: Case) -> None:
    """Fused norms, which are taken apart while a file is looked at, are what they were."""
    _, pruned, _ = case
    program = pruned.program
    whole = edit(pruned.original(), Rewritten(program.graph, {}), program.weights, set())
    path = pruned.out.with_name("whole.onnx")
    save(whole, program.model, path)
    before, after = (onnx.load(file, load_external_data=False) for file in (pruned.path, path))
    assert list(after.graph.node) == list(before.graph.node)


def test_what_the_user_named_keeps_its_name(case: Case) -> None:
    _, pruned, _ = case
    before, after = onnx.load(pruned.path), onnx.load(pruned.out)
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    versions = [{e.domain: e.version for e in m.opset_import} for m in (before, after)]
    assert versions[0] == versions[1]
    assert after.metadata_props == before.metadata_props
    assert {n.name for n in before.graph.node} - {n.name for n in after.graph.node} <= {
        n.name for n in before.graph.node if n.op_type == "Constant"
    }
