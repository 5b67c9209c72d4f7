"""A text as windows of tokens, for the models that are to be measured on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunec.artifacts import Artifact
from prunec.feeds import Array
from prunec.ir.diagnostics import Exit, fail

__all__ = ["Corpus", "cut", "read_corpus", "read_text"]

LEAST = 2
"""Tokens without which nothing is predicted."""

WORD_TOKENISED = (" @-@ ", " @,@ ", " @.@ ", " <unk> ")
"""Marks of WikiText's word-level files; a text without them is used as it is."""


@dataclass(frozen=True)
class Corpus:
    """Token ids, shape (windows, length)."""

    windows: Array


def read_corpus(
    text: str,
    artifacts: Sequence[Artifact],
    *,
    where: Path,
    tokenizer: str | None,
    window: int,
    most: int | None,
) -> Corpus:
    """Tokenise a text with the tokenizer of the first artifact that has one.

    Windows are no longer than any of the models can read. Raises PrunecError for a text that is
    too short, and when there is no tokenizer.
    """
    folder = Path(tokenizer) if tokenizer is not None else _tokenizer_folder(artifacts)
    encoder = _load(folder, any(artifact.trust_remote_code for artifact in artifacts))
    tokens = encoder(text, add_special_tokens=False, verbose=False)["input_ids"]
    window = min(window, _most_positions(folder, encoder))
    return Corpus(cut(tokens, window, first=_first_token(encoder), most=most, where=where))


def read_text(path: Path) -> str:
    """The text of a file, detokenised if it is word-tokenised; PrunecError (exit 2) otherwise."""
    problem = ""
    try:
        text = path.read_text(encoding="utf-8")
        problem = "" if text.strip() else "is empty"
    except FileNotFoundError:
        problem = "does not exist"
    except UnicodeDecodeError:
        problem = "is not UTF-8 text"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        raise fail(
            "P851",
            f"the text {problem}",
            where=str(path),
            help="give a plain text file with --data",
            exit_code=Exit.USAGE,
        )
    if not any(mark in text for mark in WORD_TOKENISED):
        return text
    from prunec.frontends.calibration import detokenise_wikitext

    return detokenise_wikitext(text)


def cut(
    tokens: Sequence[int], window: int, *, first: int | None, most: int | None, where: Path
) -> Array:
    """Windows that do not overlap, each started by token `first` if there is one.

    A text shorter than one window is a window of its own.
    """
    room = window - (first is not None)
    whole = max(1, len(tokens) // room)
    count = min(whole, most) if most is not None else whole
    room = min(room, len(tokens))
    body = np.asarray(tokens[: count * room], np.int64).reshape(count, room)
    if first is not None:
        body = np.concatenate([np.full((count, 1), first), body], axis=1)
    if body.shape[1] >= LEAST:
        return body
    raise fail(
        "P852",
        f"the text has {len(tokens)} tokens, too few to predict one",
        where=str(where),
        help="give a longer text with --data",
        exit_code=Exit.USAGE,
    )


def _tokenizer_folder(artifacts: Sequence[Artifact]) -> Path:
    for artifact in artifacts:
        folder = artifact.tokenizer()
        if folder is not None:
            return folder
    raise fail(
        "P856",
        f"there is no tokenizer beside {artifacts[0].location}",
        help="say where it is: --tokenizer DIR, or --against a dense model that has one",
        exit_code=Exit.USAGE,
    )


def _load(folder: Path, trust: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    except Exception as error:  # of many types, from several libraries
        said = " ".join(str(error).split())[:300]
        raise fail(
            "P856",
            f"the tokenizer cannot be loaded: {said}",
            where=str(folder),
            help="say where a complete one is: --tokenizer DIR",
        ) from error


def _first_token(encoder: Any) -> int | None:
    """The beginning-of-sequence token of a tokenizer that starts every text with it."""
    start = encoder.bos_token_id
    if start is None:
        return None
    written = encoder("a")["input_ids"]
    return int(start) if written and written[0] == start else None


def _most_positions(folder: Path, encoder: Any) -> int:
    """The longest text that the model can read, as far as its files say."""
    limits = [int(encoder.model_max_length)]
    config = folder / "config.json"
    if config.is_file():
        fields = json.loads(config.read_text(encoding="utf-8"))
        nested = [f for f in fields.values() if isinstance(f, dict)]
        limits += [
            f["max_position_embeddings"]
            for f in (fields, *nested)
            if isinstance(f.get("max_position_embeddings"), int)
        ]
    return min(limits)
