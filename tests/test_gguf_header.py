"""A GGUF header whose lengths the file has no room for is refused, not counted to."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFWriter

from prunec.frontends.gguf_header import check_header


def written(path: Path, endian: GGUFEndian = GGUFEndian.LITTLE) -> Path:
    writer = GGUFWriter(path, "llama", endianess=endian)
    writer.add_block_count(1)
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endian", list(GGUFEndian))
def test_a_sound_header(tmp_path: Path, endian: GGUFEndian) -> None:
    check_header(written(tmp_path / "model.gguf", endian))


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (b"GGUF" + struct.pack("<I", 3), "fields"),  # the number of tensors, then that of fields
        (b"tokenizer.ggml.tokens" + struct.pack("<II", 9, 8), "values in an array"),
        (b"some.numbers" + struct.pack("<II", 9, 5), "values in an array"),
        (b"general.architecture" + struct.pack("<I", 8), "a text"),
    ],
)
def test_a_length_beyond_the_file(tmp_path: Path, before: bytes, says: str) -> None:
    path = written(tmp_path / "model.gguf")
    data = bytearray(path.read_bytes())
    at = data.index(before) + len(before) + (8 if says == "fields" else 0)
    data[at : at + 8] = struct.pack("<Q", 2**40)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"tells of {2**40} .*{says}"):
        check_header(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_that_breaks_off(tmp_path: Path, share: float) -> None:
    path = written(tmp_path / "model.gguf")
    header = path.read_bytes().index(b"blk.0") + 30
    path.write_bytes(path.read_bytes()[: int(header * share)])
    with pytest.raises(ValueError, match="header"):
        check_header(path)
