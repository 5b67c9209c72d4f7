"""A text as windows of tokens, for the models that are to be measured on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunec.frontends.places import read_document
from prunec.frontends.source import TOKENIZERS, Source
from prunec.frontends.text import (
    detokenise_wikitext,
    is_word_level,
    load_tokenizer,
    windows,
)
from prunec.ir.diagnostics import Exit, fail
from prunec.measuring.artifacts import Artifact
from prunec.measuring.feeds import Array

__all__ = ["Corpus", "read_corpus"]


@dataclass(frozen=True)
class Corpus:
    """Token ids, shape (windows, length), of a tokenizer that knows `vocabulary` of them, without
    those that were added to it."""

    windows: Array
    vocabulary: int


def read_corpus(
    data: Path,
    artifacts: Sequence[Artifact],
    *,
    tokenizer: str | None,
    window: int,
    most: int | None,
) -> Corpus:
    """Read a text, and tokenise it with the tokenizer of the first artifact that has one.

    The text may also be in JSON lines or a data set (see `frontends.places`). Windows are no longer
    than the model can read. Raises P130 to P133, P138 and P139 for a text that is missing, damaged,
    empty or too short and for a tokenizer that does not load, P856 when there is none.
    """
    text = read_document(data, most=None).text
    if is_word_level(text):
        text = detokenise_wikitext(text)
    folder = Path(tokenizer) if tokenizer is not None else _tokenizer_folder(artifacts)
    trust = any(artifact.trust_remote_code for artifact in artifacts)
    encoder = load_tokenizer(_tokenizer_source(folder, trust))
    length = min(window, _most_positions(folder, encoder))
    found = windows(text, encoder, length, where=str(data))[:most]
    return Corpus(found, int(encoder.vocab_size))


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


def _tokenizer_source(folder: Path, trust: bool) -> Source:
    """A folder that need not hold a model."""
    present = any((folder / name).is_file() for name in TOKENIZERS)
    return Source("config", str(folder), folder, None, None, present, trust_remote_code=trust)


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
