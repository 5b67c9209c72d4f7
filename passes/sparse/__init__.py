"""Sparsity: single weights become zero, in the shape that the model has."""

from __future__ import annotations

from prunec.passes.sparse.layers import Layer, Layers, layers
from prunec.passes.sparse.patterns import NofM, Pattern, Share, parse_pattern, violations
from prunec.passes.sparse.pruners import COMPARE, Pruner, pruner
from prunec.passes.sparse.ratios import RATIOS
from prunec.passes.sparse.sparsify import check_fits, sparsify

__all__ = [
    "COMPARE",
    "RATIOS",
    "Layer",
    "Layers",
    "NofM",
    "Pattern",
    "Pruner",
    "Share",
    "check_fits",
    "layers",
    "parse_pattern",
    "pruner",
    "sparsify",
    "violations",
]
