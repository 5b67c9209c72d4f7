"""Text as windows of token ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.frontends.source import Source
from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = [
    "CHARACTERS",
    "Frame",
    "Ids",
    "bad_text",
    "detokenise_wikitext",
    "frame",
    "is_word_level",
    "load_tokenizer",
    "not_utf8",
    "read_text",
    "spread_windows",
    "unreadable_text",
    "windows",
]

Ids = npt.NDArray[np.int64]

LARGE = 4_000_000
"""Characters from which on a text is tokenised only where its windows are."""
CHARACTERS = 16
"""Characters of a large text set aside for each token; ordinary text needs 3 to 5."""

PART = 1 << 16
"""Characters that are tokenised at a time."""
AROUND = 256
"""Characters on both sides of a place that show whether a text can be cut there."""
SPACE = re.compile(r"\S(?=\s)")
"""The last letter of a word: white space belongs to what follows it, or to itself."""

MARKS = (" @-@ ", " @,@ ", " @.@ ")
# What the word-level form did to the text, and how it is undone, in this order.
UNDO: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r" ([.,;:!?%)\]])", r"\1"),
        (r"([(\[]) ", r"\1"),
        (r" (n't|'s|'re)", r"\1"),
    )
)


def is_word_level(text: str) -> bool:
    """Whether a text carries the marks of WikiText's word-level files."""
    return any(mark in text for mark in MARKS)


def detokenise_wikitext(text: str) -> str:
    """Undo the word-level form of WikiText, lightly: ` @-@ ` and its like, spaces before
    punctuation and inside brackets, before `n't`, `'s` and `'re`.

    Headings (` = Title = `), quotes, `<unk>` and the spaces at the ends of lines stay. Idempotent
    on ordinary text.
    """
    for pattern, replacement in UNDO:
        text = pattern.sub(replacement, text)
    return text


def read_text(path: Path) -> str:
    """The text of a file. Raises P130 (missing, empty) and P131 (not UTF-8)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    except OSError as error:
        raise unreadable_text(path, error) from error
    if not text.strip():
        raise bad_text("P130", "the text is empty", path, "give a file that holds some text")
    return text


def not_utf8(path: Path, error: UnicodeDecodeError, start: int = 0) -> PrunecError:
    """P131 for a file of which the part from byte `start` on was decoded."""
    fact = f"not UTF-8 text: byte {start + error.start} is {error.object[error.start]:#04x}"
    remedy = f"convert it: iconv -f LATIN1 -t UTF-8 {path.name}; unpack it if it is compressed"
    return bad_text("P131", fact, path, remedy)


def unreadable_text(path: Path, error: OSError) -> PrunecError:
    """P130 for a file that the system does not open."""
    fact = f"the text cannot be read: {(error.strerror or str(error)).lower()}"
    return bad_text("P130", fact, path, "give the path of a text file")


def bad_text(code: str, fact: str, path: Path, remedy: str) -> PrunecError:
    return fail(code, fact, where=str(path), help=remedy, exit_code=Exit.USAGE)


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a source. Raises P133 when there is none, or it cannot be loaded."""
    if not source.tokenizer:
        raise fail(
            "P133",
            "the model has no tokenizer, so text means nothing to it",
            where=str(source.folder),
            help="put tokenizer.json beside config.json, or use --calibration self",
        )
    from transformers import AutoTokenizer

    from prunec.frontends.quiet import quiet

    quiet()
    with _told("cannot be loaded", source.folder):
        return AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=source.trust_remote_code, local_files_only=True
        )


@contextmanager
def _told(what: str, where: object) -> Iterator[None]:
    """Raise P133 for whatever goes wrong in a tokenizer: errors of many types, from several
    libraries, and panics of the one in Rust, which are no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise fail(
            "P133",
            f"the tokenizer {what}: {said}",
            where=str(where),
            help="complete its files, or install what it asks for",
        ) from error


@dataclass(frozen=True)
class Frame:
    """Special tokens that the tokenizer puts around every text, such as BOS or CLS and SEP."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def room(self, length: int) -> int:
        """Tokens of text in a window of `length`."""
        return length - len(self.before) - len(self.after)

    def around(self, body: Ids) -> Ids:
        """Windows of text tokens, shape (n, room), with the special ones, shape (n, length)."""
        before, after = (
            np.broadcast_to(np.array(ids, np.int64), (len(body), len(ids)))
            for ids in (self.before, self.after)
        )
        return np.concatenate([before, body, after], axis=1)


def frame(tokenizer: Any) -> Frame:
    """Find the special tokens by tokenising one letter with and without them."""
    with _told("fails", getattr(tokenizer, "name_or_path", "")):
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return Frame(tuple(full[:start]), tuple(full[start + len(bare) :]))
    return Frame()


def tokenise(text: str, tokenizer: Any) -> Ids:
    """Token ids of a text without special tokens; of a long one a part at a time, since tokenizers
    keep tens of bytes for every character of what they are given."""
    found, start = [], 0
    while start < len(text):
        stop = _seam(text, start + PART, tokenizer)
        found.append(_encoded(text[start:stop], tokenizer))
        start = stop
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _encoded(text: str, tokenizer: Any) -> Ids:
    with _told("fails", getattr(tokenizer, "name_or_path", "")):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, np.int64)


def _seam(text: str, most: int, tokenizer: Any) -> int:
    """A place shortly before `most` where a text can be cut without changing its tokens: before
    white space, where that shows in what lies around it; the end, where it does not."""
    end = SPACE.search(text, most - AROUND, most) if most < len(text) else None
    if end is None:
        return len(text)
    at = end.end()
    before, after = text[at - AROUND : at], text[at : at + AROUND]
    apart = [_encoded(part, tokenizer) for part in (before, after)]
    if not np.array_equal(np.concatenate(apart), _encoded(before + after, tokenizer)):
        return len(text)
    return at


def windows(text: str, tokenizer: Any, length: int, where: str = "") -> Ids:
    """All full windows of a text from its start, shape (k, length), without overlap.

    Each has the special tokens that the tokenizer puts around a text. Raises P132 when the text
    is shorter than one window.
    """
    around = frame(tokenizer)
    room = _room(around, length)
    ids = tokenise(text, tokenizer)
    count = len(ids) // room
    if not count:
        raise _too_short(len(ids), room, where)
    return around.around(ids[: count * room].reshape(count, room))


def spread_windows(
    text: str, tokenizer: Any, n: int, length: int, seed: int, where: str = ""
) -> Ids:
    """At most `n` windows spread evenly over a text, shape (k, length), without overlap.

    The text is cut into n equal parts, and each gives one window at a seeded place. A text with
    fewer than n windows gives all it has. Raises P132 when it is shorter than one window.
    """
    around = frame(tokenizer)
    room = _room(around, length)
    rng = np.random.default_rng(seed)
    if len(text) > max(LARGE, n * room * CHARACTERS):
        return around.around(_from_large(text, tokenizer, n, room, rng, where))
    ids = tokenise(text, tokenizer)
    n = min(n, len(ids) // room)
    if not n:
        raise _too_short(len(ids), room, where)
    part = len(ids) // n
    starts = [i * part + int(rng.integers(part - room + 1)) for i in range(n)]
    return around.around(np.stack([ids[start : start + room] for start in starts]))


def _from_large(
    text: str, tokenizer: Any, n: int, room: int, rng: np.random.Generator, where: str
) -> Ids:
    part, passage = len(text) // n, room * CHARACTERS
    found = []
    for i in range(n):
        start = i * part + int(rng.integers(max(1, part - passage)))
        # From the next line or word on, so that no word is cut.
        start = max(text.find(" ", start, start + part) + 1, start)
        ids = tokenise(text[start : start + passage], tokenizer)[:room]
        if len(ids) < room:
            raise _too_short(len(ids), room, where)
        found.append(ids)
    return np.stack(found)


def _room(around: Frame, length: int) -> int:
    room = around.room(length)
    if room > 0:
        return room
    raise fail(
        "P132",
        f"windows of {length} tokens have no room beside the special tokens",
        help="ask for longer windows",
        exit_code=Exit.USAGE,
    )


def _too_short(held: int, room: int, where: str) -> PrunecError:
    return fail(
        "P132",
        f"the text has {held:,} tokens, fewer than one window of {room:,}",
        where=where,
        help="give a longer text, or ask for shorter windows",
        exit_code=Exit.USAGE,
    )
