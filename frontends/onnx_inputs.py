"""Calibration data for an ONNX file: arrays by the names of its inputs, or text where a tokenizer
lies beside it. The file says what it reads and nothing of what it is for, so it cannot make up
data of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from prunec.frontends.arrays import Array, bad_arrays, read_arrays
from prunec.frontends.given import ARRAYS, TOKENS, Inputs
from prunec.frontends.mixture import Part
from prunec.frontends.passages import needed_characters
from prunec.frontends.places import kind_of, read_document
from prunec.frontends.source import Source
from prunec.frontends.text import detokenise_wikitext, is_word_level, load_tokenizer, spread_windows
from prunec.ir.diagnostics import Exit, fail
from prunec.ir.graph import Graph, Value

__all__ = ["OnnxReader", "completed"]

EMPTY = "past"
"""How inputs begin that hold what came before; nothing has."""


@dataclass(frozen=True)
class OnnxReader:
    """Implements `prunec.frontends.given.Reads`: windows of `length` tokens of a text."""

    source: Source
    graph: Graph
    length: int
    seed: int

    def read(self, part: Part, n: int) -> Inputs:
        """At most `n` windows. Raises P130 to P140."""
        if part.path is None:
            raise fail(
                "P134",
                "an ONNX file cannot write calibration data itself",
                where=self.source.name,
                help="give inputs as arrays (--calibration FILE.npz), a text where a tokenizer lies"
                " beside the file, or use --method magnitude",
                exit_code=Exit.USAGE,
            )
        if kind_of(part.path) == "arrays":
            return self._arrays(part.path, n)
        return self._text(part.path, n)

    def _arrays(self, path: Path, n: int) -> Inputs:
        names = [value.name[1:] for value in self.graph.inputs]
        arrays, total = read_arrays(path, names, n)
        found = len(next(iter(arrays.values())))
        notes = [f"{found} of the {total} samples of {path.name} are used"]
        filled = completed(self.graph, arrays) if TOKENS in arrays else arrays
        missing = [name for name in names if name not in filled]
        if missing:
            raise bad_arrays(path, f"there is no array {missing[0]}")
        return Inputs(filled, f"{ARRAYS} of {path.name}", notes if found < total else [])

    def _text(self, path: Path, n: int) -> Inputs:
        if TOKENS not in [value.name[1:] for value in self.graph.inputs]:
            raise self._no_text(path, f"a text cannot calibrate a model without {TOKENS}")
        if not self.source.tokenizer:
            raise self._no_text(path, "there is no tokenizer beside the model")
        if find_spec("transformers") is None:
            raise self._no_text(path, "tokenising a text needs `pip install prunec[torch]`")
        document = read_document(path, needed_characters(n * self.length), self.seed)
        text, notes = document.text, list(document.notes)
        if is_word_level(text):
            text = detokenise_wikitext(text)
            notes.append(f"{path.name} is word-level text: detokenised")
        tokenizer = load_tokenizer(replace(self.source, path=self.source.folder))
        longest = getattr(tokenizer, "model_max_length", None) or self.length
        length = min(self.length, int(longest))
        ids = spread_windows(text, tokenizer, n, length, self.seed, str(path))
        return Inputs(completed(self.graph, {TOKENS: ids}), f"text of {path.name}", notes)

    def _no_text(self, path: Path, fact: str) -> Exception:
        return fail(
            "P134",
            fact,
            where=str(path),
            help="give inputs as arrays (--calibration FILE.npz), or use --method magnitude",
            exit_code=Exit.USAGE,
        )


def completed(graph: Graph, arrays: dict[str, Array]) -> dict[str, Array]:
    """What a model of text reads beside its tokens: masks of ones, positions in order, segment 0,
    and nothing that came before."""
    rows, length = arrays[TOKENS].shape[:2]
    found = {}
    for value in graph.inputs:
        name = value.name[1:]
        found[name] = arrays[name] if name in arrays else _usual(value, name, rows, length)
    return found


def _usual(value: Value, name: str, rows: int, length: int) -> Array:
    past = name.startswith(EMPTY)
    shape = [
        rows if i == 0 else d if isinstance(d, int) else 0 if past else length
        for i, d in enumerate(value.type.shape)
    ]
    if past or "f" in value.type.dtype:
        return np.zeros(shape, np.float32)
    if "mask" in name:
        return np.ones(shape, np.int64)
    if "position" in name:
        return np.broadcast_to(np.arange(length), shape).astype(np.int64)
    return np.zeros(shape, np.int64)
