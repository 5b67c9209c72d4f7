"""Options: everything that decides what a run does, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from prunec.engines.workers import engine_problems
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.rounds import round_problems
from prunec.options.run import AUTO, FORMATS, GIVEN, RunOptions, known, positive
from prunec.options.target import Target
from prunec.options.workload import DTYPES, PHASES, PREFILL, STORED, Workload
from prunec.passes.depth import DEPTHS
from prunec.passes.regions import DEPTH_ROLES
from prunec.passes.routing import EXPERTS
from prunec.ranks import world_size

if TYPE_CHECKING:
    from prunec.passes.methods import Method

__all__ = ["FORMATS", "GIVEN", "LAYOUTS", "RUNTIMES", "InspectOptions", "PruneOptions"]

LAYOUTS = ("uniform", "per-layer")
RUNTIMES = ("onnxruntime", "openvino", "torch")
ROLES = (
    "neuron", "query_head", "kv_head", "head", "head_dim", "channel", "expert", "hidden", "vocab",
    "rank", "feature", "sublayer", "layer",
)  # fmt: skip
"""Roles of groups that `--groups` may name; what a model has of them `inspect` tells."""


@dataclass(frozen=True)
class InspectOptions:
    """What `prunec inspect` is asked to look at."""

    model: str
    trust_remote_code: bool = False


@dataclass(frozen=True)
class PruneOptions(RunOptions):
    """One pruning run.

    `method` is a preset or `criterion=...,allocate=...,restore=...` (see `passes.methods`);
    `allocate` and `restore` go before it. `auto` leaves a choice to `settle`. Empty `groups` means
    every role within blocks that the layout and formats can hold. `batch`, `length` and `dtype`
    are what FLOPs and memory are counted for (see `Workload`). Targets in time are measured in
    `runtime` on `threads` threads (None: all that it takes) at the same batch and length, in one
    of `PHASES`; with them `round_to` None is what the runtime likes, else 1. The target is
    reached in `steps`, each planned on what the one before has left. `recover_every` and `recover`
    are those of `round_options`. `keep_tokens` names a file with the token ids that stay, in a
    run of its own. With `allow_interface_change` an ONNX file may read and give a smaller cache of
    keys and values. An `engine` has `workers` that judge the plans of a search.
    """

    verb: ClassVar[str] = "prune"

    targets: tuple[Target, ...] = ()
    method: str = AUTO
    groups: tuple[str, ...] = ()
    layout: str = "uniform"
    round_to: int | None = None
    steps: int = 1
    keep_tokens: Path | None = None
    depth: str = DEPTHS[0]
    experts: str = EXPERTS[0]
    batch: int = Workload.batch
    length: int = Workload.length
    dtype: str = AUTO
    runtime: str = RUNTIMES[0]
    phase: str = PREFILL
    threads: int | None = None
    restore: str = AUTO
    allocate: str = AUTO
    plan: Path | None = None
    recover_every: str = ""
    recover: str = ""
    allow_interface_change: bool = False
    engine: str = ""
    workers: int | None = None

    @property
    def depth_roles(self) -> tuple[str, ...]:
        """The roles among `groups` that go as a whole or not at all."""
        return tuple(role for role in self.groups if role in DEPTH_ROLES)

    @property
    def width_roles(self) -> tuple[str, ...]:
        """The other roles among `groups`."""
        return tuple(role for role in self.groups if role not in DEPTH_ROLES)

    @property
    def workload(self) -> Workload:
        """What costs are counted for; meaningful once settled."""
        return Workload(self.batch, self.length, self.dtype)

    @property
    def read_files(self) -> tuple[Path, ...]:
        named = (path for path in (self.plan, self.keep_tokens) if path is not None)
        return (*self.calibration_files, *named)

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
            *known("--allocate", self.allocate, (AUTO, *ALLOCATORS)),
            *known("--restore", self.restore, (AUTO, *RESTORERS)),
        ]
        if unknown:
            raise PrunecError(unknown, Exit.USAGE)
        bare = self.method not in PRESETS and "=" not in self.method
        asked = self.calibration not in (AUTO, "none")
        if bare and (asked or (self.calibration == AUTO and _needs_data(method))):
            chosen = {"restore": "ls"} | chosen
        if self.calibration == "none":
            chosen = {"restore": "none"} | chosen
        if self.layout == "uniform" and "hf" in self.wanted_formats:
            chosen = {"allocate": "uniform"} | chosen
        if self.groups and self.groups == self.depth_roles:
            chosen = {"restore": "none", "allocate": "uniform"} | chosen
            if chosen["restore"] == "ls":  # all inputs stay: only what was dense tells what lacks
                chosen["restore"] = "cross"
        return replace(method, **chosen)

    @property
    def _searches(self) -> bool:
        """Whether widths are searched for; also where a mistake hides the method."""
        try:
            return self.parts.allocate == "evolutionary"
        except PrunecError:
            return True

    @property
    def _dtype(self) -> str:
        """By default that of the files: Hugging Face checkpoints keep theirs."""
        if self.dtype != AUTO:
            return self.dtype
        return STORED if self.wanted_formats == ("hf",) else "f32"

    def settle(self) -> PruneOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes.

        Without data asked for or needed no model is run at all: `--method magnitude` alone
        neither calibrates nor restores.
        """
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        if self.keep_tokens is not None:
            plain = replace(self, calibration="none", restore="none", allocate="uniform", groups=())
            return replace(plain, dtype=self._dtype, **plain.settled_data(needed=False))
        method = self.parts
        settled = replace(
            self,
            restore=method.restore,
            allocate=method.allocate,
            dtype=self._dtype,
            **self.settled_data(needed=bool(self.depth_roles) or _needs_data(method)),
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
        yield from known("--layout", self.layout, LAYOUTS)
        for name in self.groups:
            yield from known("--groups", name, ROLES)
        yield from known("--depth", self.depth, DEPTHS)
        yield from known("--experts", self.experts, EXPERTS)
        yield from known("--dtype", self.dtype, (AUTO, *DTYPES))
        yield from known("--runtime", self.runtime, RUNTIMES)
        yield from known("--phase", self.phase, PHASES)
        yield from positive("--threads", self.threads)
        yield from positive("--batch", self.batch)
        yield from positive("--length", self.length)
        yield from positive("--round-to", self.round_to)
        yield from positive("--steps", self.steps)
        yield from self.common_problems()
        yield from self._conflicts()
        yield from round_problems(self)
        yield from engine_problems(self.engine, self.workers)

    def _conflicts(self) -> Iterable[Diagnostic]:
        if world_size() > 1 and (self.resume or self.recover_every):
            yield Diagnostic(
                "P816",
                "several processes keep no state to go on from",
                "--recover-every" if self.recover_every else "--resume",
                help="leave it out, or run one process",
            )
        if self.engine and (world_size() > 1 or self.model.endswith(".onnx")):
            what = "an ONNX file" if world_size() == 1 else "one of several processes"
            fact = f"{what} is not judged by workers"
            yield Diagnostic("P816", fact, "--engine", help="leave it out")
        searched = self.depth == "evopress" and self.depth_roles
        if self.engine and not searched and not self._searches:
            yield Diagnostic(
                "P815",
                "workers judge the plans of a search, and there is none",
                "--engine",
                help="leave it out, or search: --allocate evolutionary --layout per-layer, or"
                " --groups layer --depth evopress",
            )
        if self.steps > 1 and (self.recover_every or self.model.endswith(".onnx")):
            yield Diagnostic(
                "P816",
                "rounds with recovery are steps themselves"
                if self.recover_every
                else "an ONNX file is pruned at once",
                "--steps",
                help="leave it out",
            )
        if self.allow_interface_change and not self.model.endswith(".onnx"):
            yield Diagnostic(
                "P816",
                "only an .onnx file has a cache among its inputs and outputs",
                "--allow-interface-change",
                help="leave it out: KV heads of a checkpoint are pruned without it",
            )
        yield from self._vocabulary_problems()
        if not self.targets and self.plan is None and self.keep_tokens is None:
            yield Diagnostic(
                "P812",
                "no target given",
                "--target",
                help="say what remains, for example --target params=75%, or give --plan plan.json",
            )
        yield from _depth_problems(self)
        yield from _time_problems(self)
        if self.targets and self.plan is not None:
            yield Diagnostic(
                "P813",
                "a plan already says what stays; a target cannot be asked for beside it",
                "--plan",
                help="drop --target, or drop --plan to make a new plan",
            )

    def _vocabulary_problems(self) -> Iterable[Diagnostic]:
        asked = [role for role in self.groups if role != "vocab"]
        if "vocab" in self.groups and self.keep_tokens is None:
            yield Diagnostic(
                "P815",
                "which tokens stay is not for a criterion to say",
                "--groups",
                help="list their ids in a file: --keep-tokens ids.txt",
            )
        if self.keep_tokens is None:
            return
        beside = {
            "--target": bool(self.targets), "--plan": self.plan is not None,
            "--groups": bool(asked), "--steps": self.steps > 1,
            "--recover-every": bool(self.recover_every),
        }  # fmt: skip
        for option in (name for name, given in beside.items() if given):
            yield Diagnostic(
                "P815",
                "tokens are left out in a run of its own",
                option,
                help=f"leave {option} out, and prune the result",
            )
        if self.model.endswith(".onnx"):
            yield Diagnostic(
                "P815",
                "an ONNX file does not say which of its inputs are tokens",
                "--keep-tokens",
                help="leave them out of the checkpoint that the file was exported from",
            )

    def _unfed(self, method: Method) -> Iterable[Diagnostic]:
        """Choices that need calibration data where there is none."""
        if self.calibrated:
            return
        if self.depth_roles and self.plan is None:
            yield Diagnostic(
                "P814",
                f"which {self.depth_roles[0]} goes is measured and there is no calibration data",
                "--calibration",
                help="use --calibration self or a text file",
            )
        elif _needs_data(replace(method, restore="none")) and self.plan is None:
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


def _time_problems(options: PruneOptions) -> Iterable[Diagnostic]:
    """Runs in which nothing can be timed."""
    if not any(target.timed for target in options.targets):
        return
    if options.runtime in RUNTIMES and find_spec(options.runtime) is None:
        yield not_installed(options.runtime)
    if options.runtime == "torch" and options.model.endswith(".onnx"):
        yield Diagnostic(
            "P864",
            "torch does not run an ONNX file",
            "--runtime",
            help="use --runtime onnxruntime or openvino",
        )
    if world_size() > 1:
        yield Diagnostic(
            "P816",
            "the time in several processes, which disturb one another, is not planned for",
            "--target",
            help="ask for flops=70%, and measure what came out with `prunec bench`",
        )


def not_installed(runtime: str) -> Diagnostic:
    """What to say of a runtime that is not there."""
    return Diagnostic(
        "P862",
        f"{runtime} is not installed",
        "--runtime",
        help=f"pip install {runtime}, or choose another --runtime",
    )


def _depth_problems(options: PruneOptions) -> Iterable[Diagnostic]:
    """Runs in which nothing can go as a whole."""
    obstacles = {
        "in rounds": bool(options.recover_every),
        "in several processes, each of which would choose for itself": world_size() > 1,
    }
    for where, stands in obstacles.items():
        if options.depth_roles and stands:
            yield Diagnostic(
                "P816",
                f"{' and '.join(options.depth_roles)} cannot go {where}",
                "--groups",
                help="prune depth in a run of its own",
            )
