"""Safetensors in and out: lazy views, validation, layered stores, streamed slices."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from prunec.backends.gather import Gather, write_behind
from prunec.backends.safetensors_writer import Entry, Sliced, write
from prunec.frontends.weights import ArrayStore, OverlayStore, RenamedStore, WeightStore
from prunec.ir.diagnostics import PrunecError

BF16 = np.dtype(ml_dtypes.bfloat16)
TENSORS: dict[str, Any] = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.weight": np.linspace(-1, 1, 6).astype(BF16).reshape(2, 3),
    "ids": np.arange(5),
    "scale": np.array(2.5, np.float32),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def code(raised: pytest.ExceptionInfo[PrunecError]) -> str:
    assert all(d.help for d in raised.value.diagnostics), "every diagnostic has a remedy"
    return raised.value.diagnostics[0].code


def refused(folder: Path) -> str:
    with pytest.raises(PrunecError) as raised:
        WeightStore(folder)
    return code(raised)


def raw(folder: Path, header: object, data: bytes = b"") -> Path:
    """Write a safetensors file by hand; a str header is taken as it is."""
    text = header if isinstance(header, str) else json.dumps(header)
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return folder


def shards(folder: Path, weight_map: dict[str, str]) -> Path:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_views_are_read_only_and_equal_what_was_stored(folder: Path) -> None:
    store = WeightStore(folder)
    assert set(store) == set(TENSORS)
    for name, array in TENSORS.items():
        assert store.shape(name) == array.shape
        assert store.dtype(name) == array.dtype
        np.testing.assert_array_equal(store[name], array)
        assert not store[name].flags.writeable
        assert not store[name].flags.owndata
    assert store.nbytes == 12 * 4 + 6 * 2 + 5 * 8 + 4


def test_views_outlive_their_store(folder: Path) -> None:
    view = WeightStore(folder)["a.weight"]
    assert view.sum() == 66


def test_shards(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a.weight"]}, tmp_path / "x-1.safetensors")
    save_file({"b": TENSORS["b.weight"]}, tmp_path / "x-2.safetensors")
    store = WeightStore(shards(tmp_path, {"a": "x-1.safetensors", "b": "x-2.safetensors"}))
    assert sorted(store) == ["a", "b"]
    np.testing.assert_array_equal(store["a"], TENSORS["a.weight"])


def test_hub_snapshots_may_link_to_their_blobs(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"a": TENSORS["a.weight"]}, blobs / "1234")
    (snapshot / "x.safetensors").symlink_to(blobs / "1234")
    assert "a" in WeightStore(shards(snapshot, {"a": "x.safetensors"}))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "C:\\x", "a\\..\\..\\x", ""])
def test_shards_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    assert refused(shards(tmp_path, {"a": name})) == "P105"


def test_shard_that_links_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    save_file({"a": TENSORS["a.weight"]}, tmp_path / "x.safetensors")
    (inside / "x.safetensors").symlink_to(tmp_path / "x.safetensors")
    assert refused(shards(inside, {"a": "x.safetensors"})) == "P105"


def test_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    assert refused(shards(tmp_path, {"a": "x-1.safetensors"})) == "P105"


def test_index_that_names_a_missing_tensor(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a.weight"]}, tmp_path / "x.safetensors")
    assert refused(shards(tmp_path, dict.fromkeys("ab", "x.safetensors"))) == "P105"


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in "xy":
        save_file({"a": TENSORS["a.weight"], name: np.zeros(1)}, tmp_path / f"{name}.safetensors")
    weight_map = {"a": "x.safetensors", "x": "x.safetensors", "y": "y.safetensors"}
    assert refused(shards(tmp_path, weight_map)) == "P105"


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert refused(tmp_path) == "P105"


def test_no_weights(tmp_path: Path) -> None:
    assert refused(tmp_path) == "P101"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "consolidated.00.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert refused(tmp_path) == "P102"


def test_what_trainers_leave_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"")
    assert refused(tmp_path) == "P101"


@pytest.mark.parametrize("size", [0, 5, 8, 40, -1])
def test_truncated(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:size])
    assert refused(folder) == "P103"


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ("not json", 0),
        ("[" * 100_000, 0),
        ([], 0),
        ({"a": 3}, 0),
        ({"a": F32}, 7),  # cut short
        ({"a": F32}, 9),  # something follows
        ({"a": F32, "b": F32}, 8),  # overlap
        ({"a": F32 | {"data_offsets": [4, 12]}}, 12),  # hole
        ({"a": F32 | {"data_offsets": [0, 4]}}, 4),  # size is not that of the shape
        ({"a": F32 | {"data_offsets": [8, 0]}}, 8),
        ({"a": F32 | {"data_offsets": [0]}}, 8),
        ({"a": F32 | {"shape": [-2]}}, 8),
        ({"a": F32 | {"shape": [2.0]}}, 8),
        ({"a": F32 | {"shape": [True]}}, 4),
        ({"a": F32 | {"shape": [2**62, 4]}}, 8),
        (f'{{"a": {json.dumps(F32)}, "a": {json.dumps(F32)}}}', 8),
    ],
)
def test_damaged_headers(tmp_path: Path, header: object, length: int) -> None:
    assert refused(raw(tmp_path, header, bytes(length))) == "P103"


def test_header_longer_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    assert refused(tmp_path) == "P103"


def test_unknown_dtype(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    assert refused(raw(tmp_path, header, b"0")) == "P104"


def test_layers_of_stores() -> None:
    base = ArrayStore({"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)})
    store = OverlayStore(base, {"b": np.full(4, 7, np.float32), "c": np.ones(1)})
    assert list(store) == ["a", "b", "c"]
    assert len(store) == 3
    assert store.shape("b") == (4,)
    assert store["b"][0] == 7
    assert store.nbytes == 12 + 16 + 8
    renamed = RenamedStore(base, {"x": "a", "tied": "a"})
    assert renamed["tied"].shape == (3,)
    assert renamed.nbytes == 12, "tied names count once"


def test_written_files_load_with_safetensors(tmp_path: Path) -> None:
    entries = [Entry(n, a.dtype, a.shape, lambda a=a: a) for n, a in TENSORS.items()]
    path = tmp_path / "model.safetensors"
    assert write(path, entries, {"format": "pt"}) == path.stat().st_size
    loaded = load_file(path)
    for name, array in TENSORS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert set(WeightStore(tmp_path)) == set(TENSORS)


def test_writer_takes_slices(folder: Path) -> None:
    array = WeightStore(folder)["a.weight"]
    sliced = Sliced(array, {0: np.array([0, 2]), 1: np.array([1, 3])})
    path = folder / "out.safetensors"
    write(path, [Entry("a", array.dtype, sliced.shape, lambda: sliced)])
    np.testing.assert_array_equal(load_file(path)["a"], [[1, 3], [9, 11]])


def test_writer_frees_nothing_it_was_not_given(tmp_path: Path) -> None:
    entry = Entry("empty", np.dtype(np.float32), (0, 4), lambda: np.empty((0, 4), np.float32))
    write(tmp_path / "x.safetensors", [entry])
    assert load_file(tmp_path / "x.safetensors")["empty"].shape == (0, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, dtype: str, value: float) -> None:
    array = np.zeros((3, 5), np.float32)
    array[1, 2] = value
    # float8_e4m3fn has no infinity: numpy makes it a NaN.
    typed = array.astype(getattr(ml_dtypes, dtype, dtype))
    with pytest.raises(PrunecError, match=r"layer\.weight.*\[1, 2\]") as raised:
        write(tmp_path / "x", [Entry("layer.weight", typed.dtype, typed.shape, lambda: typed)])
    assert code(raised) == "P150"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_the_largest_values_are_finite(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    info: Any = np.iinfo(kind) if dtype == "int8" else ml_dtypes.finfo(kind)
    array = np.array([info.max, info.min], kind)
    path = tmp_path / "x.safetensors"
    write(path, [Entry("a", kind, array.shape, lambda: array)])
    assert path.stat().st_size > 0


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3}))
    entry = Entry("a", np.dtype(np.float32), (2,), lambda: np.zeros(2, np.float32))
    with pytest.raises(PrunecError) as raised:
        write(tmp_path / "x", [entry])
    assert code(raised) == "P151"
    assert not os.listdir(tmp_path)


@st.composite
def slices(draw: st.DrawFn) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """An array (sometimes not contiguous) and kept indices of some of its dimensions."""
    shape = draw(st.lists(st.integers(1, 12), max_size=4))
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    if draw(st.booleans()):
        array = array.T
    keep = {}
    for d, n in enumerate(array.shape):
        width = draw(st.sampled_from([w for w in range(1, n + 1) if n % w == 0]))
        blocks = draw(st.none() | st.sets(st.integers(0, n // width - 1)))
        if blocks is not None:
            first = np.array(sorted(blocks), np.int64) * width
            keep[d] = (first[:, None] + np.arange(width)).reshape(-1)
    return array, keep


def taken(array: np.ndarray, keep: dict[int, np.ndarray]) -> np.ndarray:
    for d, indices in keep.items():
        array = array.take(indices, axis=d)
    return array


@settings(max_examples=300, deadline=None)
@given(slices(), st.sampled_from([8, 64, 4096]))
def test_chunks_are_the_slice(
    given_slice: tuple[np.ndarray, dict[int, np.ndarray]], size: int
) -> None:
    array, keep = given_slice
    expected = taken(array, keep)
    gather = Gather(size)
    for _ in range(2):  # buffers are reused
        chunks = [chunk.copy() for chunk in gather.chunks(array, keep)]
        found = np.concatenate(chunks) if chunks else np.empty(0)
        np.testing.assert_array_equal(found, expected.reshape(-1))


@settings(max_examples=100, deadline=None)
@given(slices(), st.sampled_from([8, 64, 4096]))
def test_a_chunk_lasts_while_the_next_is_gathered(
    given_slice: tuple[np.ndarray, dict[int, np.ndarray]], size: int
) -> None:
    array, keep = given_slice
    expected = taken(array, keep)
    held = io.BytesIO()
    write_behind(held, Gather(size).chunks(array, keep))
    assert held.getvalue() == expected.tobytes()
    before: list[np.ndarray] = []
    for chunk in Gather(size).chunks(array, keep):
        if before:
            np.testing.assert_array_equal(*before)
        before = [chunk, chunk.copy()]


class Full(io.RawIOBase):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")


def test_a_full_disk_is_told() -> None:
    with pytest.raises(OSError, match="no space left"):
        write_behind(Full(), Gather(8).chunks(np.arange(100), {0: np.arange(0, 100, 2)}))


def test_order_of_indices_is_kept() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    keep = {0: np.array([2, 0]), 1: np.array([3, 1, 2])}
    found = np.concatenate([c.copy() for c in Gather().chunks(array, keep)])
    np.testing.assert_array_equal(found, [11, 9, 10, 3, 1, 2])
