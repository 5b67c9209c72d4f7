"""Options: everything that decides what a run does, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunec.frontends.mixture import Part, parse_mixture
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.ranks import world_size
from prunec.round_options import round_problems
from prunec.target import Target
from prunec.workload import DTYPES, STORED, Workload

if TYPE_CHECKING:
    from prunec.passes.methods import Method

__all__ = ["FORMATS", "GIVEN", "LAYOUTS", "InspectOptions", "PruneOptions"]

AUTO = "auto"

GIVEN = "given batches"
"""What `calibration` is when batches are handed over instead of being read from a file."""

TEXT_WINDOWS, OWN_WINDOWS, MIXED_WINDOWS = (64, 512), (32, 256), (64, 256)
"""Windows and tokens of each by default: of texts, of what the model writes itself, which takes
it minutes, and of both mixed."""

FORMATS = ("hf", "onnx", "torchscript")
LAYOUTS = ("uniform", "per-layer")
NO_WAY_BACK = {
    "hf": "it has no configuration, and its weights have other names and layouts",
    "torchscript": "TorchScript is a program of torch operators, and there is no translation back",
}
"""Why formats cannot be made of an ONNX file."""

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

    `method` is a preset or `criterion=...,allocate=...,restore=...` (see `passes.methods`);
    `allocate` and `restore` go before it.
    `calibration` is `none`, or sources with weights (see `frontends.mixture`). `auto`, None and
    empty `formats` leave a choice to `settle`. Empty `groups` means every role within blocks
    that the layout and formats can hold. `activation_budget` is in megabytes. `batch`, `length`
    and `dtype` are what FLOPs and memory are counted for (see `Workload`). `recover_every` and
    `recover` are those of `round_options`.
    """

    model: str
    out: Path | None = None
    targets: tuple[Target, ...] = ()
    method: str = AUTO
    groups: tuple[str, ...] = ()
    calibration: str = AUTO
    calibration_samples: int | None = None
    calibration_length: int | None = None
    activation_budget: int = 256
    formats: tuple[str, ...] = ()
    layout: str = "uniform"
    round_to: int = 1
    batch: int = Workload.batch
    length: int = Workload.length
    dtype: str = AUTO
    restore: str = AUTO
    allocate: str = AUTO
    plan: Path | None = None
    recover_every: str = ""
    recover: str = ""
    seed: int = 0
    trust_remote_code: bool = False
    recipe: Path | None = None
    dry_run: bool = False
    verify: bool = False
    resume: bool = False
    overwrite: bool = False
    json: bool = False

    @property
    def workload(self) -> Workload:
        """What costs are counted for; meaningful once settled."""
        return Workload(self.batch, self.length, self.dtype)

    @property
    def calibrated(self) -> bool:
        """Whether the run looks at activations; meaningful once settled."""
        return self.calibration != "none"

    @property
    def mixture(self) -> tuple[Part, ...]:
        """The sources of calibration data; raises PrunecError (P137) for a mistake in them."""
        named = self.calibration not in (AUTO, GIVEN, "none")
        return parse_mixture(self.calibration) if named else ()

    @property
    def calibration_files(self) -> tuple[Path, ...]:
        """The files and folders among the sources."""
        return tuple(part.path for part in self.mixture if part.path is not None)

    @property
    def parts(self) -> Method:
        """Criterion, allocator and restorer; raises PrunecError (P810) for unknown names.

        A bare criterion is followed by least squares where there are data for it. One width for
        all layers leaves an allocator nothing to decide.
        """
        from prunec.passes.methods import ALLOCATORS, PRESETS, RESTORERS, parse_method

        method = parse_method(self.method)
        given = {"allocate": self.allocate, "restore": self.restore}
        chosen = {part: name for part, name in given.items() if name != AUTO}
        unknown = [
            *_known("--allocate", self.allocate, (AUTO, *ALLOCATORS)),
            *_known("--restore", self.restore, (AUTO, *RESTORERS)),
        ]
        if unknown:
            raise PrunecError(unknown, Exit.USAGE)
        bare = self.method not in PRESETS and "=" not in self.method
        asked = self.calibration not in (AUTO, "none")
        if bare and (asked or (self.calibration == AUTO and _needs_data(method))):
            chosen = {"restore": "ls"} | chosen
        if self.calibration == "none":
            chosen = {"restore": "none"} | chosen
        if self.layout == "uniform" and "hf" in self._formats:
            chosen = {"allocate": "uniform"} | chosen
        return replace(method, **chosen)

    @property
    def _formats(self) -> tuple[str, ...]:
        return self.formats or (("onnx",) if self.model.endswith(".onnx") else ("hf",))

    @property
    def _dtype(self) -> str:
        """By default that of the files: Hugging Face checkpoints keep theirs."""
        if self.dtype != AUTO:
            return self.dtype
        return STORED if self._formats == ("hf",) else "f32"

    def settle(self) -> PruneOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes.

        Without data asked for or needed no model is run at all: `--method magnitude` alone
        neither calibrates nor restores.
        """
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        method = self.parts
        calibration = self.calibration
        if calibration == AUTO:
            calibration = "self" if _needs_data(method) else "none"
        settled = replace(
            self,
            restore=method.restore,
            allocate=method.allocate,
            calibration=calibration,
            calibration_samples=self.calibration_samples or _windows(calibration)[0],
            calibration_length=self.calibration_length or _windows(calibration)[1],
            formats=tuple(f for f in FORMATS if f in self._formats),
            dtype=self._dtype,
        )
        needy = list(settled._unfed(method))
        if needy:
            raise PrunecError(needy, Exit.USAGE)
        return settled

    def _problems(self) -> Iterable[Diagnostic]:
        try:
            _ = self.parts
        except PrunecError as error:
            yield from error.diagnostics
        yield from _known("--layout", self.layout, LAYOUTS)
        for name in self.formats:
            yield from _known("--format", name, FORMATS)
        for name in self.groups:
            yield from _known("--groups", name, ROLES)
        yield from _known("--dtype", self.dtype, (AUTO, *DTYPES))
        yield from _positive("--batch", self.batch)
        yield from _positive("--length", self.length)
        yield from _positive("--round-to", self.round_to)
        yield from _positive("--calibration-samples", self.calibration_samples)
        yield from _positive("--calibration-length", self.calibration_length)
        yield from _positive("--activation-budget", self.activation_budget)
        yield from _readable(self)
        yield from self._conflicts()
        yield from round_problems(self)

    def _conflicts(self) -> Iterable[Diagnostic]:
        if world_size() > 1 and (self.resume or self.recover_every):
            yield Diagnostic(
                "P816",
                "several processes keep no state to go on from",
                "--recover-every" if self.recover_every else "--resume",
                help="leave it out, or run one process",
            )
        others = [name for name in self.formats if name in NO_WAY_BACK]
        if self.model.endswith(".onnx") and others:
            yield Diagnostic(
                "P816",
                f"an .onnx file cannot be written as {others[0]}: {NO_WAY_BACK[others[0]]}",
                "--format",
                help="use --format onnx, or prune the checkpoint that the file was exported from",
            )
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

    def _unfed(self, method: Method) -> Iterable[Diagnostic]:
        """Choices that need calibration data where there is none."""
        if self.calibrated:
            return
        if _needs_data(replace(method, restore="none")) and self.plan is None:
            yield Diagnostic(
                "P814",
                f"method {self.method} scores by activations and there is no calibration data",
                "--calibration",
                help="use --calibration self or a text file, or --method magnitude",
            )
        if method.restore != "none":
            yield Diagnostic(
                "P814",
                f"restoring by {method.restore} needs calibration data",
                "--calibration",
                help="use --calibration self or a text file, or --restore none",
            )


def _needs_data(method: Method) -> bool:
    """Whether a method looks at what the model computes."""
    from prunec.passes.allocators import ALLOCATORS
    from prunec.passes.criteria import CRITERIA

    # scores and curves need what the criterion needs
    watched = ALLOCATORS[method.allocate](0).needs - {"scores", "curves"}
    needs = CRITERIA[method.criterion]().needs | watched
    return bool(needs) or method.restore != "none"


def _known(option: str, name: str, choices: Iterable[str]) -> Iterable[Diagnostic]:
    choices = tuple(choices)
    if name in choices:
        return
    yield Diagnostic(
        "P810", f"{option} does not know {name!r}", option, help=f"one of {', '.join(choices)}"
    )


def _positive(option: str, value: int | None) -> Iterable[Diagnostic]:
    if value is None or value >= 1:
        return
    fact = f"{option} must be at least 1, not {value}"
    yield Diagnostic("P811", fact, option, help="leave it out for the default")


def _windows(calibration: str) -> tuple[int, int]:
    """How many windows, and tokens in each, by default."""
    if calibration in (AUTO, GIVEN, "none"):
        return TEXT_WINDOWS
    own = [part.path is None for part in parse_mixture(calibration)]
    if not any(own):
        return TEXT_WINDOWS
    return OWN_WINDOWS if all(own) else MIXED_WINDOWS


def _readable(options: PruneOptions) -> Iterable[Diagnostic]:
    """Mistakes in the sources of calibration data, as far as they show without the model."""
    from prunec.frontends.places import check_place

    try:
        files = options.calibration_files
    except PrunecError as error:
        yield from error.diagnostics
        return
    for path in files:
        try:
            check_place(path)
        except PrunecError as error:
            yield from error.diagnostics
