"""What `prunec sparsify` did, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.ir.diagnostics import Diagnostic, Exit
from prunec.reports import Check, SourceRow, WrittenFormat, document, plain

if TYPE_CHECKING:
    from prunec.sparsifying import Sparsified
    from prunec.zeros import Broken

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


@dataclass(frozen=True)
class SparsifyReport:
    """What `prunec sparsify` did, or would do with `--dry-run`. `params` counts every parameter of
    the model once, tied ones once; `left` tells why other matrices are as they were."""

    model: str
    out: str | None
    sparsity: str
    method: str
    compare: str
    ratios: str
    calibration: str
    params: int
    layers: tuple[LayerRow, ...]
    left: Mapping[str, str]
    formats: tuple[WrittenFormat, ...] = ()
    checks: tuple[Check, ...] = ()
    sources: tuple[SourceRow, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def zeros(self) -> int:
        """Zeros in all layers that were made sparse."""
        return sum(row.zeros for row in self.layers)

    @property
    def entries(self) -> int:
        """Entries of all layers that were made sparse."""
        return sum(row.entries for row in self.layers)

    @property
    def exit_code(self) -> Exit:
        """Done, or not met when a zero is not where it should be or a verification failed."""
        whole = not any(count for row in self.layers for count in row.broken.values())
        return Exit.DONE if whole and all(c.passed for c in self.checks) else Exit.NOT_MET

    def to_json(self) -> dict[str, Any]:
        checks = [{**plain(asdict(check)), "passed": check.passed} for check in self.checks]
        own = {"zeros": self.zeros, "entries": self.entries, "exit_code": int(self.exit_code)}
        return {**document(self), "checks": checks, **own}


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
