"""Inputs for a model of any kind, made from the names, dtypes and shapes that it declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.ir.diagnostics import fail

__all__ = ["TOKENS", "Array", "Feeds", "InputSpec", "example_feeds", "token_feeds"]

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

TOKENS = "input_ids"
SAFE_TOKENS = 32
"""Token ids below this are in every vocabulary; which ones makes no difference to the time."""


@dataclass(frozen=True)
class InputSpec:
    """One input: texts in `shape` are dynamic sizes, the first dimension being the batch."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def takes_tokens(self) -> bool:
        return self.name.endswith(TOKENS)

    @property
    def holds_past(self) -> bool:
        """Whether it is a cache of keys or values."""
        return self.name.startswith("past")


def example_feeds(
    specs: Sequence[InputSpec], *, batch: int, length: int, past: int = 0, seed: int = 0
) -> Feeds:
    """Inputs at a batch size and sequence length, after so many tokens whose keys and values are
    inputs too, the same for every model given one seed.

    Where a model reads tokens at fixed sizes only, these are taken instead.
    """
    rng = np.random.default_rng(seed)
    for spec in specs:
        if spec.takes_tokens and len(spec.shape) == 2:
            batch, length = (
                fixed if isinstance(fixed, int) else asked
                for fixed, asked in zip(spec.shape, (batch, length), strict=True)
            )
    tokens = rng.integers(0, SAFE_TOKENS, (batch, length))
    return _filled(specs, tokens, rng, past)


def token_feeds(specs: Sequence[InputSpec], tokens: Array) -> Feeds:
    """Inputs for given tokens, shape (batch, length); raises PrunecError for models of no text."""
    if not any(spec.takes_tokens for spec in specs):
        names = ", ".join(spec.name for spec in specs)
        raise fail(
            "P853",
            f"the model does not read text: its inputs are {names}",
            help="eval measures models that take input_ids; bench measures any",
        )
    return _filled(specs, tokens, np.random.default_rng(0))


def _filled(
    specs: Sequence[InputSpec], tokens: Array, rng: np.random.Generator, past: int = 0
) -> Feeds:
    return {spec.name: _value(spec, tokens, rng, past) for spec in specs}


def _value(spec: InputSpec, tokens: Array, rng: np.random.Generator, past: int) -> Array:
    if spec.takes_tokens and len(spec.shape) == 2:
        return tokens.astype(spec.dtype)
    shape = tuple(_size(spec, i, tokens.shape, past) for i in range(len(spec.shape)))
    if "mask" in spec.name:
        return np.ones(shape, spec.dtype)
    if "position" in spec.name:
        places = np.arange(past, past + shape[-1], dtype=spec.dtype)
        return np.broadcast_to(places, shape).copy()
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return rng.standard_normal(shape).astype(spec.dtype)
    return np.full(shape, spec.dtype == "bool" and past > 0, spec.dtype)  # whether to use a cache


def _size(spec: InputSpec, dim: int, tokens: tuple[int, ...], past: int) -> int:
    """Static sizes as they are; dynamic ones are the batch, the past, the length, or both."""
    size = spec.shape[dim]
    if isinstance(size, int):
        return size
    if dim == 0:
        return tokens[0]
    if spec.holds_past:
        return past
    return tokens[1] + past if "mask" in spec.name else tokens[1]
