"""What a source of calibration data holds, told by the names of its files; nothing is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, assert_never

from prunec.frontends.dataset import TABLES, is_saved, need_library, read_dataset
from prunec.frontends.passages import LEAST, Document, read_passages
from prunec.frontends.records import read_records
from prunec.frontends.text import bad_text
from prunec.ir.diagnostics import Exit, fail

__all__ = ["Kind", "check_place", "kind_of", "read_document"]

Kind = Literal["text", "records", "dataset", "arrays"]

RECORDS = (".jsonl", ".ndjson", ".json")
ARRAYS = (".npz", ".npy")


def kind_of(path: Path) -> Kind:
    """What the file or folder holds. Raises P130 when there is none, P139 for a folder of
    neither arrays nor a data set."""
    if os.path.isdir(path):
        return _kind_of_folder(path)
    if not os.path.exists(path):  # nor may its name be too long, at which pathlib raises
        fact = "the text cannot be read: no such file or directory"
        raise bad_text("P130", fact, path, "give a file or folder that exists, or `self`")
    if not path.is_file():  # it is read twice, and hashed
        raise bad_text("P130", "not a file", path, "write what the pipe or device gives to a file")
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return "arrays"
    if suffix in RECORDS:
        return "records"
    return "dataset" if suffix in TABLES else "text"


def check_place(path: Path) -> None:
    """Raise what is wrong with a source as far as it shows without the model: P130, P131, P138,
    P139, and P994 when a data set needs a package that is not installed."""
    match kind_of(path):
        case "text" | "records":
            read_document(path)
        case "dataset":
            need_library(path)
        case "arrays":
            return


def read_document(path: Path, most: int | None = LEAST, seed: int = 0) -> Document:
    """The text of a file or data set; of a very large one about `most` characters, or all of them
    with None. Raises what `check_place` does, and P130 for arrays."""
    kind = kind_of(path)
    match kind:
        case "text":
            return read_passages(path, most)
        case "records":
            return read_records(path, most)
        case "dataset":
            return read_dataset(path, most, seed)
        case "arrays":
            raise bad_text("P130", "arrays are no text", path, "give a text or JSON-lines file")
    assert_never(kind)


def _kind_of_folder(path: Path) -> Kind:
    if is_saved(path):
        return "dataset"
    arrays, tables = False, False
    for _, _, names in os.walk(path):  # folders that may not be read are as empty
        suffixes = {os.path.splitext(name)[1].lower() for name in names}
        arrays |= not suffixes.isdisjoint(ARRAYS)
        tables |= not suffixes.isdisjoint((*TABLES, *RECORDS, ".csv", ".txt"))
        if arrays and tables:
            break
    if arrays and not tables:
        return "arrays"
    if tables and not arrays:
        return "dataset"
    fact = "the folder holds both arrays and texts" if arrays else "the folder holds no data"
    raise fail(
        "P139",
        fact,
        where=str(path),
        help="give a folder of .npy or .npz files, of .parquet or .jsonl files, or one that"
        " `datasets` saved with save_to_disk",
        exit_code=Exit.USAGE,
    )
