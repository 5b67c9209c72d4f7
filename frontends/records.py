"""JSON-lines files as text: one record a line, its field `text` or its only text field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunec.frontends.passages import LEAST, Document, lines
from prunec.frontends.text import bad_text, unreadable_text
from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = ["BETWEEN", "FIELD", "read_records"]

FIELD = "text"
BETWEEN = "\n\n"
"""What stands between two records."""


def read_records(path: Path, most: int | None = LEAST) -> Document:
    """The texts of a JSON-lines file, an empty line between them; empty lines are passed over.

    Of a very large file about `most` bytes are read (see `passages`). Raises P130 (missing,
    empty) and P138 (a line that is no record with a text, named by its number).
    """
    try:
        found, notes = lines(path, most)
        texts = [_text(line, f"{path}: {where}") for where, line in found if line.strip()]
    except OSError as error:
        raise unreadable_text(path, error) from error
    text = BETWEEN.join(filter(str.strip, texts))
    if not text:
        raise bad_text("P130", "the file holds no text", path, "give records that hold some text")
    return Document(text, notes)


def _text(line: bytes, where: str) -> str:
    try:
        record = json.loads(line.decode("utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise _damaged(where, f"not UTF-8: byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        fact = f"not JSON: {error.msg} at column {error.colno}"
        raise _damaged(where, fact) from error
    except (ValueError, RecursionError) as error:  # endless digits, endless brackets
        raise _damaged(where, "JSON that is out of all proportion") from error
    if not isinstance(record, dict):
        raise _damaged(where, "not a JSON object")
    return _field(record, where)


def _field(record: Mapping[str, Any], where: str) -> str:
    """The text of a record."""
    texts = [name for name, value in record.items() if isinstance(value, str)]
    if FIELD in record and FIELD not in texts:
        raise _damaged(where, f"the field `{FIELD}` is not a text")
    if not texts:
        raise _damaged(where, "the record has no text field")
    if FIELD not in texts and len(texts) > 1:
        named = ", ".join(sorted(texts)[:5])
        raise _damaged(where, f"several text fields ({named}), and none is called `{FIELD}`")
    text: str = record[FIELD if FIELD in texts else texts[0]]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _damaged(where, "half a character (a lone surrogate) in the text") from error
    return text


def _damaged(where: str, fact: str) -> PrunecError:
    return fail(
        "P138",
        fact,
        where=where,
        help='one JSON object a line, with a field `text`: {"text": "..."};'
        " plain text goes into a file that is not named .json or .jsonl",
        exit_code=Exit.USAGE,
    )
