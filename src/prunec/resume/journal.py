"""Keep the finished sites of a run, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from prunec.ir.axes import Selection
from prunec.passes.compress import Finished
from prunec.passes.profile import Array, Weights
from prunec.passes.score import Lost
from prunec.resume.state import State
from prunec.runs.calibrating import Calibrated, Sample

__all__ = ["StateJournal", "load_calibration", "save_calibration"]

KEEP, PARENT, WEIGHT, LOST = "keep:", "parent:", "weight:", "lost:"
BATCH, SAMPLE = "batch", "sample"


@dataclass(frozen=True)
class StateJournal:
    """Implements `prunec.passes.compress.Journal` on the state folder of a run.

    `dtypes` tells in which dtype a parameter is kept in memory; what NumPy cannot store is
    widened to float32 and narrowed again, which loses nothing.
    """

    state: State
    weights: Weights

    def load(self, site: int) -> Finished | None:
        stored = self.state.load(f"site-{site}")
        if stored is None:
            return None
        selections, weights, lost = {}, {}, {}
        for key, array in stored.items():
            if key.startswith(KEEP):
                name = key.removeprefix(KEEP)
                parent = bytes(stored[PARENT + name]).decode() or None
                selections[name] = Selection(array, parent)
            elif key.startswith(WEIGHT):
                name = key.removeprefix(WEIGHT)
                weights[name] = array.astype(self.weights[name].dtype)
            elif key.startswith(LOST):
                kind, _, name = key.removeprefix(LOST).partition(":")
                lost[name] = Lost(kind, array)
        return Finished(selections, weights, lost)

    def save(self, site: int, finished: Finished) -> None:
        arrays: dict[str, Array] = {
            f"{LOST}{lost.kind}:{name}": lost.at for name, lost in finished.lost.items()
        }
        for name, selection in finished.selections.items():
            arrays[KEEP + name] = selection.keep
            arrays[PARENT + name] = np.frombuffer((selection.parent or "").encode(), np.uint8)
        for name, array in finished.weights.items():
            plain = array if array.dtype.kind in "biuf" else array.astype(np.float32)
            arrays[WEIGHT + name] = plain
        self.state.save(f"site-{site}", arrays)


def save_calibration(state: State, found: Calibrated) -> None:
    """Keep the batches: text that a model wrote is the longest step of some runs."""
    stored = {
        f"{BATCH}{i}:{k}": x for i, batch in enumerate(found.batches) for k, x in batch.items()
    }
    for i, sample in enumerate(found.samples):
        stored |= {f"{SAMPLE}{i}:{name}": array for name, array in sample.inputs.items()}
    about = {
        "description": dict(found.description),
        "sources": [asdict(share) for share in found.sources],
        "labels": found.labels,
        "samples": [(sample.source, sample.held_out) for sample in found.samples],
    }
    state.save("calibration", stored | {"about": _bytes(json.dumps(about))})


def load_calibration(state: State) -> Calibrated | None:
    stored = state.load("calibration")
    if stored is None:
        return None
    from prunec.frontends.calibration import Share

    about = json.loads(bytes(stored.pop("about")))
    inputs: dict[str, dict[str, Array]] = {}
    for key, array in stored.items():
        place, _, name = key.partition(":")
        inputs.setdefault(place, {})[name] = array
    count = sum(place.startswith(BATCH) for place in inputs)
    return Calibrated(
        tuple(inputs[f"{BATCH}{i}"] for i in range(count)),
        about["description"],
        tuple(Share(**share) for share in about["sources"]),
        tuple(about["labels"]),
        tuple(
            Sample(source, inputs[f"{SAMPLE}{i}"], held_out)
            for i, (source, held_out) in enumerate(about["samples"])
        ),
    )


def _bytes(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8)
