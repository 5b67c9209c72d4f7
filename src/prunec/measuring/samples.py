"""What the dense and the pruned model give for the same input, as a report shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.reports.data import SampleRow

__all__ = ["first_numbers", "next_tokens"]

SHOWN, CONTEXT = 6, 16
"""Places of a window that are shown, or numbers of an output; tokens before each place."""

Array = npt.NDArray[Any]
Decode = Callable[[Sequence[int]], str]


def first_numbers(dense: Mapping[str, Array], small: Mapping[str, Array]) -> tuple[SampleRow, ...]:
    """The first numbers of every floating-point output that both have."""
    return tuple(
        SampleRow(name, "", _numbers(value), _numbers(small[name]))
        for name, value in dense.items()
        if name in small and np.issubdtype(value.dtype, np.floating) and value.size
    )


def next_tokens(
    written: Sequence[int], dense: Sequence[int], small: Sequence[int], decode: Decode
) -> tuple[SampleRow, ...]:
    """What both models take to be the likeliest next token after some places of a window, evenly
    spread: `dense[i]` and `small[i]` come after `written[i]`."""
    last = len(written) - 1
    places = dict.fromkeys(max(1, last * i // SHOWN) - 1 for i in range(1, SHOWN + 1))
    return tuple(
        SampleRow(
            given=decode(written[max(0, place + 1 - CONTEXT) : place + 1]),
            actual=decode(written[place + 1 : place + 2]),
            dense=decode(dense[place : place + 1]),
            pruned=decode(small[place : place + 1]),
        )
        for place in places
        if last > 0
    )


def _numbers(value: Array) -> str:
    return "  ".join(f"{number:.4g}" for number in value.ravel()[:SHOWN].tolist())
