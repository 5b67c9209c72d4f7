"""One run over a loaded model: what all verbs that change weights have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from prunec.ir.axes import Indices, Selection
from prunec.ir.diagnostics import Diagnostic
from prunec.options.recipe import write_recipe
from prunec.options.request import sources
from prunec.options.run import RunOptions
from prunec.output.staging import Formats, staged
from prunec.passes.profile import Stream, Weights
from prunec.passes.rewrite import Rewritten
from prunec.progress import Progress
from prunec.resume.hashes import hash_source
from prunec.resume.journal import load_calibration, save_calibration
from prunec.resume.state import State, kept_state, state_key
from prunec.runs.calibrating import Calibrated, calibrate
from prunec.runs.loading import Loaded, Overlaid, SlicedWeights, load

__all__ = [
    "Outcome",
    "Report",
    "Run",
    "keep_recipe",
    "load_for",
    "run_staged",
    "write_papers",
]

if TYPE_CHECKING:
    from prunec.backends.hf_fields import Family
    from prunec.planning.layout import HfLayout

Options = TypeVar("Options", bound=RunOptions)
Made = TypeVar("Made")


@dataclass(kw_only=True)
class Outcome:
    """A model after the passes, before anything is written: `rewritten` says what remains of it,
    `replaced` holds the weights that changed, at full width; `sliced` is whether dimensions became
    smaller at all; `tokens` are the old ids of those that stay, where others were left out."""

    sliced: ClassVar[bool] = False

    loaded: Loaded
    options: RunOptions
    family: Family | None
    rewritten: Rewritten
    replaced: Weights
    layout: HfLayout | None = None
    calibrated: Calibrated | None = None
    tokens: Indices | None = None
    warnings: tuple[Diagnostic, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def selections(self) -> Mapping[str, Selection]:
        """What stays of each group that became smaller."""
        return {}

    @property
    def dense_weights(self) -> Mapping[str, Any]:
        """Full-width weights with the changed ones in place."""
        return Overlaid(self.loaded.weights, self.replaced)

    @property
    def weights(self) -> Mapping[str, Any]:
        """The weights of the written program, sliced one by one when asked for."""
        return SlicedWeights(self.dense_weights, self.rewritten.kept)


class Report(Protocol):
    """What a run tells in the end."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass
class Run(Generic[Options]):
    """A loaded model, what is asked of it, and what both led to so far. `given` are calibration
    data that are there already."""

    options: Options
    loaded: Loaded
    progress: Progress
    state: State | None = None
    given: Calibrated | None = None
    warnings: list[Diagnostic] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seconds |= self.loaded.seconds
        self.warn(self.loaded.warnings)

    @property
    def family(self) -> Family | None:
        """Which configurations the model's class can be built with; None for a file that is
        edited as it is."""
        return self.loaded.family

    @cached_property
    def calibrated(self) -> Calibrated | None:
        """Calibration data, from the state of an interrupted run when it has them."""
        if not self.options.calibrated:
            return None
        if self.given is not None:
            return replace(self.given, budget=self.budget)
        known = load_calibration(self.state) if self.state is not None else None
        if known is not None:
            return replace(known, budget=self.budget)
        with self.timed("calibrate"):
            found = calibrate(self.loaded.whole, self.options, self.progress)
        if self.state is not None:
            save_calibration(self.state, found)
        return replace(found, budget=self.budget)

    @property
    def budget(self) -> int:
        """Bytes of activations that may stay in memory."""
        return self.options.activation_budget << 20

    @contextmanager
    def stream(self, *, targets: bool = False) -> Iterator[Stream | None]:
        """The calibration data at the start of the program, or None when there are none; with
        `targets` in the dense program too."""
        if self.calibrated is None:
            yield None
            return
        batches = self.calibrated.batches
        engine, budget = self.loaded.engine, self.calibrated.budget
        with engine.stream(self.loaded, batches, budget, targets=targets) as stream:
            yield stream

    def warn(self, found: tuple[Diagnostic, ...]) -> None:
        self.warnings += found
        for warning in found:
            self.progress.warn(warning)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def load_for(options: RunOptions, progress: Progress, *, caches: bool = False) -> Loaded:
    """The model of a run, its hash on the way when it will be written down; `caches` may change
    where a file has them among its inputs and outputs."""
    return load(
        options.model,
        trust_remote_code=options.trust_remote_code,
        need_weights=True,
        progress=progress,
        hashed=options.out is not None and not options.dry_run,
        caches=caches,
    )


def run_staged(options: RunOptions, work: Callable[[Path, State | None], Made]) -> Made:
    """Call `work` with the stage folder that becomes OUT, and the state of an interrupted run."""
    assert options.out is not None
    with staged(options.out, overwrite=options.overwrite, sources=sources(options)) as stage:
        key = state_key(options, _model_hash(options)) if options.resume else ""
        with kept_state(options.out, key, resume=options.resume) as state:
            return work(stage, state)


def _model_hash(options: RunOptions) -> str:
    path = Path(options.model).expanduser()
    return hash_source(path) if path.exists() else options.model


def keep_recipe(outcome: Outcome, stage: Path) -> None:
    """Write how to repeat the run; a module in memory has no recipe."""
    if outcome.loaded.digest is not None:
        write_recipe(stage / Formats.RECIPE, outcome.options, outcome.loaded.digest.result())


def write_papers(stage: Path, report: Report, card: str) -> str:
    """The report and the model card of a run; gives the text of its recipe, or nothing."""
    (stage / Formats.REPORT).write_text(json.dumps(report.to_json(), indent=1), encoding="utf-8")
    (stage / Formats.CARD).write_text(card, encoding="utf-8")
    recipe = stage / Formats.RECIPE
    return recipe.read_text(encoding="utf-8") if recipe.exists() else ""
