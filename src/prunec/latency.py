"""How long the dense and the pruned program take in the runtimes that a run has written for."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prunec.progress import Progress
from prunec.ranks import world_size
from prunec.reports import LatencyRow
from prunec.timing.stopwatch import Stopwatch

if TYPE_CHECKING:
    from prunec.pipeline import Pruned

__all__ = ["latency_rows"]

RUNTIMES = {"hf": ("torch",), "torchscript": ("torch",), "onnx": ("onnxruntime", "openvino")}
"""What runs each format, the optional ones where they are installed."""

LENGTH = 128
"""Tokens of a sequence, at most."""

SECONDS = 0.5
"""Turns go on until they have taken so long."""


def latency_rows(pruned: Pruned, progress: Progress) -> tuple[LatencyRow, ...]:
    """Times of both programs side by side: those that a target in time was measured with, and in
    a run that verifies what it writes those of every runtime of the formats.

    An ONNX file is timed by `prunec bench`. Several processes at once disturb one another.
    """
    loaded, options = pruned.loaded, pruned.options
    rows = []
    if loaded.clock is not None:
        last = loaded.clock.races[-1]
        rows.append(_row(loaded.clock.stopwatch, last.dense, last.left))
    if (
        not options.verify
        or loaded.file is not None
        or world_size() > 1
        or pruned.tokens is not None
    ):
        return tuple(rows)
    start = time.perf_counter()
    length = min(LENGTH, options.length)
    names = dict.fromkeys(runtime for name in options.formats for runtime in RUNTIMES[name])
    watches = [Stopwatch(n, options.threads, options.batch, length) for n in names if find_spec(n)]
    with progress.step("Timing both models", len(watches)) as advance:
        for stopwatch in watches:
            dense = stopwatch.open(loaded.whole.graph, loaded.whole.weights)
            small = stopwatch.open(pruned.rewritten.graph, pruned.weights)
            rows.append(_row(stopwatch, *stopwatch.race([dense, small], seconds=SECONDS)))
            advance(1)
    pruned.seconds["latency"] = round(time.perf_counter() - start, 3)
    return tuple(rows)


def _row(stopwatch: Stopwatch, dense: float, pruned: float) -> LatencyRow:
    return LatencyRow(
        stopwatch.runtime, stopwatch.version, stopwatch.threads, stopwatch.batch,
        stopwatch.length, dense, pruned,
    )  # fmt: skip
