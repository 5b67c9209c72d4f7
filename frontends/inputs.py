"""Inputs from one source of calibration data, complete for the model that reads them.

- a text or data set: windows spread evenly over it, at seeded places. Word-level WikiText is
  detokenised first.
- arrays: as they are, with what a model of text needs beside its tokens.
- `self`, by what the model reads and writes:
  a decoder writes its own text (`selfwritten`);
  an encoder or encoder-decoder reads English prose that Python carries (`prose`), with random
  tokens strewn in;
  a model without tokenizer reads random tokens, a vision model noise (`noise`), both weak.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from prunec.frontends.arrays import Array, bad_arrays, read_arrays
from prunec.frontends.given import ARRAYS, MASK, TOKENS, Inputs, Progress
from prunec.frontends.hf import load_model
from prunec.frontends.mixture import Part
from prunec.frontends.noise import noise_images, noise_tokens, strewn
from prunec.frontends.passages import needed_characters
from prunec.frontends.places import kind_of, read_document
from prunec.frontends.prose import prose
from prunec.frontends.selfwritten import first_token, sampling_dtype, write_text
from prunec.frontends.source import Source
from prunec.frontends.text import (
    Ids,
    detokenise_wikitext,
    frame,
    is_word_level,
    load_tokenizer,
    spread_windows,
)
from prunec.ir.diagnostics import Exit, fail

__all__ = ["ARRAYS", "MASK", "TOKENS", "Inputs", "Progress", "Reader"]

DECODED, PIXELS = "decoder_input_ids", "pixel_values"
IMAGE_SIZE = 224
"""Side of the images where neither model nor processor says; convolutions take any size."""


@dataclass(frozen=True)
class Reader:
    """Reads sources for one model: windows of `length` tokens where the length is ours to choose.

    `model` may be on the meta device: it is asked what it reads, and loaded only to write text.
    """

    source: Source
    model: PreTrainedModel
    length: int
    seed: int
    progress: Progress | None = None

    def read(self, part: Part, n: int) -> Inputs:
        """At most `n` windows. Raises P130 to P140, and P101 to P124 where weights are needed."""
        path = part.path
        if path is None:
            found = self._by_itself(n)
        elif kind_of(path) == "arrays":
            found = self._arrays(path, n)
        else:
            found = self._text(path, n)
        self._check_tokens(found, part)
        return found

    def _text(self, path: Path, n: int) -> Inputs:
        if self.model.main_input_name != TOKENS:
            raise fail(
                "P134",
                f"a text cannot calibrate a model that reads {self.model.main_input_name}",
                where=str(path),
                help="give inputs as arrays (--calibration FILE.npz), or use --calibration self",
                exit_code=Exit.USAGE,
            )
        document = read_document(path, needed_characters(n * self.length), self.seed)
        text, notes = document.text, list(document.notes)
        if is_word_level(text):
            text = detokenise_wikitext(text)
            notes.append(f"{path.name} is word-level text: detokenised")
        tokenizer = load_tokenizer(self.source)
        length = self._fit_length(notes, tokenizer)
        ids = spread_windows(text, tokenizer, n, length, self.seed, str(path))
        return self._of_text(ids, f"text of {path.name}", notes)

    def _arrays(self, path: Path, n: int) -> Inputs:
        accepted = inspect.signature(self.model.forward).parameters
        arrays, total = read_arrays(path, accepted, n)
        main = self.model.main_input_name
        if main not in arrays:
            raise bad_arrays(path, f"there is no array {main}")
        notes = [f"{len(arrays[main])} of the {total} samples of {path.name} are used"]
        notes = notes if len(arrays[main]) < total else []
        self._check_length(arrays, path)
        if TOKENS in arrays and arrays[TOKENS].dtype == np.int64:
            arrays = self._of_text(arrays[TOKENS], "", []).arrays | arrays
        return Inputs(arrays, f"{ARRAYS} of {path.name}", notes)

    def _check_length(self, arrays: dict[str, Array], path: Path) -> None:
        tokens = arrays.get(TOKENS)
        if tokens is None:
            return
        if tokens.ndim != 2 or tokens.dtype != np.int64:
            fact = f"{TOKENS} is of {tokens.dtype} and shape {list(tokens.shape)}"
            raise bad_arrays(path, fact, "save whole numbers of shape (windows, tokens)")
        longest = self._longest()
        if longest is not None and tokens.shape[1] > longest:
            fact = f"windows of {tokens.shape[1]} tokens; the model reads at most {longest}"
            raise bad_arrays(path, fact, "save shorter windows")

    def _by_itself(self, n: int) -> Inputs:
        match self.model.main_input_name:
            case "input_ids":
                return self._own_text(n)
            case "pixel_values":
                return self._noise(n)
            case other:
                raise fail(
                    "P134",
                    f"there is no built-in calibration for models that read {other}",
                    where=type(self.model).__name__,
                    help="give inputs as arrays: --calibration FILE.npz",
                )

    def _own_text(self, n: int) -> Inputs:
        model, notes = self.model, list[str]()
        if model.can_generate() and not model.config.is_encoder_decoder:
            length = self._fit_length(notes)
            before = self._before()
            if not before:
                notes.append("nothing stands before a text: its own start with random tokens")
            ids = write_text(self._writer(), n, length, self.seed, self.progress, before=before)
            return self._of_text(ids, "text written by the model itself", notes)
        if self.source.tokenizer:
            tokenizer = load_tokenizer(self.source)
            length = self._fit_length(notes, tokenizer)
            ids = spread_windows(prose(), tokenizer, n, length, self.seed, "built-in prose")
            ids = strewn(ids, tokenizer.all_special_ids, self._vocabulary(), self.seed)
            return self._of_text(
                ids, "built-in prose (Python's documentation), random tokens strewn in", notes
            )
        length = self._fit_length(notes)
        notes.append("random tokens calibrate weakly: give a tokenizer and a text")
        ids = noise_tokens(n, length, self._vocabulary(), self.seed)
        return self._of_text(ids, "random tokens", notes)

    def _before(self) -> tuple[int, ...]:
        """What the model is used to see before a text: what the tokenizer puts there, or, without
        one, the token that the model names."""
        if self.source.tokenizer:
            return frame(load_tokenizer(self.source)).before
        first = first_token(self.model)
        return () if first is None else (first,)

    def _writer(self) -> PreTrainedModel:
        on_meta = any(parameter.is_meta for parameter in self.model.parameters())
        return load_model(self.source, dtype=sampling_dtype()) if on_meta else self.model

    def _of_text(self, ids: Ids, origin: str, notes: list[str]) -> Inputs:
        """Everything that a model of text is called with."""
        arrays: dict[str, Array] = {TOKENS: ids}
        if MASK in inspect.signature(self.model.forward).parameters:
            arrays[MASK] = np.ones_like(ids)
        if self.model.config.is_encoder_decoder:
            arrays[DECODED] = self._shifted(ids)
        return Inputs(arrays, origin, notes)

    def _shifted(self, ids: Ids) -> Ids:
        """What the decoder reads while it writes `ids`: a start token, then all but the last."""
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        candidates = [getattr(self.model.config, name, None) for name in names]
        start = next((token for token in candidates if token is not None), 0)
        return np.concatenate([np.full((len(ids), 1), start, np.int64), ids[:, :-1]], axis=1)

    def _longest(self, tokenizer: Any = None) -> int | None:
        """The most tokens that the model can read, where it or its tokenizer says."""
        config = self.model.config.get_text_config()
        limits = [getattr(config, "max_position_embeddings", None)]
        limits.append(getattr(tokenizer, "model_max_length", None))
        return min((n for n in limits if isinstance(n, int) and n > 0), default=None)

    def _fit_length(self, notes: list[str], tokenizer: Any = None) -> int:
        """The length, or the longest that the model can read if that is shorter, noted then."""
        longest = self._longest(tokenizer)
        if longest is None or self.length <= longest:
            return self.length
        notes.append(f"windows have {longest} tokens, the most that the model reads")
        return longest

    def _vocabulary(self) -> int:
        """Token ids below this have an embedding."""
        held = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        return int(held or self.model.config.get_text_config().vocab_size)

    def _check_tokens(self, found: Inputs, part: Part) -> None:
        for name in (TOKENS, DECODED):
            ids = found.arrays.get(name)
            if ids is None or (part.path is None and name == DECODED):
                continue
            wrong = ids[(ids < 0) | (ids >= self._vocabulary())]
            if wrong.size:
                raise fail(
                    "P140",
                    f"token id {wrong.flat[0]} of {part.name} is outside the vocabulary of"
                    f" {self._vocabulary()} tokens",
                    where=part.place,
                    help="the tokens must come from the tokenizer of this very model",
                    exit_code=Exit.USAGE,
                )

    def _noise(self, n: int) -> Inputs:
        config = self.model.config
        channels = getattr(config, "num_channels", None) or 3
        height, width = _image_size(config)
        images = noise_images(n, channels, height, width, self.seed)
        note = "noise calibrates weakly: give real images as arrays in an .npz file"
        return Inputs({PIXELS: images}, f"noise images of {height} x {width}", [note])


def _image_size(config: Any) -> tuple[int, int]:
    holders = (config, getattr(config, "vision_config", None))
    size: Any = next((s for h in holders if (s := getattr(h, "image_size", None))), IMAGE_SIZE)
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
