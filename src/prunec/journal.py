"""Keep the finished sites of a run, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prunec.calibrating import Calibrated
from prunec.ir.axes import Selection
from prunec.passes.profile import Array, Weights
from prunec.state import State

__all__ = ["StateJournal", "load_calibration", "save_calibration"]

KEEP, PARENT, WEIGHT = "keep:", "parent:", "weight:"


@dataclass(frozen=True)
class StateJournal:
    """Implements `prunec.passes.compress.Journal` on the state folder of a run.

    `dtypes` tells in which dtype a parameter is kept in memory; what NumPy cannot store is
    widened to float32 and narrowed again, which loses nothing.
    """

    state: State
    weights: Weights

    def load(self, site: int) -> tuple[dict[str, Selection], dict[str, Array]] | None:
        stored = self.state.load(f"site-{site}")
        if stored is None:
            return None
        selections, weights = {}, {}
        for key, array in stored.items():
            if key.startswith(KEEP):
                name = key.removeprefix(KEEP)
                parent = bytes(stored[PARENT + name]).decode() or None
                selections[name] = Selection(array, parent)
            elif key.startswith(WEIGHT):
                name = key.removeprefix(WEIGHT)
                weights[name] = array.astype(self.weights[name].dtype)
        return selections, weights

    def save(self, site: int, selections: Mapping[str, Selection], weights: Weights) -> None:
        arrays: dict[str, Array] = {}
        for name, selection in selections.items():
            arrays[KEEP + name] = selection.keep
            arrays[PARENT + name] = np.frombuffer((selection.parent or "").encode(), np.uint8)
        for name, array in weights.items():
            plain = array if array.dtype.kind in "biuf" else array.astype(np.float32)
            arrays[WEIGHT + name] = plain
        self.state.save(f"site-{site}", arrays)


def save_calibration(state: State, found: Calibrated) -> None:
    """Keep the batches: text that a model wrote is the longest step of some runs."""
    arrays = {
        f"{i}:{name}": array
        for i, batch in enumerate(found.batches)
        for name, array in batch.items()
    }
    described = "\n".join(f"{k}={v}" for k, v in found.description.items())
    state.save("calibration", arrays | {"about": np.frombuffer(described.encode(), np.uint8)})


def load_calibration(state: State) -> Calibrated | None:
    stored = state.load("calibration")
    if stored is None:
        return None
    about = bytes(stored.pop("about")).decode()
    batches: dict[int, dict[str, Array]] = {}
    for key, array in stored.items():
        number, _, name = key.partition(":")
        batches.setdefault(int(number), {})[name] = array
    description = dict(line.split("=", 1) for line in about.splitlines())
    return Calibrated(tuple(batches[i] for i in sorted(batches)), description)
