"""Data sets of the `datasets` library: folders of `save_to_disk`, and folders or files of tables.

The library is optional and imported when a data set is named. Nothing is downloaded, no code of a
data set is run (version 4 of the library no longer can), and its cache is a scratch folder.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prunec.frontends.passages import LEAST, Document
from prunec.frontends.records import BETWEEN, FIELD
from prunec.frontends.text import bad_text
from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = ["TABLES", "is_saved", "need_library", "read_dataset"]

TABLES = (".parquet",)
SAVED = ("dataset_dict.json", "state.json")
TRAIN = "train"
STRINGS = ("string", "large_string", "string_view")
AT_ONCE = 256
"""Rows read at once."""
MOST_ROWS = 1 << 18
"""Rows that are looked at, at most, where not all are wanted."""


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((path / name).is_file() for name in SAVED)


def need_library(path: Path) -> None:
    """Raise P994 when `datasets` is not installed."""
    if importlib.util.find_spec("datasets") is None:
        raise fail(
            "P994",
            "reading a data set needs the package datasets, which is not installed",
            where=str(path),
            help='pip install "prunec[datasets]", or give the texts as .txt or .jsonl files',
        )


def read_dataset(path: Path, most: int | None = LEAST, seed: int = 0) -> Document:
    """Texts of a data set, an empty line between them: rows drawn evenly with `seed`, in their
    order, of about `most` characters; all rows with None.

    Of several splits `train` is read; the text is the column `text`, or the only column of texts.
    Raises P139 (cannot be read, no split or column to choose), P130 (no text), P994.
    """
    need_library(path)
    with _opened(path) as found:
        table, notes = _split(found, path)
        column = _column(table, path)
        texts = _drawn(table.select_columns([column]), column, most, seed)
    if not texts:
        raise bad_text("P130", "the data set holds no text", path, "give one that holds some text")
    if len(texts) < len(table):
        notes = (*notes, f"{path.name}: {len(texts):,} of {len(table):,} rows were read")
    return Document(BETWEEN.join(texts), notes)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as cache:
        try:
            if is_saved(path):
                found = datasets.load_from_disk(str(path))
            elif path.is_dir():
                found = datasets.load_dataset(str(path.absolute()), cache_dir=cache)
            else:  # not `load_dataset("parquet", ...)`, which tells the hub that it was called
                found = datasets.Dataset.from_parquet(str(path), cache_dir=cache)
        except Exception as error:  # of many types, from several libraries
            reason = error.__cause__ or error
            said = " ".join(str(reason).split())[:200] or type(reason).__name__
            raise _bad(path, f"the data set cannot be read: {said}") from error
        yield found


def _split(found: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    if not isinstance(found, dict):
        return found, ()
    names = list(found)
    if len(names) == 1:
        return found[names[0]], ()
    if TRAIN in found:
        return found[TRAIN], (f"{path.name}: of its splits {TRAIN} is used",)
    raise _bad(
        path,
        f"several splits ({', '.join(names)}), and none is called {TRAIN}",
        "give the folder or the files of one split",
    )


def _column(table: Any, path: Path) -> str:
    texts = [n for n, f in table.features.items() if getattr(f, "dtype", "") in STRINGS]
    if FIELD in texts or len(texts) == 1:
        return FIELD if FIELD in texts else texts[0]
    held = ", ".join(sorted(map(str, table.features)))
    fact = "several columns of text" if texts else "no column of text"
    raise _bad(path, f"{fact}, and none is called `{FIELD}`: it has {held or 'no columns'}")


def _drawn(table: Any, column: str, most: int | None, seed: int) -> list[str]:
    """Rows in a random order until there is enough, then sorted."""
    count = len(table) if most is None else min(len(table), MOST_ROWS)
    rows = np.random.default_rng(seed).choice(len(table), count, replace=False)
    found: dict[int, str] = {}
    held = 0
    for start in range(0, count, AT_ONCE):
        some = np.sort(rows[start : start + AT_ONCE])
        for row, text in zip(some, table[some.tolist()][column], strict=True):
            if text and text.strip():
                found[int(row)] = text
                held += len(text)
        if most is not None and held >= most:
            break
    return [found[row] for row in sorted(found)]


def _bad(path: Path, fact: str, remedy: str = "") -> PrunecError:
    return fail(
        "P139",
        fact,
        where=str(path),
        help=remedy or f"give a data set with a column `{FIELD}`, or a .txt or .jsonl file",
        exit_code=Exit.USAGE,
    )
