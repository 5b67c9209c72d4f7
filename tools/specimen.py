"""A small model of any type that transformers registers, with inputs that it accepts.

The configuration is shrunk (`shrink.py`) and the first variant is taken that builds and runs on one
of the inputs that fit the model's signature. Nothing here knows an architecture.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
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

PATIENCE = 8
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
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "in_channels": [32, 16, 24, 40, 80, 112, 192],
        "out_channels": [16, 24, 40, 80, 112, 192, 320],
        "hidden_dim": 320,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
"""Fields that no rule could guess."""

Inputs = dict[str, Any]


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
    wanted = getattr(made, "config_class", None)
    if wanted is not None and not isinstance(default, wanted):
        default = default.get_text_config()
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
    for make, dynamic in _feeds(model):
        try:
            given = make(2, 6)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(**copy.copy(given))
        except Exception as error:
            failed = failed or error
            continue
        return Specimen(kind, task, model, given, dynamic, make if dynamic else None)
    raise failed or NotBuilt(f"no inputs are known for {made.__name__}")


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


# -- inputs -----------------------------------------------------------------------------------

Make = Callable[[int, int], Inputs]
BATCH, SEQUENCE, DECODER = "batch", "sequence", "decoder_sequence"


def _feeds(model: Any) -> Iterator[tuple[Make, dict[str, dict[int, str]]]]:
    """Ways to call the model that its signature allows, the fullest first."""
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    if "pixel_values" in accepted and "input_ids" in accepted:
        yield from _mixed(model, accepted)
    main = str(model.main_input_name)
    if main == "input_ids" or ("input_ids" in accepted and main not in accepted):
        yield _text(config, accepted), _text_dims(accepted, config)
        return
    for shape in _shapes(main, model):
        yield _sense(main, shape, config, accepted), {main: {0: BATCH}} | _decoded(accepted, config)


def _tokens(config: Any) -> int:
    sizes = [getattr(c, "vocab_size", None) for c in _configs(config)]
    return min((n for n in sizes if isinstance(n, int) and n > 8), default=16)


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from _configs(value)


def _text(config: Any, accepted: Mapping[str, Any]) -> Make:
    high = min(_tokens(config), 99)

    def make(batch: int, length: int) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, high, (batch, length), generator=generator)
        found: Inputs = {"input_ids": ids}
        if "attention_mask" in accepted:
            found["attention_mask"] = torch.ones_like(ids)
        if "bbox" in accepted:
            found["bbox"] = torch.arange(4).expand(batch, length, 4).contiguous()
        if _pairs(accepted, config):
            shape = (batch, length + 3)
            found["decoder_input_ids"] = torch.randint(3, high, shape, generator=generator)
        return found

    return make


def _pairs(accepted: Mapping[str, Any], config: Any) -> bool:
    return "decoder_input_ids" in accepted and bool(getattr(config, "is_encoder_decoder", False))


def _decoded(accepted: Mapping[str, Any], config: Any) -> dict[str, dict[int, str]]:
    return {"decoder_input_ids": {0: BATCH, 1: DECODER}} if _pairs(accepted, config) else {}


def _text_dims(accepted: Mapping[str, Any], config: Any) -> dict[str, dict[int, str]]:
    names = [
        n for n in ("input_ids", "attention_mask", "bbox") if n in accepted or n == "input_ids"
    ]
    return {n: {0: BATCH, 1: SEQUENCE} for n in names} | _decoded(accepted, config)


def _first(config: Any, *names: str, default: int) -> int:
    for name in names:
        for held in _configs(config):
            value = getattr(held, name, None)
            if isinstance(value, list | tuple) and value and isinstance(value[0], int):
                value = value[-1]
            if isinstance(value, int) and value > 0:
                return value
    return default


def _side(config: Any) -> tuple[int, int]:
    for held in _configs(config):
        for name in ("image_size", "img_size", "input_size"):
            value = getattr(held, name, None)
            if isinstance(value, int) and value > 0:
                return value, value
            if isinstance(value, list | tuple) and len(value) == 2:
                return int(value[0]), int(value[1])
    return 64, 64


BINS = (
    "num_mel_bins", "feature_size", "input_dim", "n_mels", "input_feat_per_channel",
    "input_channels",
)  # fmt: skip


def _shapes(main: str, model: Any) -> Iterator[tuple[int, ...]]:
    """Shapes without the batch that a main input may have."""
    config = model.config
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    height, width = _side(config)
    frames = _first(config, "num_frames", "frames_per_clip", "tubelet_size", default=4)
    mels = _first(config, *BINS, default=80)
    longest = _first(config, "max_source_positions", "max_length", default=32)
    if main in ("pixel_values", "pixel_values_videos"):
        yield (channels, height, width)
        yield (channels, 64, 64)
        yield (channels, 224, 224)
        yield (frames, channels, height, width)
        yield (channels, frames, height, width)
        yield (2, channels, height, width)
    elif main == "input_features":
        yield (mels, 2 * longest)
        yield (32, mels)
        yield (64, mels)
        yield (1, 64, mels)
        yield (1, 1001, 64)
        yield (mels, 3000)
    elif main in ("input_values", "waveform", "audio_values"):
        yield (3200,)
        yield (1, 3200)
        yield (_first(config, "max_length", default=64), mels)
        yield (64, mels)


def _sense(main: str, shape: tuple[int, ...], config: Any, accepted: Mapping[str, Any]) -> Make:
    high = min(_tokens(config), 99)

    def make(batch: int, length: int) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        found: Inputs = {main: torch.randn(batch, *shape, generator=generator)}
        if _pairs(accepted, config):
            ids = torch.randint(3, high, (batch, length), generator=generator)
            found["decoder_input_ids"] = ids
        return found

    return make


def _mixed(model: Any, accepted: Mapping[str, Any]) -> Iterator[tuple[Make, dict[str, Any]]]:
    """Text and pixels: side by side, or pixels in the place of marked tokens."""
    config = model.config
    text = _text(config, accepted)
    for shape in _shapes("pixel_values", model):
        pixels = _sense("pixel_values", shape, config, {})

        def beside(batch: int, length: int, pixels: Make = pixels) -> Inputs:
            return text(batch, length) | pixels(batch, length)

        marker = _marker(config)
        if marker is None:
            yield beside, _text_dims(accepted, config) | {"pixel_values": {0: BATCH}}
            continue
        try:
            with torch.no_grad():
                features = model.get_image_features(pixels(2, 6)["pixel_values"])
            rows = _rows(features)
        except Exception:
            continue

        yield _within(text, pixels, marker, rows // 2), {}


def _within(text: Make, pixels: Make, marker: int, rows: int) -> Make:
    """Tokens of which `rows` stand for an image."""

    def make(batch: int, length: int) -> Inputs:
        found = text(batch, length + rows)
        found["input_ids"][:, 1 : 1 + rows] = marker
        return found | pixels(batch, length)

    return make


def _marker(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        for held in _configs(config):
            if isinstance(getattr(held, name, None), int):
                return int(getattr(held, name))
    return None


def _rows(features: Any) -> int:
    """Vectors that images become, over the whole batch."""
    held = getattr(features, "pooler_output", features)
    held = features.last_hidden_state if held is None else held
    if isinstance(held, list | tuple):
        return sum(part.reshape(-1, part.shape[-1]).shape[0] for part in held)
    return int(held.reshape(-1, held.shape[-1]).shape[0])
