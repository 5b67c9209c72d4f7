"""How long the dense and the pruned model take in the runtimes that a run has written for."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prunec.ir.diagnostics import Diagnostic
from prunec.measuring.feeds import TOKENS
from prunec.options.workload import PREFILL
from prunec.progress import Progress
from prunec.ranks import world_size
from prunec.reports.data import LatencyRow
from prunec.timing.clock import Clock, start_clock

if TYPE_CHECKING:
    from prunec.verbs.pipeline import Pruned

__all__ = ["latency_rows"]

RUNTIMES = {"hf": ("torch",), "torchscript": ("torch",), "onnx": ("onnxruntime", "openvino")}
"""What runs each format, the optional ones where they are installed."""

LENGTH = 128
"""Tokens of a sequence, at most."""


def latency_rows(pruned: Pruned, progress: Progress) -> tuple[LatencyRow, ...]:
    """Times of both models side by side: those that a target in time was measured with, and in a
    run that verifies what it writes those of every runtime of the formats.

    A runtime that cannot run them is warned of. Several processes at once would disturb one
    another, and a model with fewer tokens is no part of the dense one.
    """
    loaded, options = pruned.loaded, pruned.options
    rows = [] if loaded.clock is None else [_row(loaded.clock)]
    if not options.verify or world_size() > 1 or pruned.tokens is not None:
        return tuple(rows)
    start = time.perf_counter()
    names = dict.fromkeys(runtime for name in options.formats for runtime in RUNTIMES[name])
    for runtime in filter(find_spec, names):
        asked = replace(options, runtime=runtime, length=_length(pruned), phase=PREFILL)
        try:
            clock = start_clock(loaded.whole, asked, progress)
            pruned.race(clock)
            rows.append(_row(clock))
        except (MemoryError, OSError):
            raise
        except Exception as error:  # of whatever kind the runtime has
            warning = _untimed(runtime, error)
            progress.warn(warning)
            pruned.warnings += (warning,)
    pruned.seconds["latency"] = round(time.perf_counter() - start, 3)
    return tuple(rows)


def _length(pruned: Pruned) -> int:
    config = pruned.loaded.config
    found = None if config is None else config.get_text_config()
    limit = getattr(found, "max_position_embeddings", None)
    return min(LENGTH, pruned.options.length, limit if isinstance(limit, int) else LENGTH)


def _row(clock: Clock) -> LatencyRow:
    """The last comparison of a clock."""
    watch, last = clock.stopwatch, clock.races[-1]
    tokens = any(value.name.endswith(TOKENS) for value in clock.whole.graph.inputs)
    return LatencyRow(
        runtime=watch.runtime,
        version=watch.version,
        threads=watch.threads,
        phase=watch.phase,
        batch=watch.batch,
        length=watch.length if tokens else None,
        dense=last.dense,
        pruned=last.left,
        steady=last.steady,
    )


def _untimed(runtime: str, error: Exception) -> Diagnostic:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return Diagnostic(
        "P892",
        f"{runtime} cannot time the models: {said}",
        help="measure what was written with `prunec bench`",
    )
