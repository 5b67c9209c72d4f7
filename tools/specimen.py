"""A small model of any type that transformers registers, with inputs that it accepts.

The configuration is shrunk (`shrink.py`) and the first variant is taken that builds and runs on one
of the inputs that fit the model's signature. Nothing here knows an architecture.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from feeds import BATCH, feeds
from fills import Inputs
from shrink import variants
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["NotBuilt", "Specimen", "model_types", "specimen"]

TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM",
    "SPEECH_SEQ_2_SEQ", "IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "IMAGE_SEGMENTATION",
    "ZERO_SHOT_OBJECT_DETECTION", "DEPTH_ESTIMATION", "CTC", "AUDIO_CLASSIFICATION",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
    "VIDEO_CLASSIFICATION", "MASK_GENERATION", "VISUAL_QUESTION_ANSWERING",
    "DOCUMENT_QUESTION_ANSWERING", "KEYPOINT_DETECTION", "KEYPOINT_MATCHING",
    "MASKED_IMAGE_MODELING", "IMAGE_TO_IMAGE", "TEXT_ENCODING", "BACKBONE",
)  # fmt: skip
"""Tasks in the order in which a type's class is looked for; at last the bare model."""

LARGEST = 12_000_000
"""Parameters above which a candidate counts as not shrunk."""

PATIENCE = 15
"""Seconds of processor after which no further variant is tried."""

# where the default backbone comes from a library that is not there
_RESNET = {
    "model_type": "resnet",
    "embedding_size": 24,
    "hidden_sizes": [16, 28, 36, 44],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
_BACKBONE = {"backbone_config": _RESNET, "use_timm_backbone": False}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_PYRAMID = {"backbone_config": {**_RESNET, "out_features": _STAGES[1:]}}
_WHOLE = {"backbone_config": {**_RESNET, "out_features": _STAGES}}

_SERIES = {"prediction_length": 6, "context_length": 10, "lags_sequence": [1, 2, 3]}
_EFFICIENT = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "hidden_dim": 320,
}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "detr": _BACKBONE,
    "table-transformer": _BACKBONE,
    "conditional_detr": _BACKBONE,
    "deformable_detr": _PYRAMID,
    "grounding-dino": _PYRAMID,
    "mm-grounding-dino": _PYRAMID,
    "upernet": _WHOLE,
    "xmod": {"default_language": "en_XX"},
    "chameleon": {"vocabulary_map": {"<image>": 8}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0}},
    "efficientnet": _EFFICIENT,
    "align": {f"vision_config.{name}": value for name, value in _EFFICIENT.items()},
    "time_series_transformer": _SERIES,
    "autoformer": _SERIES,
    "informer": _SERIES,
    "dac": {"decoder_hidden_size": 96},
    "encodec": {"num_filters": 6},
    "groupvit": {
        "vision_config.num_group_tokens": [10, 6, 0],
        "vision_config.num_output_groups": [10, 6, 6],
    },
    "esm": {"vocab_size": 131, "pad_token_id": 1, "mask_token_id": 32},
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 8},
    "moonshine_streaming": {"num_key_value_heads": 6},
    "deepseek_ocr2": {"text_config.mlp_layer_types": ["dense", "sparse"]},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "qwen3_omni_moe": {"talker_config.text_config.shared_expert_intermediate_size": 56},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 9},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "musicgen": {"num_codebooks": 1},  # rows of the batch are one book each
    "musicgen_melody": {"num_codebooks": 1},
}
"""Fields that no rule could guess."""


class NotBuilt(Exception):
    """No small model of this type could be built and run; the message says why."""


@dataclass(frozen=True)
class Specimen:
    """A built model, inputs that it ran on, and the dimensions of those that may vary."""

    kind: str
    task: str
    model: Any
    inputs: Inputs
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    resize: Callable[[int, int], Inputs] | None = None


@cache
def model_types() -> dict[str, tuple[str, str]]:
    """Model type -> (task, class name), for every registered type, in the order of the tasks."""
    found: dict[str, tuple[str, str]] = {}
    for task in (*TASKS, ""):
        name = f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES"
        for kind, made in getattr(modeling_auto, name).items():
            made = made if isinstance(made, str) else made[0]
            found.setdefault(kind, (task.lower() or "bare", made))
    return found


def specimen(kind: str) -> Specimen:
    """A small model of a type in evaluation mode with random weights, on the CPU.

    Raises NotBuilt with the reason of the last attempt.
    """
    task, name = model_types()[kind]
    made = getattr(transformers, name, None)
    if made is None:
        raise NotBuilt(f"transformers has no class {name}")
    try:
        default = CONFIG_MAPPING[kind]()
    except Exception as error:
        raise NotBuilt(f"its configuration has no defaults: {_said(error)}") from error
    try:
        wanted = getattr(made, "config_class", None)
    except ImportError as error:  # stands for a class whose library is not there
        raise NotBuilt(_said(error)) from error
    if wanted is not None and not isinstance(default, wanted):
        default = _converted(default, wanted)
    reason = ""
    start = time.process_time()
    for config in variants(default, EXCEPTIONS.get(kind)):
        try:
            return _attempt(kind, task, made, config)
        except Exception as error:  # models raise whatever they like at sizes they do not like
            reason = reason or _said(error)
        if time.process_time() - start > PATIENCE:
            break
    raise NotBuilt(reason or "no small values fit its configuration")


def _converted(config: Any, wanted: Any) -> Any:
    """The configuration of the part that is wanted, or the same values in another class."""
    for part in vars(config).values():
        if isinstance(part, wanted):
            return part
    return wanted.from_dict({k: v for k, v in config.to_dict().items() if k != "model_type"})


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _attempt(kind: str, task: str, made: Any, config: Any) -> Specimen:
    with torch.device("meta"):
        counted = sum(p.numel() for p in made._from_config(copy.deepcopy(config)).parameters())
    if counted > LARGEST:
        raise NotBuilt(f"{counted:,} parameters are left")
    torch.manual_seed(0)
    model = made._from_config(config).eval()
    _randomise(model)
    _plain(model)
    failed: Exception | None = None
    for make, dynamic in feeds(model):
        try:
            given = make(2, 6)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(**copy.copy(given))
        except Exception as error:
            failed = failed or error
            continue
        dims = _dims(given, dynamic)
        return Specimen(kind, task, model, given, dims, make if dims else None)
    raise failed or NotBuilt(f"no inputs are known for {made.__name__}")


def _dims(given: Inputs, known: Mapping[str, Mapping[int, str]]) -> dict[str, Mapping[int, str]]:
    """The dimensions that may vary: what was filled in has one row for each example."""
    if not known:
        return {}
    more = [n for n, v in given.items() if n not in known and isinstance(v, torch.Tensor)]
    return {**known, **{name: {0: BATCH} for name in more}}


def _plain(model: Any) -> None:
    """No caches, named outputs, and experts as batched products, in every configuration."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "to_dict"):
            for key in ("use_cache", "output_attentions", "output_hidden_states"):
                if getattr(config, key, False) is True:
                    setattr(config, key, False)


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Nothing stays at exactly zero or one, where a wrong axis could hide."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        if tensor.dim() < 2:
            tensor.add_(0.1 * noise)
        elif float(tensor.std() if tensor.numel() > 1 else 0) < 1e-6:
            tensor.add_(0.3 * noise)
        elif "embed" not in name:
            tensor.copy_(noise * min(1.0, math.prod(tensor.shape[1:]) ** -0.5) * 1.2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):  # near zero, or rectifiers behind it are never open
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
