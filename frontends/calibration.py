"""Calibration data: batches of inputs that show the model what it is used on.

Where they come from:

- a text (UTF-8): windows spread evenly over it, at seeded places; several texts, separated by
  commas, share the windows. Word-level WikiText is detokenised first.
- an `.npz` file: arrays by input name, used as they are.
- `self`, by what the model reads and writes:
  a decoder writes its own text (`selfwritten`);
  an encoder or encoder-decoder reads English prose that Python carries (`prose`);
  a model without tokenizer reads random tokens, a vision model noise (`noise`), both weak.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from prunec.frontends.hf import load_model
from prunec.frontends.noise import noise_images, noise_tokens
from prunec.frontends.prose import prose
from prunec.frontends.selfwritten import first_token, sampling_dtype, write_text
from prunec.frontends.source import Source
from prunec.frontends.text import (
    Ids,
    detokenise_wikitext,
    is_word_level,
    load_tokenizer,
    read_text,
    share,
    spread_windows,
    windows,
)
from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = ["SELF", "Calibration", "Progress", "calibration", "detokenise_wikitext", "windows"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do, in tokens."""

SELF = "self"
ARRAYS = ".npz"
TOKENS, PIXELS = "input_ids", "pixel_values"
IMAGE_SIZE = 224
"""Side of the images where neither model nor processor says; convolutions take any size."""


@dataclass(frozen=True)
class Calibration:
    """Inputs by name, each with one row a window (or image) in the first dimension.

    `origin` says where they come from, for reports; `notes` what the user should know of them.
    """

    inputs: Mapping[str, Array]
    origin: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def tokens(self) -> int:
        """Tokens (or images) in all windows."""
        first = next(iter(self.inputs.values()))
        return first.size if TOKENS in self.inputs else len(first)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Inputs of at most `size` windows at a time, in order."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def split(self, held_out: int) -> tuple[Calibration, Calibration]:
        """All but the last `held_out` windows, and those."""
        assert 0 < held_out < len(self), f"{held_out} of {len(self)} windows cannot be held out"
        cut = len(self) - held_out
        kept = {name: array[:cut] for name, array in self.inputs.items()}
        rest = {name: array[cut:] for name, array in self.inputs.items()}
        return replace(self, inputs=kept), replace(self, inputs=rest)


def calibration(
    source: Source,
    model: PreTrainedModel,
    spec: str,
    n: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> Calibration:
    """`n` windows of `length` tokens (or n images) for a model, from what `spec` names.

    `model` may be on the meta device: it is asked what it reads, and loaded only to write text.
    Token ids and masks are int64, images float32. Fewer windows than asked for, or shorter ones,
    are noted. Raises P130 to P136, and P101 to P124 where the model has to be loaded.
    """
    if spec != SELF:
        return _from_files(source, model, spec, n, length, seed)
    match model.main_input_name:
        case "input_ids":
            return _by_itself(source, model, n, length, seed, progress)
        case "pixel_values":
            return _noise(model, n, seed)
        case other:
            raise fail(
                "P134",
                f"there is no built-in calibration for models that read {other}",
                where=type(model).__name__,
                help=f"give inputs as arrays: --calibration FILE{ARRAYS}",
            )


def _from_files(
    source: Source, model: PreTrainedModel, spec: str, n: int, length: int, seed: int
) -> Calibration:
    paths = [Path(spec)] if Path(spec).exists() else [Path(part) for part in spec.split(",")]
    if len(paths) == 1 and paths[0].suffix == ARRAYS:
        return _arrays(model, paths[0], n)
    if model.main_input_name != TOKENS:
        raise fail(
            "P134",
            f"a text cannot calibrate a model that reads {model.main_input_name}",
            where=spec,
            help=f"give inputs as arrays (--calibration FILE{ARRAYS}), or use --calibration self",
            exit_code=Exit.USAGE,
        )
    texts = [read_text(path) for path in paths]
    tokenizer = load_tokenizer(source)
    length, notes = _fit_length(model, length, tokenizer)
    found = []
    for path, text, count in zip(paths, texts, share(n, paths), strict=True):
        if not count:
            notes.append(f"{path.name} is not used: there are more texts than windows")
            continue
        if is_word_level(text):
            text = detokenise_wikitext(text)
            notes.append(f"{path.name} is word-level text: detokenised")
        found.append(spread_windows(text, tokenizer, count, length, seed, str(path)))
    names = ", ".join(path.name for path in paths)
    return _of_text(model, np.concatenate(found), f"text of {names}", n, notes)


def _by_itself(
    source: Source,
    model: PreTrainedModel,
    n: int,
    length: int,
    seed: int,
    progress: Progress | None,
) -> Calibration:
    if model.can_generate() and not model.config.is_encoder_decoder:
        length, notes = _fit_length(model, length)
        if first_token(model) is None:
            notes.append("the model names no first token: its texts start with random ones")
        writer = _with_weights(source, model)
        ids = write_text(writer, n, length, seed, progress)
        return _of_text(model, ids, "text written by the model itself", n, notes)
    if source.tokenizer:
        tokenizer = load_tokenizer(source)
        length, notes = _fit_length(model, length, tokenizer)
        ids = spread_windows(prose(), tokenizer, n, length, seed, "built-in prose")
        return _of_text(model, ids, "built-in prose (Python's documentation)", n, notes)
    length, notes = _fit_length(model, length)
    notes.append("random tokens calibrate weakly: give a tokenizer and a text")
    vocabulary = model.config.get_text_config().vocab_size
    ids = noise_tokens(n, length, vocabulary, seed)
    return _of_text(model, ids, "random tokens", n, notes)


def _with_weights(source: Source, model: PreTrainedModel) -> PreTrainedModel:
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    return load_model(source, dtype=sampling_dtype()) if on_meta else model


def _of_text(
    model: PreTrainedModel, ids: Ids, origin: str, n: int, notes: list[str]
) -> Calibration:
    """Everything that a model of text is called with."""
    if len(ids) < n:
        notes.append(f"the text holds {len(ids)} windows of {ids.shape[1]} tokens, not {n}")
    inputs: dict[str, Array] = {TOKENS: ids}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        inputs["attention_mask"] = np.ones_like(ids)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _shifted(model, ids)
    return Calibration(inputs, origin, tuple(notes))


def _shifted(model: PreTrainedModel, ids: Ids) -> Ids:
    """What the decoder reads while it writes `ids`: a start token, then all but the last."""
    config = model.config
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    candidates = [getattr(config, name, None) for name in names]
    start = next((token for token in candidates if token is not None), 0)
    return np.concatenate([np.full((len(ids), 1), start, np.int64), ids[:, :-1]], axis=1)


def _fit_length(
    model: PreTrainedModel, length: int, tokenizer: Any = None
) -> tuple[int, list[str]]:
    """The length, or the longest that the model can read if that is shorter, and a note then."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    limits.append(getattr(tokenizer, "model_max_length", None))
    longest = min(
        (limit for limit in limits if isinstance(limit, int) and limit > 0), default=length
    )
    if length <= longest:
        return length, []
    return longest, [f"windows have {longest} tokens, the most that the model reads"]


def _noise(model: PreTrainedModel, n: int, seed: int) -> Calibration:
    config = model.config
    channels = getattr(config, "num_channels", None) or 3
    height, width = _image_size(config)
    images = noise_images(n, channels, height, width, seed)
    note = f"noise calibrates weakly: give real images as arrays in an {ARRAYS} file"
    return Calibration({PIXELS: images}, f"noise images of {height} x {width}", (note,))


def _image_size(config: Any) -> tuple[int, int]:
    holders = (config, getattr(config, "vision_config", None))
    size: Any = next((s for h in holders if (s := getattr(h, "image_size", None))), IMAGE_SIZE)
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _arrays(model: PreTrainedModel, path: Path, n: int) -> Calibration:
    accepted = inspect.signature(model.forward).parameters
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _bad_arrays(path, f"the arrays cannot be read: {said}") from error
    if unknown := sorted(set(inputs) - set(accepted)):
        raise _bad_arrays(path, f"the model has no input {', '.join(unknown)}")
    if model.main_input_name not in inputs:
        raise _bad_arrays(path, f"there is no array {model.main_input_name}")
    counts = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(counts) > 1 or 0 in counts:
        raise _bad_arrays(path, "the arrays differ in their first dimension, or are empty")
    wide = {name: _widened(array[:n]) for name, array in inputs.items()}
    return Calibration(wide, f"arrays of {path.name}")


def _widened(array: Array) -> Array:
    """Integers as int64 and floats as float32, as models expect them."""
    if array.dtype == np.bool_:
        return array
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)


def _bad_arrays(path: Path, fact: str) -> PrunecError:
    return fail(
        "P135",
        fact,
        where=str(path),
        help="save one array for each input of the model, first dimension the samples:"
        " numpy.savez(file, pixel_values=...)",
        exit_code=Exit.USAGE,
    )
