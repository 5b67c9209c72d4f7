"""BLAKE3 of what a run reads. Imports little: hashing starts before all else that a run needs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from prunec.resume.background import in_background

__all__ = ["hash_data", "hash_source", "hashing", "source_hash"]

MODEL_FILES = {".json", ".safetensors", ".model", ".txt", ".py", ".jinja"}
"""What a folder means as a model; its pictures and read-me files may change."""

CHUNK_BYTES = 1 << 20
"""Read at a time: enough for all lanes of the processor, little enough to stay in its cache."""

_begun: dict[Path, Future[str]] = {}


@contextmanager
def hashing(model: str) -> Iterator[None]:
    """Within the block a file is hashed beside what else is done; `source_hash` gives it. Nothing
    is kept beyond: the file may be another one by then."""
    path = Path(model).expanduser().absolute()
    if path.is_file():
        _begun[path] = in_background(lambda: hash_source(path))
    try:
        yield
    finally:
        _begun.pop(path, None)


def source_hash(path: Path) -> Future[str]:
    """`hash_source` on its way, begun here unless it was begun before."""
    begun = _begun.pop(path.absolute(), None)
    return begun or in_background(lambda: hash_source(path))


def hash_source(path: Path) -> str:
    """BLAKE3 of a file, of an ONNX file with its external data, or of a model folder.

    A folder's hash covers the names and contents of the files that make it a model. Raises P240
    and P241 for an ONNX file whose data must not be read.
    """
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix in MODEL_FILES and p.is_file()]
    else:
        files = [path, *_external_data(path)]
    if len(files) == 1 and files[0] == path:
        return _hash_file(path)
    total = blake3()
    for file in sorted(files, key=lambda p: p.name):
        total.update(f"{file.name}\0{_hash_file(file)}\n".encode())
    return total.hexdigest()


def hash_data(path: Path) -> str:
    """BLAKE3 of a file, or of a folder: of the names and contents of all files in it."""
    if not path.is_dir():
        return _hash_file(path)
    total = blake3()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return total.hexdigest()


def _hash_file(path: Path) -> str:
    found, buffer = blake3(), bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            found.update(memoryview(buffer)[:count])
    return found.hexdigest()


def _external_data(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights."""
    if path.suffix.lower() != ".onnx":
        return []
    from prunec.frontends.onnx_data import data_files

    return data_files(path)
