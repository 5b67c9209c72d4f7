"""Arrays go to a file and come back as they were, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from prunec.backends.array_file import read_arrays, write_arrays


def test_they_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "wide": rng.standard_normal((3, 4, 5)),
        "/model/half\n\"'": rng.standard_normal((2, 7)).astype(np.float16),
        "brain": rng.standard_normal((2, 7)).astype(ml_dtypes.bfloat16),
        "turned": np.arange(12, dtype=np.int64).reshape(3, 4).T,
        "mask": np.array([True, False]),
        "single": np.array(7, np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "words": np.array([["a", "b\n"], ["", "d"]], dtype=object),
        "no words": np.array([], dtype=object),
    }
    write_arrays(arrays, tmp_path / "file")
    found = read_arrays(tmp_path / "file")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tolist() == array.tolist()
        found[name][...] = found[name]  # it may be written to
