"""How far two programs' outputs are from each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunec.output.checking import relative_difference

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("found", "wanted", "difference"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0], [0.0], 0.0),
        ([1.0, -INF], [2.0, -INF], 0.5),  # a score that is masked in both
        ([-INF, -INF], [-INF, -INF], 0.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, -INF], [1.0, 2.0], INF),
        ([1.0, 2.0], [1.0, -INF], INF),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, NAN], [1.0, NAN], INF),
        ([], [], 0.0),
    ],
)
def test_relative_difference(found: list[float], wanted: list[float], difference: float) -> None:
    assert relative_difference({"y": np.array(found)}, {"y": np.array(wanted)}) == difference


def test_another_shape_is_no_agreement() -> None:
    assert relative_difference({"y": np.zeros(2)}, {"y": np.zeros(3)}) == INF


def test_the_worst_output_counts_and_unnamed_ones_go_by_place() -> None:
    wanted = {"a": np.array([2.0]), "b": np.array([10.0])}
    assert relative_difference({"0": np.array([1.0]), "1": np.array([9.0])}, wanted) == 0.5
