"""What `prunec sparsify` did, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.reports.data import Check, RunReport, SourceRow, WrittenFormat

if TYPE_CHECKING:
    from prunec.output.zeros import Broken
    from prunec.verbs.sparsifying import Sparsified

__all__ = ["LayerRow", "SparsifyReport", "sparsify_report"]


@dataclass(frozen=True)
class LayerRow:
    """One sparse weight: its stored shape, the dimension that is summed over, the share of zeros
    asked for, and how many of its entries are zero.

    `broken` counts for each format the entries that are not zero and should be, and the groups
    that break an N:M pattern: 0 when all is well.
    """

    weight: str
    shape: tuple[int, ...]
    dim: int
    share: float
    zeros: int
    broken: Mapping[str, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class SparsifyReport(RunReport):
    """What `prunec sparsify` did. `params` counts every parameter of the model once, tied ones
    once; `left` tells why other matrices are as they were."""

    sparsity: str
    method: str
    compare: str
    ratios: str
    params: int
    layers: tuple[LayerRow, ...]
    left: Mapping[str, str]

    @property
    def zeros(self) -> int:
        """Zeros in all layers that were made sparse."""
        return sum(row.zeros for row in self.layers)

    @property
    def entries(self) -> int:
        """Entries of all layers that were made sparse."""
        return sum(row.entries for row in self.layers)

    @property
    def met(self) -> bool:
        """Whether every zero is where it should be, and verifications hold."""
        broken = any(count for row in self.layers for count in row.broken.values())
        return super().met and not broken

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "zeros": self.zeros, "entries": self.entries}


def sparsify_report(
    found: Sparsified,
    written: Sequence[WrittenFormat] = (),
    checks: Sequence[Check] = (),
    sources: Sequence[SourceRow] = (),
    broken: Broken | None = None,
) -> SparsifyReport:
    options, loaded = found.options, found.loaded
    rows = [
        LayerRow(
            layer.weight,
            weight.shape,
            layer.dim,
            found.shares[layer.weight],
            weight.size - int(np.count_nonzero(weight)),
            {name: counts[layer.weight] for name, counts in (broken or {}).items()},
        )
        for layer in found.layers.found
        for weight in (found.replaced[layer.weight],)
    ]
    notes = {} if found.calibrated is None else {"calibration": found.calibrated.describe()}
    return SparsifyReport(
        model=options.model,
        out=str(options.out) if options.out else None,
        sparsity=options.sparsity,
        method=options.method,
        compare=options.compare,
        ratios=options.ratios,
        calibration=options.calibration,
        params=loaded.cost.evaluate(loaded.cost.parameters, {}),
        layers=tuple(rows),
        left=found.layers.left,
        formats=tuple(written),
        checks=tuple(checks),
        sources=tuple(sources),
        seconds=found.seconds,
        warnings=found.warnings,
        notes=notes,
    )
