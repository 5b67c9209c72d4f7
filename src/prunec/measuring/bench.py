"""Latency of models, measured in turns, so that whatever else the machine does meets them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.measuring.artifacts import find_artifacts, for_runtime, for_step
from prunec.measuring.feeds import TOKENS, Feeds, example_feeds
from prunec.measuring.runners import Runner
from prunec.options.workload import DECODE, PREFILL
from prunec.progress import Progress
from prunec.reports.data import plain
from prunec.timing.laps import Laps, doubt

__all__ = ["BenchOptions", "BenchReport", "BenchRow", "bench", "measure"]

WARM_UP = 2


@dataclass(frozen=True)
class BenchOptions:
    """What `prunec bench` is asked to measure: `length` tokens at once, or in the phase `decode`
    one more after so many. `threads` None leaves it to the runtime."""

    models: tuple[str, ...]
    runtime: str | None = None
    phase: str = PREFILL
    batch: int = 1
    length: int = 128
    threads: int | None = None
    repeat: int = 10
    trust_remote_code: bool = False


@dataclass(frozen=True)
class BenchRow:
    """One model. `speedup` is the first model's median over this one's; times in seconds."""

    model: str
    kind: str
    runtime: str
    params: int
    bytes: int
    median: float
    fastest: float
    slowest: float
    tokens_per_second: float
    speedup: float


@dataclass(frozen=True)
class BenchReport:
    """What `prunec bench` measured; not `steady`, and not to be trusted, when the machine was busy
    with other things."""

    phase: str
    batch: int
    length: int
    threads: int | None
    repeat: int
    steady: bool
    rows: tuple[BenchRow, ...]

    def to_json(self) -> dict[str, Any]:
        found = plain(asdict(self))
        assert isinstance(found, dict)
        return found


def bench(options: BenchOptions, progress: Progress) -> BenchReport:
    """Measure every model; raises PrunecError for what cannot be run."""
    _check(options)
    decoding = options.phase == DECODE
    choose = for_step if decoding else for_runtime
    chosen = [
        choose(
            find_artifacts(model, trust_remote_code=options.trust_remote_code),
            model,
            options.runtime,
        )
        for model in options.models
    ]
    runtimes = [options.runtime or artifact.runtime for artifact in chosen]
    if len(set(runtimes)) > 1:
        problem = f"the models run in different runtimes: {', '.join(sorted(set(runtimes)))}"
        progress.warn(Diagnostic("P865", problem, help="choose one with --runtime"))
    runners = []
    for artifact, runtime in zip(chosen, runtimes, strict=True):
        with progress.step(f"Loading {artifact.name}"):
            runners.append(
                artifact.open(options.threads, runtime, options.length if decoding else None)
            )
    with progress.step("Measuring", total=options.repeat) as advance:
        length, past = (1, options.length) if decoding else (options.length, 0)
        feeds = [
            example_feeds(r.inputs, batch=options.batch, length=length, past=past) for r in runners
        ]
        alone = options.threads == 1
        laps = measure(runners, feeds, options.repeat, advance, alone=alone)
    if not laps.steady:
        progress.warn(doubt(" and ".join(sorted(set(runtimes)))))
    medians = laps.medians
    sizes = {_sizes(feed, options) for feed in feeds}
    if len(sizes) > 1:
        problem = f"the models were measured at different sizes: {sorted(sizes)}"
        progress.warn(Diagnostic("P867", problem, help="they are made for fixed sizes"))
    rows = tuple(
        BenchRow(
            artifact.name,
            artifact.kind,
            runtime,
            runner.params,
            runner.bytes,
            median,
            min(taken),
            max(taken),
            math.prod(_sizes(feed, options)) / median,
            medians[0] / median,
        )
        for artifact, runtime, runner, feed, taken, median in zip(
            chosen, runtimes, runners, feeds, laps.seconds, medians, strict=True
        )
    )
    return BenchReport(
        options.phase,
        options.batch,
        options.length,
        options.threads,
        options.repeat,
        laps.steady,
        rows,
    )


def measure(
    runners: Sequence[Runner],
    feeds: Sequence[Feeds],
    repeat: int,
    advance: Callable[[int], None] = lambda done: None,
    *,
    alone: bool = False,
) -> Laps:
    """Seconds of `repeat` runs of each model, or of more, taken in turns: A B C, A B C, ..."""
    runs = [partial(runner.run, feed) for runner, feed in zip(runners, feeds, strict=True)]
    for run in runs * WARM_UP:
        run()
    return Laps.of([(run, 1) for run in runs], repeat, step=lambda: advance(1), alone=alone)


def _sizes(feed: Feeds, options: BenchOptions) -> tuple[int, int]:
    """The batch size and length at which a model was measured."""
    for name, value in feed.items():
        if name.endswith(TOKENS):
            return value.shape[0], value.shape[1]
    return options.batch, 1


def _check(options: BenchOptions) -> None:
    counts = {
        "--batch": options.batch,
        "--length": options.length,
        "--repeat": options.repeat,
        "--threads": 1 if options.threads is None else options.threads,
    }
    problems = [
        Diagnostic("P811", f"{name} must be at least 1, not {value}", name)
        for name, value in counts.items()
        if value < 1
    ]
    if problems:
        raise PrunecError(problems, Exit.USAGE)
