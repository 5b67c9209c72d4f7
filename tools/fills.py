"""What a model's signature asks for beside its main inputs, made by the name of the argument.

`filled` completes inputs: masks of what is there, words of a second text, vectors in the place of
embeddings, features of a series in time, the places of patches.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["BINS", "PATCHES", "Inputs", "Make", "configs", "filled", "first"]

Inputs = dict[str, Any]
Make = Callable[[int, int], Inputs]
"""Inputs for a number of examples and of tokens."""

PATCHES = (4, 6)
"""Rows and columns of an image that comes as patches."""

BINS = (
    "num_mel_bins", "feature_size", "input_dim", "n_mels", "input_feat_per_channel",
    "input_channels", "input_feat_size",
)  # fmt: skip


def configs(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            yield from configs(value)


def first(config: Any, *names: str, default: int) -> int:
    for name in names:
        for held in configs(config):
            value = getattr(held, name, None)
            if isinstance(value, list | tuple) and value and isinstance(value[0], int):
                value = value[-1]
            if isinstance(value, int) and value > 0:
                return value
    return default


def filled(
    config: Any,
    make: Make,
    accepted: Mapping[str, inspect.Parameter],
    wanted: Callable[[inspect.Parameter], bool],
) -> Make:
    """The same inputs with more: all that are wanted and that a name tells how to make."""

    def whole(batch: int, length: int) -> Inputs:
        found = make(batch, length)
        for name, parameter in accepted.items():
            if name in found or not wanted(parameter):
                continue
            for pattern, fill in FILLS:
                if re.search(pattern, name):
                    value = fill(config, found, batch)
                    found |= {} if value is None else {name: value}
                    break
        return found

    return whole


Fill = Callable[[Any, Inputs, int], torch.Tensor | None]


def _given(found: Inputs, *names: str) -> torch.Tensor | None:
    return next((found[name] for name in names if name in found), None)


def _frames(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    """Which frames of a sound are there: all."""
    sound = _given(found, "input_features", "audio_mel", "input_values")
    if sound is None:
        return None
    mels = first(config, *BINS, default=80)
    length = sound.shape[1] if sound.shape[-1] == mels or sound.dim() == 2 else sound.shape[-1]
    return torch.ones(batch, length, dtype=torch.bool)


def _words(config: Any, found: Inputs, batch: int) -> torch.Tensor:
    return torch.arange(3, 10).expand(batch, 7).contiguous()


def _vectors(config: Any, found: Inputs, batch: int) -> torch.Tensor:
    return _random(batch, 7, first(config, "hidden_size", "d_model", default=48))


def _encoded(config: Any, found: Inputs, batch: int) -> torch.Tensor:
    return _random(batch, 9, first(config, "encoder_hidden_size", "hidden_size", default=48))


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def _patches(found: Inputs) -> torch.Tensor | None:
    """Images that come as rows of patches."""
    pixels = _given(found, "pixel_values")
    return pixels if pixels is not None and pixels.dim() == 3 else None


def _patch_mask(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    patches = _patches(found)
    return None if patches is None else torch.ones(patches.shape[:2], dtype=torch.int64)


def _patch_grid(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    return None if _patches(found) is None else torch.tensor([PATCHES] * batch)


def _patch_places(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    if _patches(found) is None:
        return None
    rows, columns = PATCHES
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return places.expand(batch, rows * columns, 2).contiguous()


def _seen_images(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    """Which of the images each token may look at: all."""
    words, pixels = _given(found, "input_ids"), _given(found, "pixel_values")
    if words is None or pixels is None or pixels.dim() < 5:
        return None
    return torch.ones(*words.shape, pixels.shape[1], dtype=torch.int64)


def _image_places(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    """Which tokens stand for the latents of an image: some in the middle."""
    words = _given(found, "input_ids")
    count = first(config, "latent_query_num", default=0)
    if words is None or words.shape[1] < count + 2:
        return None
    mask = torch.zeros(words.shape, dtype=torch.bool)
    mask[:, 1 : 1 + count] = True
    return mask


def _series(steps: str, channels: str = "") -> Fill:
    """Values of a series in time: as long as the past that is given, or as what is predicted."""

    def fill(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
        past = _given(found, "past_values")
        if past is None:
            return None
        length = past.shape[1] if steps == "past" else first(config, steps, default=5)
        inner = (first(config, channels, default=0),) if channels else ()
        return torch.rand(batch, length, *inner, generator=torch.Generator().manual_seed(3)) + 0.5

    return fill


def _observed(config: Any, found: Inputs, batch: int) -> torch.Tensor | None:
    past = _given(found, "past_values")
    return None if past is None else torch.ones_like(past)


FILLS: tuple[tuple[str, Fill], ...] = (
    (r"past_values_padding", lambda c, f, b: torch.zeros(f["past_values"].shape, dtype=torch.long)),
    (r"^freq$", lambda c, f, b: torch.zeros(b, 1, dtype=torch.long)),
    (r"past_time_features", _series("past", "num_time_features")),
    (r"future_time_features", _series("prediction_length", "num_time_features")),
    (r"future_values", _series("prediction_length")),
    (r"observed_mask", _observed),
    (r"^pixel_attention_mask$", _patch_mask),
    (r"^spatial_shapes$", _patch_grid),
    (r"^pixel_position_ids$", _patch_places),
    (r"^(input_features|feature|features|padding|audio|audio_mel)_(attention_)?mask$", _frames),
    (r"^qformer_input_ids$", _words),
    (r"^task_inputs$", lambda c, f, b: torch.ones(b, first(c, "task_seq_len", default=77))),
    (r"^image_attention_mask$", _seen_images),
    (r"^image_embeds_position_mask$", _image_places),
    (r"^encoder_hidden_states$", _encoded),
    (r"^(query|noise)_embeds$|^(context_)?hidden_states$", _vectors),
)
"""Inputs by name; the first pattern that fits."""
