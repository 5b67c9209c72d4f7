"""Inputs made of seeded noise, for models that neither write nor read text, and beside text.

Weak calibration: noise has the mean, the deviation and the falling spectrum of photographs (power
~ 1/f^2, Field 1987), but shows nothing, so the later layers see little of what they were
trained on. Real inputs in an `.npz` file are better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["noise_images", "noise_tokens", "strewn"]

SHARED = 0.9
"""Correlation of the color channels of photographs, about."""

STREWN = 0.3
"""Share of tokens that random ones take the place of."""


def noise_images(n: int, channels: int, height: int, width: int, seed: int) -> npt.NDArray[Any]:
    """Images as after normalisation, shape (n, channels, height, width), float32: each channel
    has mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    distance[0, 0] = np.inf  # no constant part
    shape = (n, channels, height, width)
    shared = rng.standard_normal((n, 1, height, width))
    white = SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * rng.standard_normal(shape)
    images = np.fft.irfft2(np.fft.rfft2(white) / distance, s=(height, width))
    deviation = images.std(axis=(2, 3), keepdims=True)
    return (images / np.where(deviation == 0, 1, deviation)).astype(np.float32)


def noise_tokens(n: int, length: int, vocabulary: int, seed: int) -> npt.NDArray[np.int64]:
    """Uniform token ids, shape (n, length)."""
    return np.random.default_rng(seed).integers(vocabulary, size=(n, length), dtype=np.int64)


def strewn(
    ids: npt.NDArray[np.int64], special: Sequence[int], vocabulary: int, seed: int
) -> npt.NDArray[np.int64]:
    """Text of shape (n, length) in which STREWN of the tokens are any of the vocabulary.

    Prose of one kind leaves most of the vocabulary unseen, and with it directions that other texts
    use. Special tokens neither go nor come.
    """
    rng = np.random.default_rng(seed)
    plain = np.setdiff1d(np.arange(vocabulary), np.asarray(special, np.int64))
    chosen = (rng.random(ids.shape) < STREWN) & ~np.isin(ids, special)
    return np.where(chosen, rng.choice(plain, ids.shape), ids)
