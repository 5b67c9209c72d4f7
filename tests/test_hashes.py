"""Hashing beside other work gives the hash of the file as it is, whatever was begun before."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunec.resume import hashes
from prunec.resume.hashes import hash_source, hashing, source_hash


def test_what_was_begun_is_what_is_given(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"one")
    with hashing(str(path)):
        begun = hashes._begun[path]
        assert source_hash(path) is begun
        assert begun.result() == hash_source(path)


def test_nothing_is_kept_for_another_run(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"one")
    with pytest.raises(KeyError), hashing(str(path)):
        raise KeyError("a run that failed before it asked")
    path.write_bytes(b"another")
    assert source_hash(path).result() == hash_source(path)


def test_what_is_not_there_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    with hashing(str(tmp_path / "missing.onnx")):
        assert not hashes._begun
