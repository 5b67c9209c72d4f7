"""Make a tokenizer smaller: which tokens it needs to write the kept ones, and their new ids.

`document` is the content of a tokenizer.json, as the library `tokenizers` defines it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["needed", "trimmed"]

Document = dict[str, Any]
Ids = Mapping[int, int]

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
PAIR = ("sep", "cls")
"""Post-processors that name their tokens as [text, id]."""


def needed(document: Document, wanted: Iterable[int]) -> set[int]:
    """The wanted ids, and those of the tokens without which these cannot be written: added and
    unknown tokens, single bytes, and what merges make them of."""
    model = document["model"]
    pieces = dict(_pieces(model))
    ids = {piece: number for number, piece in pieces.items()}
    kept = set(wanted) | {token["id"] for token in document.get("added_tokens", ())}
    kept |= {number for number in (ids.get(model.get("unk_token")), model.get("unk_id"))
             if number is not None}  # fmt: skip
    kept |= {number for number, piece in pieces.items() if _is_byte(piece, document)}
    made = {first + second: (first, second) for first, second in reversed(list(_merges(model)))}
    waiting = list(kept)
    while waiting:
        for part in made.get(pieces.get(waiting.pop(), ""), ()):
            number = ids.get(part)
            if number is not None and number not in kept:
                kept.add(number)
                waiting.append(number)
    return kept


def trimmed(document: Document, kept: Sequence[int]) -> Document:
    """The tokenizer with these tokens alone, in ascending order; each gets its place as its id.

    A text that the whole tokenizer writes with kept tokens alone is written with the same ones.
    """
    new = {old: place for place, old in enumerate(kept)}
    model = dict(document["model"])
    stays = {piece for number, piece in _pieces(model) if number in new}
    if isinstance(model["vocab"], dict):
        numbers = {p: new[n] for p, n in model["vocab"].items() if n in new}
        model["vocab"] = dict(sorted(numbers.items(), key=lambda item: item[1]))
    else:
        model["vocab"] = [row for number, row in enumerate(model["vocab"]) if number in new]
    if "merges" in model:
        model["merges"] = [
            merge
            for merge, (first, second) in zip(model["merges"], _merges(model), strict=True)
            if {first, second, first + second} <= stays
        ]
    if model.get("unk_id") is not None:
        model["unk_id"] = new[model["unk_id"]]
    added = [token | {"id": new[token["id"]]} for token in document.get("added_tokens", ())]
    found = document | {"model": model, "added_tokens": added}
    if document.get("padding"):
        found["padding"] = document["padding"] | {"pad_id": new[document["padding"]["pad_id"]]}
    if document.get("post_processor"):
        found["post_processor"] = _processor(document["post_processor"], new)
    return found


def _pieces(model: Document) -> Iterator[tuple[int, str]]:
    """Id and text of every token of the model."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        yield from ((number, piece) for piece, number in vocab.items())
    else:
        yield from ((number, row[0]) for number, row in enumerate(vocab))


def _merges(model: Document) -> Iterator[tuple[str, str]]:
    """Pairs of texts that become one, first ones first."""
    for merge in model.get("merges") or ():
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield first, second


def _is_byte(piece: str, document: Document) -> bool:
    """Whether a token stands for one byte of any text."""
    if document["model"].get("byte_fallback"):
        return BYTE.fullmatch(piece) is not None
    return len(piece) == 1 and "ByteLevel" in str(
        (document.get("pre_tokenizer"), document.get("decoder"))
    )


def _processor(processor: Any, new: Ids) -> Any:
    """A post-processor with the new ids, and those inside of it."""
    found = dict(processor)
    for key, value in processor.items():
        if key == "processors":
            found[key] = [_processor(inner, new) for inner in value]
        elif key == "special_tokens" and isinstance(value, dict):
            found[key] = {
                name: token | {"ids": [new[number] for number in token["ids"]]}
                for name, token in value.items()
            }
        elif key in PAIR and isinstance(value, list):
            found[key] = [value[0], new[value[1]]]
    return found
