"""Read a text file, or as much of a very large one as calibration can use.

A file of up to `WHOLE` bytes is read as it is. A larger one is read at places spread evenly over
it, `PASSAGE` bytes or whole lines at each: a corpus of many gigabytes costs no more than a small
one, and no part of it is left out for being late in the file.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunec.frontends.text import CHARACTERS, bad_text, not_utf8, read_text

__all__ = ["Document", "lines", "needed_characters", "read_passages"]

WHOLE = 32 << 20
PASSAGE = 128 << 10
LEAST = 16 << 20
"""Bytes that are read of a large file, at least."""

CONTINUES = bytes(range(0x80, 0xC0))
"""Bytes that cannot start a character in UTF-8."""


@dataclass(frozen=True)
class Document:
    """A text for calibration, and what the user should know of how it was read."""

    text: str
    notes: tuple[str, ...] = ()


def needed_characters(tokens: int) -> int:
    """Characters that hold `tokens` in ordinary text, with room to choose from."""
    return max(LEAST, tokens * CHARACTERS)


def read_passages(path: Path, most: int | None = LEAST) -> Document:
    """The text of a file, or about `most` bytes of it. Raises P130 and P131, as `read_text`."""
    if most is None or path.stat().st_size <= max(WHOLE, most):
        return Document(read_text(path))
    found, places = [], _places(path, most)
    with path.open("rb") as stream:
        for place in places:
            stream.seek(place)
            found.append(_decoded(stream.read(PASSAGE), place, path))
    text = "\n\n".join(found)
    if not text.strip():
        raise bad_text("P130", "the text is empty", path, "give a file that holds some text")
    return Document(text, (_told(path, len(places)),))


def lines(
    path: Path, most: int | None = LEAST
) -> tuple[Iterator[tuple[str, bytes]], tuple[str, ...]]:
    """Lines of a file, or about `most` bytes of them, each with words that say where it is; notes.

    Lines end at a line feed alone: other ends of lines may stand within a JSON string.
    """
    if most is None or path.stat().st_size <= max(WHOLE, most):
        return _all_lines(path), ()
    places = _places(path, most)
    return _some_lines(path, places), (_told(path, len(places)),)


def _all_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            yield f"line {number}", line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _some_lines(path: Path, places: list[int]) -> Iterator[tuple[str, bytes]]:
    """Whole lines from each place on, at least one; none twice."""
    with path.open("rb") as stream:
        for place in places:
            if stream.tell() > place:
                continue
            stream.seek(place)
            if place:
                stream.readline()
            start = stream.tell()
            while line := stream.readline():
                yield f"the line at byte {start}", line.removeprefix(codecs.BOM_UTF8)
                start = stream.tell()
                if start >= place + PASSAGE:
                    break


def _places(path: Path, most: int) -> list[int]:
    size = path.stat().st_size
    count = max(1, min(most, size) // PASSAGE)
    return [i * (size - PASSAGE) // max(1, count - 1) for i in range(count)]


def _decoded(data: bytes, place: int, path: Path) -> str:
    """The whole words of a passage that may begin and end within a character."""
    cut = data.removeprefix(codecs.BOM_UTF8) if not place else data.lstrip(CONTINUES)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(cut)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, place + len(data) - len(cut)) from error
    words = text.split(" ", 1)
    text = text if not place or len(words) == 1 else words[1]
    return text.rpartition(" ")[0] or text


def _told(path: Path, places: int) -> str:
    size = path.stat().st_size / 1e6
    return f"{path.name} has {size:,.0f} MB: read at {places} places spread evenly over it"
