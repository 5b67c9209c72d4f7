"""Layouts are settled for any mixture of counts that a model's layers may end up with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prunec.backends.hf_section import Section
from prunec.planning.layout import settle_layout
from prunec.progress import Silent
from prunec.runs.loading import Loaded, load


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """As many KV heads as query heads under each of them: three."""
    folder: Path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=72, intermediate_size=80, num_attention_heads=9, num_key_value_heads=3,
        head_dim=8, num_hidden_layers=4, vocab_size=131,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return load(str(folder), trust_remote_code=False, need_weights=True, progress=Silent())


def test_sizes_that_look_alike_are_told_apart(loaded: Loaded) -> None:
    """`num_key_value_groups` is 3 and so is the number of KV heads: what the first layers say is
    not enough."""
    left = [(3, 3), (2, 2), (2, 3), (3, 2)]
    counts = {group.name: group.size for group in loaded.coupling.groups}
    for role, kept in (("kv_head", [a for a, _ in left]), ("query_head", [b for _, b in left])):
        names = [group.name for group in loaded.coupling.groups if group.role == role]
        counts |= dict(zip(names, kept, strict=True))
    section = settle_layout(loaded, "per-layer", counts)
    assert isinstance(section, Section)
    set_ = {p: v.get("num_key_value_groups", 3) for p, v in section.attributes.items()}
    found = [set_.get(f"model.layers.{i}.self_attn", 3) for i in range(4)]
    assert found == [b for _, b in left]


def test_a_checkpoint_in_half_precision_may_have_layers_of_its_own(tmp_path: Path) -> None:
    """Programs are traced in float32, whatever the config says of what is stored."""
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_attention_heads=6, num_hidden_layers=2,
        vocab_size=131,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(tmp_path)
    half = load(str(tmp_path), trust_remote_code=False, need_weights=True, progress=Silent())
    assert half.config.dtype == torch.float16
    counts = {group.name: group.size for group in half.coupling.groups}
    neurons = [group.name for group in half.coupling.groups if group.role == "neuron"]
    counts |= dict(zip(neurons, (60, 50), strict=True))
    assert isinstance(settle_layout(half, "per-layer", counts), Section)
