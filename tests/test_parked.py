"""Matrices that wait in a file are what they were, looked at in parts or whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunec.backends.parked import SMALL, parked
from prunec.passes import paged
from prunec.passes.paged import blocks, diagonal, loaded, release

SIZE = 400  # 1.3 MB: worth a file


def matrix(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, size))


def resident(array: np.ndarray) -> int:
    """Bytes of the file's pages that this process has at hand."""
    start = array.ctypes.data
    for part in Path("/proc/self/smaps").read_text(encoding="ascii").split("VmFlags:"):
        lines = part.strip().splitlines()
        head = next((x for x in lines if "-" in x.split(" ")[0]), "")
        if head and int(head.split("-")[0], 16) == start:
            return 1024 * int(next(x for x in lines if x.startswith("Rss:")).split()[1])
    raise AssertionError("no such mapping")


@pytest.mark.parametrize("size", [10, SIZE])
def test_it_comes_back(size: int) -> None:
    found = parked(wanted := matrix(size))
    np.testing.assert_array_equal(found, wanted)
    assert not np.shares_memory(found, wanted)
    base = found.base
    in_file = base is not None and isinstance(base.base, memoryview)
    assert in_file == (wanted.nbytes > SMALL)


def test_what_is_written_stays() -> None:
    """Pages that were handed back come again from the file, with what was written to them."""
    found = parked(matrix())
    found += 1
    release(found)
    np.testing.assert_array_equal(found, matrix() + 1)


@pytest.mark.parametrize("rows", [None, np.array([1, 5, 6, 399])])
def test_rows_one_after_the_other(rows: np.ndarray | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "BLOCK", 3 * 8 * SIZE)  # three rows
    wanted = matrix() if rows is None else matrix()[rows]
    found = np.zeros_like(wanted)
    for some, block in blocks(parked(matrix()), rows):
        assert len(block) <= 3
        found[some] += block
    np.testing.assert_array_equal(found, wanted)


def test_whole_and_diagonal() -> None:
    for one in (matrix(), parked(matrix())):
        np.testing.assert_array_equal(loaded(one), matrix())
        np.testing.assert_array_equal(diagonal(one), np.diag(matrix()))
        assert not np.shares_memory(loaded(one), one)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="tells what is resident")
def test_a_look_leaves_nothing_resident() -> None:
    found = parked(matrix())
    assert found.sum() == pytest.approx(matrix().sum())
    assert resident(found) > SIZE * SIZE * 4
    diagonal(found)
    assert resident(found) == 0
