"""What `prunec factorize` did, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.passes.lowrank import params_left
from prunec.reports.data import Check, RunReport, SourceRow, WrittenFormat

if TYPE_CHECKING:
    from prunec.verbs.factorizing import Factorized

__all__ = ["FactorizeReport", "RankRow", "factorize_report"]


@dataclass(frozen=True)
class RankRow:
    """One matrix in two: its sides, the rank that stays of how many, and what truncation costs:
    the norm of the change of the layer's outputs over their own (of the weights with plain SVD).
    Of factors that were trained the theory knows no error."""

    weight: str
    outputs: int
    inputs: int
    full: int
    rank: int
    error: float | None


@dataclass(frozen=True, kw_only=True)
class FactorizeReport(RunReport):
    """What `prunec factorize` did. `dense` and `params` count every parameter once, before and
    after; `left` tells why other matrices are as they were."""

    target: str
    method: str
    ranks: str
    dense: int
    params: int
    layers: tuple[RankRow, ...]
    left: Mapping[str, str]


def factorize_report(
    found: Factorized,
    written: Sequence[WrittenFormat] = (),
    checks: Sequence[Check] = (),
    sources: Sequence[SourceRow] = (),
) -> FactorizeReport:
    options, loaded = found.options, found.loaded
    dense = loaded.cost.evaluate(loaded.cost.parameters, {})
    saved = params_left(found.spectra, {}) - params_left(found.spectra, found.ranks)
    rows = [
        RankRow(
            name,
            s.outputs,
            s.inputs,
            len(s.singular),
            rank,
            None if options.steps else _error(s.singular, rank),
        )
        for name, rank in found.ranks.items()
        for s in (found.spectra[name],)
    ]
    notes = {} if found.calibrated is None else {"calibration": found.calibrated.describe()}
    notes |= {"training": found.training} if found.training else {}
    return FactorizeReport(
        model=options.model,
        out=str(options.out) if options.out else None,
        target=options.targets[0].text,
        method=options.method,
        ranks=options.ranks,
        calibration=options.calibration,
        dense=dense,
        params=dense - saved,
        layers=tuple(rows),
        left=found.left,
        formats=tuple(written),
        checks=tuple(checks),
        sources=tuple(sources),
        seconds=found.seconds,
        warnings=found.warnings,
        notes=notes,
    )


def _error(singular: Any, rank: int) -> float:
    squares = np.square(singular)
    return float(np.sqrt(squares[rank:].sum() / (squares.sum() or 1.0)))
