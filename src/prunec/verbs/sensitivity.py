"""What a model loses when one thing alone is removed: every head, sublayer and layer, and widths.

Exact figures come from running what follows the removal again, estimates (`fast`) from one
backward pass a sequence.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunec.backends.torch_first_order import first_order
from prunec.backends.torch_variants import Variant, run_variants
from prunec.engines.damage import Damage, Found, Sums, damage_of
from prunec.engines.sweep import Sweep, pieces
from prunec.engines.workers import Workers, check_engine, workers
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.prune import PruneOptions
from prunec.output.staging import staged
from prunec.passes.coupling import Group
from prunec.passes.regions import Region
from prunec.planning.depth import single_windows
from prunec.progress import Progress
from prunec.reports.data import plain
from prunec.resume.hashes import hash_source
from prunec.resume.state import State, kept_state
from prunec.runs.calibrating import calibrate
from prunec.runs.loading import Loaded, load
from prunec.verbs.removals import (
    RATIOS,
    ROLES,
    Removal,
    SensitivityRow,
    first_use,
    removable,
    removals,
)

__all__ = ["RATIOS", "SensitivityOptions", "SensitivityReport", "SensitivityRow", "sensitivity"]

REPORT = "sensitivity.json"
SAVE_EVERY = 20.0
"""Seconds between two saves of what is measured."""


@dataclass(frozen=True)
class SensitivityOptions:
    """What `prunec sensitivity` is asked to measure, and on what; see `PruneOptions` for the
    calibration. `out` is the folder for the report and the pictures (`plot`: svg or png). An
    `engine` has `workers` that measure beside one another."""

    model: str
    out: Path | None = None
    groups: tuple[str, ...] = ()
    calibration: str = "self"
    calibration_samples: int = 16
    calibration_length: int = 512
    fast: bool = False
    plot: str = "svg"
    seed: int = 0
    overwrite: bool = False
    trust_remote_code: bool = False
    engine: str = ""
    workers: int | None = None


@dataclass(frozen=True)
class SensitivityReport:
    """What was found, in the order of the program; `skipped` says what could not be measured.
    `seconds` are those of measuring alone: on the clock, and of the processor."""

    model: str
    fast: bool
    calibration: Mapping[str, Any]
    loss: float
    perplexity: float
    rows: tuple[SensitivityRow, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found = plain(asdict(self))
        assert isinstance(found, dict)
        return found


def sensitivity(options: SensitivityOptions, progress: Progress) -> SensitivityReport:
    """Measure, and write OUT where one is given. A run that was interrupted goes on from what it
    had measured, when it writes the same OUT with the same options.

    Raises PrunecError for an unknown role, or when the model has none of them.
    """
    check_engine(options.engine, options.workers)
    with workers(options.engine, options.workers) as found:
        return _measure(options, progress, found)


def _measure(
    options: SensitivityOptions, progress: Progress, workers: Workers | None
) -> SensitivityReport:
    if options.out is None:
        return _Run(options, progress, workers).report()
    from prunec.reports.plot import picture  # what is not installed is told before any work

    with staged(options.out, overwrite=options.overwrite, sources=_sources(options)) as stage:
        with kept_state(options.out, _key(options), resume=True) as state:
            report = _Run(options, progress, workers, state).report()
        text = json.dumps(report.to_json(), indent=1)
        (stage / REPORT).write_text(text, encoding="utf-8")
        picture(report, stage / f"sensitivity.{options.plot}")
        return report


def _sources(options: SensitivityOptions) -> list[Path]:
    asked = _as_prune(options)
    named = [Path(options.model).expanduser(), *asked.calibration_files]
    return [path for path in named if path.exists()]


def _key(options: SensitivityOptions) -> str:
    """What a state is of; files count by size and time."""
    told = replace(options, out=None, overwrite=False, plot="", engine="", workers=None)
    path = Path(options.model).expanduser()
    files = [(str(f), f.stat().st_mtime_ns) for f in _as_prune(options).calibration_files]
    model = hash_source(path) if path.exists() else options.model
    return hashlib.sha256(repr((told, files, model)).encode()).hexdigest()


def _as_prune(options: SensitivityOptions) -> PruneOptions:
    """The options that decide what a model is calibrated on."""
    return PruneOptions(
        options.model,
        calibration=options.calibration,
        calibration_samples=options.calibration_samples,
        calibration_length=options.calibration_length,
        seed=options.seed,
        trust_remote_code=options.trust_remote_code,
    )


@dataclass
class _Run:
    options: SensitivityOptions
    progress: Progress
    workers: Workers | None = None
    state: State | None = None

    def report(self) -> SensitivityReport:
        options = self.options
        loaded = load(
            options.model,
            trust_remote_code=options.trust_remote_code,
            need_weights=True,
            progress=self.progress,
        )
        if loaded.file is not None:
            raise fail(
                "P816",
                "removals are measured in models that PyTorch runs, and this is an ONNX file",
                where=options.model,
                help="measure the model that the file was exported from",
                exit_code=Exit.USAGE,
            )
        groups, regions = _chosen(loaded, options)
        calibrated = calibrate(loaded, _as_prune(options), self.progress)
        windows = single_windows(calibrated, options.calibration_samples)
        skipped: dict[str, str] = {}
        found = list(removals(loaded, groups, regions, calibrated, skipped, self.progress))
        wall, cpu = time.perf_counter(), time.process_time()
        score = damage_of(loaded, windows)
        if options.fast:
            rows, dense = self._estimated(loaded, windows, found), Found()
        else:
            rows, dense = self._measured(loaded, windows, found, score)
        seconds = {
            "measure": round(time.perf_counter() - wall, 3),
            "cpu": round(time.process_time() - cpu, 3),
        }
        return SensitivityReport(
            options.model, options.fast, calibrated.describe(), dense.loss, dense.perplexity,
            tuple(rows), skipped, seconds,
        )  # fmt: skip

    def _estimated(
        self, loaded: Loaded, windows: Sequence[Mapping[str, Any]], found: Sequence[Removal]
    ) -> list[SensitivityRow]:
        gates = {removal.variant.name: removal.gates for removal in found}
        with self.progress.step("Estimating", 1) as told:
            estimates = first_order(loaded.graph, loaded.weights, windows, gates, told=told)
        return [replace(r.row, estimate=estimates[r.variant.name]) for r in found]

    def _measured(
        self,
        loaded: Loaded,
        windows: Sequence[Mapping[str, Any]],
        found: Sequence[Removal],
        score: Damage,
    ) -> tuple[list[SensitivityRow], Found]:
        kept = _Kept(score, [r.variant.name for r in found], self.state)
        with self.progress.step("Removing one by one", len(found) * len(windows)) as advance:
            variants = tuple(removal.variant for removal in found)

            def step() -> None:
                advance(1)
                kept.save()

            if self.workers is None:
                run_variants(loaded.graph, loaded.weights, windows, variants, score, step)
            else:
                self._fanned_out(self.workers, loaded, windows, variants, score, step)
        kept.save(at_once=True)
        dense = score.found(None)
        return [_filled(r.row, score.found(r.variant.name), dense) for r in found], dense

    def _fanned_out(
        self,
        workers: Workers,
        loaded: Loaded,
        windows: Sequence[Mapping[str, Any]],
        variants: tuple[Variant, ...],
        score: Damage,
        step: Callable[[], None],
    ) -> None:
        """The same sums, each from a worker; those that were kept are not measured again."""
        left = pieces(variants, score, workers.count)
        known = len(variants) * len(windows) - sum(len(chosen) for _, chosen in left)

        def done(sums: Sums) -> None:
            score.sums |= sums
            for _ in range(sum(name is not None for name, _ in sums)):
                step()

        for _ in range(known):
            step()
        sweep = Sweep(loaded.graph, dict(loaded.weights), windows, variants, score.text)
        workers.pool(sweep)(left, done)


def _chosen(loaded: Loaded, options: SensitivityOptions) -> tuple[list[Group], list[Region]]:
    """The groups and regions of the roles asked for, in the order of the program."""
    roles = options.groups or ROLES
    producers = loaded.graph.producers
    groups = [g for g in loaded.coupling.groups if g.role in roles and removable(loaded, g)]
    groups.sort(key=lambda g: producers[g.consumers[0].op] if g.consumers else first_use(loaded, g))
    regions = [r for r in loaded.regions.values() if any(map(r.is_a, roles))]
    found = {g.role for g in groups} | {role for role in roles for r in regions if r.is_a(role)}
    missing = [role for role in options.groups if role not in found]
    if not missing and found:
        return groups, regions
    raise PrunecError(
        [
            Diagnostic(
                "P401",
                f"the model has no {role} that can be removed alone",
                "--groups",
                help=f"`prunec inspect {options.model}` lists what there is",
            )
            for role in missing or roles[:1]
        ],
        Exit.USAGE,
    )


def _filled(row: SensitivityRow, found: Found, dense: Found) -> SensitivityRow:
    return replace(
        row,
        loss=found.loss - dense.loss,
        perplexity=found.perplexity - dense.perplexity,
        divergence=found.divergence,
        error=found.error,
    )


@dataclass
class _Kept:
    """What was measured so far, in the state of the run."""

    score: Damage
    names: Sequence[str]
    state: State | None
    saved: float = 0.0

    def __post_init__(self) -> None:
        self.saved = time.monotonic()
        stored = None if self.state is None else self.state.load("sums")
        if stored is None:
            return
        keys: list[str | None] = [None, *self.names]
        for window, name, *sums in stored["sums"].tolist():
            self.score.sums[keys[int(name)], int(window)] = (sums[0], sums[1])

    def save(self, at_once: bool = False) -> None:
        if self.state is None or (time.monotonic() - self.saved < SAVE_EVERY and not at_once):
            return
        number: dict[str | None, int] = {n: i + 1 for i, n in enumerate(self.names)} | {None: 0}
        rows = [(w, number[n], *sums) for (n, w), sums in self.score.sums.items()]
        self.state.save("sums", {"sums": np.asarray(rows, dtype=np.float64).reshape(-1, 4)})
        self.saved = time.monotonic()
