"""Text that comes from models and files, made safe to show in a terminal or in Markdown."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["markdown", "printable"]

MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$-])")

INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, reorder or hide text, or cannot be encoded."""


def printable(text: str) -> str:
    """`text` with control characters spelled out; line breaks stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in INVISIBLE else _spelled(char)
        for char in text
    )


def markdown(text: str) -> str:
    """`text` on one line, as literal text in Markdown and in its tables."""
    return MARKDOWN.sub(r"\\\1", printable(" ".join(text.split())))


def _spelled(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
