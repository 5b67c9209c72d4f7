"""Small random models of many families: `(id, build, inputs)` each, for tests per model.

Sizes are chosen so that no two axes of one model have the same size, where the family allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers

from prunec.frontends.tensors import to_torch
from prunec.frontends.torch import Traced
from prunec.frontends.torch_hf import trace_hf

__all__ = ["ZOO", "Entry", "Model", "build", "inputs", "model", "tiny"]

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """One family: the class, the fields of its configuration, and what it reads."""

    model: str
    config: str
    fields: Mapping[str, Any]
    reads: str = "text"
    quick: bool = False


_DECODER = {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}

ZOO: dict[str, Entry] = {
    "llama": Entry("LlamaForCausalLM", "LlamaConfig", _GROUPED, quick=True),
    "llama_tied": Entry(
        "LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}
    ),
    "mistral": Entry("MistralForCausalLM", "MistralConfig", {**_GROUPED, "head_dim": 10}),
    "qwen2": Entry("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": Entry("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 10}),
    "gemma2": Entry("Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 8}),
    "gemma3": Entry(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_GROUPED, "head_dim": 10, "sliding_window": 4, "query_pre_attn_scalar": 10},
        quick=True,
    ),
    "phi3": Entry("Phi3ForCausalLM", "Phi3Config", {**_GROUPED, "pad_token_id": 0}),
    "gpt2": Entry(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 131, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64},
        quick=True,
    ),
    "gpt_neox": Entry("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER),
    "opt": Entry(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 131,
            "hidden_size": 48,
            "word_embed_proj_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "ffn_dim": 80,
            "max_position_embeddings": 64,
        },
    ),
    "falcon": Entry(
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": 131,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "new_decoder_architecture": False,
            "multi_query": True,
        },
    ),
    "bloom": Entry(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 131, "hidden_size": 48, "n_layer": 2, "n_head": 6},
    ),
    "mixtral": Entry(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        quick=True,
    ),
    "bert": Entry("BertModel", "BertConfig", _DECODER, quick=True),
    "bert_mlm": Entry("BertForMaskedLM", "BertConfig", _DECODER),
    "distilbert": Entry(
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": 131,
            "dim": 48,
            "n_layers": 2,
            "n_heads": 6,
            "hidden_dim": 80,
            "max_position_embeddings": 64,
        },
    ),
    "albert": Entry("AlbertModel", "AlbertConfig", {**_DECODER, "embedding_size": 20}),
    "t5": Entry(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 131,
            "d_model": 48,
            "d_kv": 10,
            "d_ff": 80,
            "num_layers": 2,
            "num_heads": 6,
            "decoder_start_token_id": 0,
        },
        reads="pair",
        quick=True,
    ),
    "vit": Entry(
        "ViTForImageClassification",
        "ViTConfig",
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "intermediate_size": 80,
            "image_size": 32,
            "patch_size": 8,
        },
        reads="image",
        quick=True,
    ),
    "swin": Entry(
        "SwinModel",
        "SwinConfig",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        reads="image",
    ),
    "convnext": Entry(
        "ConvNextModel",
        "ConvNextConfig",
        {"image_size": 32, "hidden_sizes": [8, 16, 24, 40], "depths": [1, 1, 2, 1]},
        reads="image",
    ),
    "resnet": Entry(
        "ResNetModel",
        "ResNetConfig",
        {
            "image_size": 32,
            "embedding_size": 8,
            "hidden_sizes": [16, 24],
            "depths": [2, 1],
        },
        reads="image",
    ),
}


def tiny(name: str, **fields: Any) -> Any:
    """The configuration of a family, with further fields."""
    entry = ZOO[name]
    return getattr(transformers, entry.config)(**{**entry.fields, **fields})


def build(name: str, *, seed: int = 0, meta: bool = False, **fields: Any) -> Any:
    """A model of a family with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    made = getattr(transformers, ZOO[name].model)
    with torch.device("meta" if meta else "cpu"):
        return made._from_config(tiny(name, **fields)).eval()


def inputs(name: str, *, batch: int = 2, length: int = 6, seed: int = 0) -> Inputs:
    """Inputs of a family: token ids with two positions of padding before row 0, or pixels."""
    generator = torch.Generator().manual_seed(seed)
    if ZOO[name].reads == "image":
        return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    ids = torch.randint(3, 131, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    if ZOO[name].reads == "pair":
        shape = (batch, length + 3)
        found["decoder_input_ids"] = torch.randint(3, 131, shape, generator=generator)
    return found


@dataclass(frozen=True)
class Model:
    """A built model with the graph traced from its twin on the meta device."""

    module: Any
    traced: Traced
    weights: Mapping[str, torch.Tensor]

    def expected(self, given: Inputs) -> list[torch.Tensor]:
        """What the model computes, in the order of the graph's outputs."""
        with torch.no_grad():
            found = self.module(**given)
        return [found[name] for name, _ in self.traced.graph.outputs]


@lru_cache(maxsize=2)
def model(name: str) -> Model:
    """A family, built and traced once for the tests that follow one another."""
    module = build(name)
    module.config.use_cache = False
    traced = trace_hf(build(name, meta=True))
    if hasattr(module, "get_experts_implementation") and "expert" in str(module.config):
        module.set_experts_implementation("batched_mm")  # as traced: other kernels round otherwise
    weights = {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}
    weights |= {key: to_torch(value) for key, value in traced.constants.items()}
    return Model(module, traced, weights)
