"""Inputs that a model of transformers accepts, by the names in its signature and configuration.

`feeds` gives ways to call a model, the fullest first: the caller tries them and takes the first
that runs. What a way leaves open is filled by name (`fills.py`): first what the signature requires,
then masks and companions as well. Encoders of packed images are given what transformers computes
from the images' sizes before it exports, for sizes as data cannot be traced.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from fills import BINS, PATCHES, Inputs, Make, configs, filled, first
from transformers.exporters.utils import precompute_export_inputs

__all__ = ["BATCH", "feeds"]

Dims = dict[str, dict[int, str]]
Feed = tuple[Make, Dims]
BATCH, SEQUENCE, DECODER = "batch", "sequence", "decoder_sequence"


def feeds(model: Any) -> Iterator[Feed]:
    """Ways to call the model, with the dimensions that may vary."""
    accepted = inspect.signature(model.forward).parameters
    main = _main(model, accepted)
    ways = list(_ways(model, main, accepted))
    yield from ((filled(model.config, make, accepted, _required), dims) for make, dims in ways)
    for name in (n for n in GRIDS if n in accepted):
        yield from _packed(model, main, name, accepted)
    ways += list(_beside(model, accepted))
    yield from ((filled(model.config, make, accepted, _any), dims) for make, dims in ways)


def _main(model: Any, accepted: Mapping[str, Any]) -> str:
    """The input that the model is for; some classes name one that they do not have."""
    main = str(model.main_input_name)
    if main in accepted or "input_ids" in accepted:
        return main if main in accepted else "input_ids"
    return next((n for n, p in accepted.items() if _required(p)), next(iter(accepted)))


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD


def _any(parameter: inspect.Parameter) -> bool:
    return True


def _ways(model: Any, main: str, accepted: Mapping[str, Any]) -> Iterator[Feed]:
    config = model.config
    pixels = next((n for n in ("pixel_values", "pixel_values_videos") if n in accepted), None)
    if pixels and "input_ids" in accepted:
        yield from _mixed(model, pixels, accepted)
    if main == "input_ids":
        yield _text(config, accepted), _text_dims(accepted, config)
        return
    if main == "inputs" and hasattr(config, "vocab_size"):

        def words(batch: int, length: int) -> Inputs:
            return {main: _text(config, {})(batch, length)["input_ids"]}

        yield words, {main: {0: BATCH, 1: SEQUENCE}}
    for shape in _shapes(main, model):
        yield _sense(main, shape, config, accepted), {main: {0: BATCH}} | _decoded(accepted, config)


def _beside(model: Any, accepted: Mapping[str, Any]) -> Iterator[Feed]:
    """Text with sound beside it."""
    text = _text(model.config, accepted)
    for name in ("input_features", "input_values"):
        if name not in accepted or "input_ids" not in accepted:
            continue
        for shape in _shapes(name, model):
            sound = _sense(name, shape, model.config, {})

            def both(batch: int, length: int, sound: Make = sound) -> Inputs:
                return text(batch, length) | sound(batch, length)

            yield both, _text_dims(accepted, model.config) | {name: {0: BATCH}}


# -- many images packed into one row of patches -----------------------------------------------

GRIDS = ("grid_thw", "image_grid_thw")


def _packed(model: Any, main: str, grid: str, accepted: Mapping[str, Any]) -> Iterator[Feed]:
    """Patches of two images, one below the other, and what transformers computes from the sizes
    before it exports. The images are alike: its attention over packed images, as it is exported,
    holds for images of one size alone."""
    config = model.config
    sizes = torch.tensor([[1, *PATCHES]] * 2)
    rows = int(sizes.prod(dim=1).sum())
    channels = first(config, "num_channels", "in_channels", "in_chans", default=3)
    side = first(config, "patch_size", default=14)
    frames = first(config, "temporal_patch_size", default=1)
    flat = channels * side * side
    shapes = ((rows, flat * frames), (rows, flat), (rows, channels, side, side))
    for shape in dict.fromkeys(shapes):

        def make(batch: int, length: int, shape: tuple[int, ...] = shape) -> Inputs:
            generator = torch.Generator().manual_seed(0)
            found: Inputs = {main: torch.randn(*shape, generator=generator), grid: sizes}
            if "merge_sizes" in accepted:
                found["merge_sizes"] = torch.full((2,), 2)
            precompute_export_inputs(model, found)
            return {name: value for name, value in found.items() if value is not None}

        yield make, {}


# -- text, images and sounds ------------------------------------------------------------------


def _tokens(config: Any) -> int:
    sizes = [getattr(c, "vocab_size", None) for c in configs(config)]
    return min((n for n in sizes if isinstance(n, int) and n > 8), default=16)


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


def _decoded(accepted: Mapping[str, Any], config: Any) -> Dims:
    return {"decoder_input_ids": {0: BATCH, 1: DECODER}} if _pairs(accepted, config) else {}


def _text_dims(accepted: Mapping[str, Any], config: Any) -> Dims:
    names = [
        n for n in ("input_ids", "attention_mask", "bbox") if n in accepted or n == "input_ids"
    ]
    return {n: {0: BATCH, 1: SEQUENCE} for n in names} | _decoded(accepted, config)


def _side(config: Any) -> tuple[int, int]:
    for held in configs(config):
        for name in ("image_size", "img_size", "input_size"):
            value = getattr(held, name, None)
            if isinstance(value, int) and value > 0:
                return value, value
            if isinstance(value, list | tuple) and len(value) == 2:
                return int(value[0]), int(value[1])
    return 64, 64


def _shapes(main: str, model: Any) -> Iterator[tuple[int, ...]]:
    """Shapes without the batch that a main input may have."""
    config = model.config
    channels = first(config, "num_channels", "in_channels", "in_chans", default=3)
    height, width = _side(config)
    frames = first(config, "num_frames", "frames_per_clip", "tubelet_size", default=4)
    mels = first(config, *BINS, default=80)
    longest = first(config, "max_source_positions", "max_length", default=32)
    if main in ("pixel_values", "pixel_values_videos"):
        yield (channels, height, width)
        yield (channels, 64, 64)
        yield (channels, 224, 224)
        yield (frames, channels, height, width)
        yield (channels, frames, height, width)
        yield (2, channels, height, width)
        yield (math.prod(PATCHES), channels * first(config, "patch_size", default=16) ** 2)
    elif main in ("input_features", "audio_mel"):
        yield (mels, 2 * longest)
        yield (32, mels)
        yield (64, mels)
        yield (1, 64, mels)
        yield (1, 1001, 64)
        yield (48, 4 * mels)
        yield (mels, 3000)
    elif main == "past_values":
        length = first(config, "context_length", "prediction_length", default=32)
        lags = first(config, "lags_sequence", default=0)
        yield (length + lags,)
        yield (length, first(config, "num_input_channels", default=1))
    elif main.endswith(("_embeds", "hidden_states")):
        yield (7, first(config, "hidden_size", "d_model", default=48))
    elif main == "flattened_patches":
        yield (24, 2 + 3 * first(config, "patch_size", default=16) ** 2)
    elif main in ("input_values", "waveform", "audio_values", "inputs"):
        yield (3200,)
        yield (1, 3200)
        yield (first(config, "max_length", default=64), mels)
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


def _mixed(model: Any, name: str, accepted: Mapping[str, Any]) -> Iterator[Feed]:
    """Text and pixels: side by side, or pixels in the place of marked tokens."""
    config = model.config
    text = _text(config, accepted)
    for shape in _shapes(name, model):
        pixels = _sense(name, shape, config, {})

        def beside(batch: int, length: int, pixels: Make = pixels) -> Inputs:
            return text(batch, length) | pixels(batch, length)

        marker = _marker(config)
        if marker is None:
            yield beside, _text_dims(accepted, config) | {name: {0: BATCH}}
            continue
        try:
            with torch.no_grad():
                features = model.get_image_features(pixels(2, 6)[name])
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
        for held in configs(config):
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
