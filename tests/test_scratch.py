"""Arrays kept in a file come back as they were."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from prunec.resume.scratch import Scratch


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_what_is_put_in_comes_out(dtype: type) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, (7, n)).astype(dtype) for n in (3, 1000))
    scratch = Scratch()
    scratch["a"], scratch["b"] = first, second.T
    scratch["empty"], scratch["scalar"] = first[:0], np.array(1, dtype)
    assert list(scratch) == ["a", "b", "empty", "scalar"]
    assert scratch["b"].dtype == dtype
    np.testing.assert_array_equal(scratch["a"], first)
    np.testing.assert_array_equal(scratch["b"], second.T)
    assert scratch["empty"].shape == (0, 3)
    assert scratch["scalar"] == 1


def test_a_view_outlives_what_replaces_it() -> None:
    scratch = Scratch()
    scratch["a"] = np.arange(5)
    before = scratch["a"]
    scratch["a"] = np.arange(9)
    np.testing.assert_array_equal(before, np.arange(5))
    assert len(scratch["a"]) == 9
    with pytest.raises(ValueError, match="read-only"):
        before[0] = 1
