"""Options: everything that decides what a run does, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.target import Target

__all__ = [
    "ALLOCATORS",
    "BEST_METHOD",
    "FORMATS",
    "LAYOUTS",
    "METHODS",
    "RESTORERS",
    "InspectOptions",
    "PruneOptions",
]

AUTO = "auto"
ARRAYS = ".npz"

METHODS = {"wanda": True, "magnitude": False, "random": False}
"""Criteria by name, and whether each one needs calibration data."""

BEST_METHOD = "wanda"
"""What `--method auto` stands for."""

RESTORERS = {"none": False, "ls": True}
"""Ways to refit what remains, and whether each one needs calibration data."""

FORMATS = ("hf", "onnx", "torchscript")
LAYOUTS = ("uniform", "per-layer")
ALLOCATORS = ("uniform", "global")
ROLES = (
    "neuron", "query_head", "kv_head", "head", "head_dim", "channel", "expert", "hidden", "vocab",
    "rank", "feature",
)  # fmt: skip
"""Roles of groups that `--groups` may name; what a model has of them `inspect` tells."""


@dataclass(frozen=True)
class InspectOptions:
    """What `prunec inspect` is asked to look at."""

    model: str
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PruneOptions:
    """One pruning run.

    `calibration` is `self`, `none`, text files separated by commas, or an .npz file. `auto` and
    empty `formats` leave a choice to `settle`. Empty `groups` means every role within blocks
    that the layout and formats can hold.
    """

    model: str
    out: Path | None = None
    targets: tuple[Target, ...] = ()
    method: str = AUTO
    groups: tuple[str, ...] = ()
    calibration: str = AUTO
    calibration_samples: int = 64
    calibration_length: int = 512
    formats: tuple[str, ...] = ()
    layout: str = "uniform"
    round_to: int = 1
    restore: str = AUTO
    allocate: str = "uniform"
    plan: Path | None = None
    seed: int = 0
    trust_remote_code: bool = False
    recipe: Path | None = None
    dry_run: bool = False
    verify: bool = False
    resume: bool = False
    overwrite: bool = False
    json: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether the run looks at activations; meaningful once settled."""
        return self.calibration != "none"

    @property
    def calibration_files(self) -> tuple[Path, ...]:
        """The files that `calibration` names, separated by commas."""
        if self.calibration in (AUTO, "self", "none"):
            return ()
        whole = Path(self.calibration)
        return (whole,) if whole.exists() else tuple(map(Path, self.calibration.split(",")))

    def settle(self) -> PruneOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes.

        Without data asked for or needed no model is run at all: `--method magnitude` alone
        neither calibrates nor restores.
        """
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        method = BEST_METHOD if self.method == AUTO else self.method
        asked = self.calibration not in (AUTO, "none")
        restore = self.restore
        if restore == AUTO:
            wants = asked or (METHODS[method] and self.calibration == AUTO)
            restore = "ls" if wants else "none"
        calibration = self.calibration
        if calibration == AUTO:
            calibration = "self" if METHODS[method] or RESTORERS[restore] else "none"
        formats = self.formats or (("onnx",) if self.model.endswith(".onnx") else ("hf",))
        settled = replace(
            self,
            method=method,
            restore=restore,
            calibration=calibration,
            formats=tuple(f for f in FORMATS if f in formats),
        )
        needy = list(settled._unfed())
        if needy:
            raise PrunecError(needy, Exit.USAGE)
        return settled

    def _problems(self) -> Iterable[Diagnostic]:
        yield from _known("--method", self.method, (AUTO, *METHODS))
        yield from _known("--restore", self.restore, (AUTO, *RESTORERS))
        yield from _known("--layout", self.layout, LAYOUTS)
        yield from _known("--allocate", self.allocate, ALLOCATORS)
        for name in self.formats:
            yield from _known("--format", name, FORMATS)
        for name in self.groups:
            yield from _known("--groups", name, ROLES)
        yield from _positive("--round-to", self.round_to)
        yield from _positive("--calibration-samples", self.calibration_samples)
        yield from _positive("--calibration-length", self.calibration_length)
        yield from _readable(self.calibration_files)
        yield from self._conflicts()

    def _conflicts(self) -> Iterable[Diagnostic]:
        if not self.targets and self.plan is None:
            yield Diagnostic(
                "P812",
                "no target given",
                "--target",
                help="say what remains, for example --target params=75%, or give --plan plan.json",
            )
        if self.targets and self.plan is not None:
            yield Diagnostic(
                "P813",
                "a plan already says what stays; a target cannot be asked for beside it",
                "--plan",
                help="drop --target, or drop --plan to make a new plan",
            )
        if self.out is None and not self.dry_run:
            yield Diagnostic(
                "P812", "no output folder given", "-o", help="add -o OUT, or --dry-run for the plan"
            )

    def _unfed(self) -> Iterable[Diagnostic]:
        """Choices that need calibration data where there is none."""
        if self.calibrated:
            return
        if METHODS[self.method] and self.plan is None:
            yield Diagnostic(
                "P814",
                f"method {self.method} scores by activations and there is no calibration data",
                "--calibration",
                help="use --calibration self or a text file, or --method magnitude",
            )
        if RESTORERS[self.restore]:
            yield Diagnostic(
                "P814",
                f"restoring by {self.restore} needs calibration data",
                "--calibration",
                help="use --calibration self or a text file, or --restore none",
            )


def _known(option: str, name: str, choices: Iterable[str]) -> Iterable[Diagnostic]:
    choices = tuple(choices)
    if name in choices:
        return
    yield Diagnostic(
        "P810", f"{option} does not know {name!r}", option, help=f"one of {', '.join(choices)}"
    )


def _positive(option: str, value: int) -> Iterable[Diagnostic]:
    if value >= 1:
        return
    yield Diagnostic("P811", f"{option} must be at least 1, not {value}", option)


def _readable(files: Iterable[Path]) -> Iterable[Diagnostic]:
    """Mistakes in the calibration texts; arrays are looked at when they are needed."""
    from prunec.frontends.text import read_text

    for path in files:
        if path.suffix == ARRAYS and path.is_file():
            continue
        try:
            read_text(path)
        except PrunecError as error:
            yield from error.diagnostics
