"""Calibration data for a run, cut into batches that fit a block's activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from prunec.loading import Loaded
from prunec.options import PruneOptions
from prunec.progress import Progress

__all__ = ["Calibrated", "calibrate"]

Array = npt.NDArray[Any]

TOKENS_AT_ONCE = 2048
"""Tokens of one batch: enough to keep matrix products efficient, few enough for one block."""


@dataclass(frozen=True)
class Calibrated:
    """Batches of program inputs by name; `description` says where the data come from."""

    batches: tuple[Mapping[str, Array], ...]
    description: Mapping[str, Any]

    def describe(self) -> Mapping[str, Any]:
        return self.description


def calibrate(loaded: Loaded, options: PruneOptions, progress: Progress) -> Calibrated:
    """Read or generate the calibration data that `options` ask for.

    Raises PrunecError when the data are empty, too short, or cannot be tokenised.
    """
    from prunec.frontends.calibration import calibration

    title = "Writing calibration text" if options.calibration == "self" else "Reading calibration"
    total = options.calibration_samples * options.calibration_length
    with progress.step(title, total) as advance:
        done = 0

        def tell(now: int, of: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        found = calibration(
            loaded.source,
            loaded.model,
            options.calibration,
            options.calibration_samples,
            options.calibration_length,
            options.seed,
            tell,
        )
    for note in found.notes:
        progress.note(note)
    needed = [value.name[1:] for value in loaded.graph.inputs]
    width = max(1, TOKENS_AT_ONCE // options.calibration_length)
    batches = tuple({name: batch[name] for name in needed} for batch in found.batches(width))
    described = {"origin": found.origin, "windows": len(found), "tokens": found.tokens}
    return Calibrated(batches, described | {"notes": list(found.notes)})
