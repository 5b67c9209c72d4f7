"""Windows to train on and windows held out to judge by, from the same sources as calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.frontends.calibration import Calibration, Share, calibration
from prunec.frontends.source import Source
from prunec.ir.diagnostics import Exit, fail
from prunec.progress import Progress
from prunec.recovery.options import RecoverOptions
from prunec.recovery.report import Gain
from prunec.recovery.rows import Inputs

__all__ = ["Texts", "read_texts"]

HELD_OUT = 16
"""Windows that are held out of all sources together."""
LEAST_SHARE = 4
"""Where a text has no windows to spare, one of so many is held out of those that it has."""


@dataclass(frozen=True)
class Texts:
    """Windows: the first `train` to train on, and those to judge by with the place in `sources`
    of each. Where there are too few, these are among the others, and `apart` is false."""

    inputs: Inputs
    train: int
    held: Sequence[int]
    labels: Sequence[int]
    sources: Sequence[Share]
    notes: tuple[str, ...]
    apart: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def held_by_source(self) -> Iterator[list[int]]:
        """The held-out windows of each source."""
        pairs = list(zip(self.held, self.labels, strict=True))
        for source in range(len(self.sources)):
            yield [row for row, label in pairs if label == source]

    def gains(self, *spoken: Sequence[float] | None) -> tuple[Gain, ...]:
        """Losses of the next token by source, of the teacher, the student before and after."""
        return tuple(
            Gain(
                share.name,
                list(self.labels).count(place),
                self.apart,
                *(None if losses is None else losses[place] for losses in spoken),
            )
            for place, share in enumerate(self.sources)
        )


def read_texts(source: Source, model: Any, options: RecoverOptions, progress: Progress) -> Texts:
    """The data that settled `options` ask for, read (or written) by `model`.

    Raises P875 when there are fewer windows than a batch, and what `calibration` raises.
    """
    assert options.samples is not None, "options are settled"
    mixture = options.mixture
    writes = any(part.path is None for part in mixture)
    with progress.step("Writing text" if writes else "Reading text"):
        found = calibration(
            source,
            model,
            options.data,
            options.samples,
            options.length,
            options.seed,
            held_out=max(1, HELD_OUT // len(mixture)),
        )
    if len(found) < options.batch:
        raise fail(
            "P875",
            f"the data have {len(found)} windows of {options.length} tokens, fewer than a batch of"
            f" {options.batch}",
            where=f"--data {options.data}",
            help="give more text, shorter windows (--length) or a smaller --batch",
            exit_code=Exit.USAGE,
        )
    return _divided(found, options.batch)


def _divided(found: Calibration, batch: int) -> Texts:
    count, sources = len(found), found.sources
    if found.held_out is not None:
        rest = found.held_out
        both = {n: np.concatenate([x, rest.inputs[n]]) for n, x in found.inputs.items()}
        return Texts(
            both, count, range(count, count + len(rest)), rest.labels, sources, found.notes
        )
    spare = min(HELD_OUT, count // LEAST_SHARE, count - batch)
    if spare >= 1:
        held = range(count - spare, count)
        labels = found.labels[count - spare :]
        return Texts(found.inputs, count - spare, held, labels, sources, found.notes)
    few = range(min(HELD_OUT, count))
    note = "too few windows to hold some out: the loss is judged on what is trained on"
    notes = (*found.notes, note)
    return Texts(found.inputs, count, few, found.labels[: len(few)], sources, notes, apart=False)
