"""English prose that every Python carries: the documentation behind its `help()`.

For models that read text and write none. The rule: topics of `pydoc_data.topics` by name;
paragraphs outside of code and tables, at least 12 words, nearly all letters; in order. It is
technical prose of one kind, about 30,000 words, and differs a little between Python versions: a
text of the model's own domain calibrates better.
"""

from __future__ import annotations

import re
import textwrap

__all__ = ["prose"]

WORDS = 12
LETTERS = 0.88
"""Share of letters and spaces: grammar rules and tables have fewer."""


def prose() -> str:
    """The paragraphs, separated by empty lines."""
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            paragraph = " ".join(textwrap.dedent(block).split())
            if _is_prose(paragraph):
                found[paragraph] = None
    return "\n\n".join(found)


def _is_prose(paragraph: str) -> bool:
    if len(paragraph.split()) < WORDS or not paragraph[0].isupper() or paragraph[-1] not in ".:":
        return False
    return sum(c.isalpha() or c == " " for c in paragraph) >= LETTERS * len(paragraph)
