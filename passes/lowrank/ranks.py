"""How many ranks each matrix keeps, so that the model has the size that was asked for.

A matrix (m, n) of rank k is stored as k (m + n) numbers. Where that is not fewer than m n, two
factors would be larger than the one, which then stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Spectrum", "energies", "energy", "params_left", "pays", "uniform", "worthiest"]

STEPS = 60


@dataclass(frozen=True)
class Spectrum:
    """The sides of a matrix, and its singular values in the norm that truncation minimises."""

    outputs: int
    inputs: int
    singular: npt.NDArray[np.float64]

    @property
    def dense(self) -> int:
        """Numbers in the matrix."""
        return self.outputs * self.inputs

    @property
    def each(self) -> int:
        """Numbers that one rank takes."""
        return self.outputs + self.inputs


Spectra = Mapping[str, Spectrum]
Ranks = dict[str, int]


def pays(spectrum: Spectrum, rank: int) -> bool:
    """Whether two factors of this rank are smaller than the matrix."""
    return rank * spectrum.each < spectrum.dense


def params_left(spectra: Spectra, ranks: Mapping[str, int]) -> int:
    """Numbers in all matrices; one that is not in `ranks` is whole."""
    return sum(ranks[name] * s.each if name in ranks else s.dense for name, s in spectra.items())


def uniform(spectra: Spectra, limit: int) -> Ranks:
    """The same share of each matrix, as SVD-LLM has it; at most `limit` numbers in all."""

    def at(share: float) -> Ranks:
        return _settled(spectra, {n: int(share * s.dense / s.each) for n, s in spectra.items()})

    return _most(spectra, limit, at)


def energy(spectra: Spectra, limit: int) -> Ranks:
    """The worthiest ranks by what they carry for what they take (`energies`)."""
    return worthiest(spectra, limit, energies(spectra))


def energies(spectra: Spectra) -> dict[str, npt.NDArray[np.float64]]:
    """Of each rank the squared singular value, over all of its matrix's and over the numbers that
    it takes."""
    return {name: _energy(spectrum) for name, spectrum in spectra.items()}


def worthiest(
    spectra: Spectra, limit: int, worths: Mapping[str, npt.NDArray[np.floating]]
) -> Ranks:
    """How many ranks of each matrix are above one threshold for all; at most `limit` numbers."""
    values = np.sort(np.concatenate([*worths.values()]))[::-1]

    def at(share: float) -> Ranks:
        threshold = values[min(int(share * len(values)), len(values) - 1)]
        return _settled(spectra, {n: int((w > threshold).sum()) for n, w in worths.items()})

    return _most(spectra, limit, at)


def _energy(spectrum: Spectrum) -> npt.NDArray[np.float64]:
    squares = spectrum.singular**2
    return squares / (squares.sum() or 1.0) / spectrum.each


def _settled(spectra: Spectra, ranks: Ranks) -> Ranks:
    """One rank at least, and none where two factors would be larger."""
    least = {name: max(1, rank) for name, rank in ranks.items()}
    return {name: rank for name, rank in least.items() if pays(spectra[name], rank)}


def _most(spectra: Spectra, limit: int, at: Callable[[float], Ranks]) -> Ranks:
    """The most ranks within the limit: by halving, since more never takes less."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = params_left(spectra, at(middle)) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return at(low)
