"""Low rank as structure: a matrix becomes two, and the axis between them is a group like others."""

from __future__ import annotations

from prunec.passes.lowrank.factorize import Factored, factorable, factorize, names_of
from prunec.passes.lowrank.ranks import (
    Spectrum,
    energies,
    energy,
    params_left,
    pays,
    uniform,
    worthiest,
)
from prunec.passes.lowrank.truncate import Factors, plain, whitened

__all__ = [
    "Factored",
    "Factors",
    "Spectrum",
    "energies",
    "energy",
    "factorable",
    "factorize",
    "names_of",
    "params_left",
    "pays",
    "plain",
    "uniform",
    "whitened",
    "worthiest",
]
