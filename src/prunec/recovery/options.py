"""Options of a recovery, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import ClassVar

from prunec.frontends.mixture import Part, parse_mixture
from prunec.frontends.places import check_place
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.ranks import world_size

__all__ = ["LOSSES", "RecoverOptions", "Scope", "parse_losses", "parse_scope"]

LOSSES = ("kl", "ce", "hidden", "output")
"""`kl` to the teacher's logits, `ce` cross-entropy of the next token, `hidden` states of the
layers against the teacher's, `output` the first output against the teacher's."""

SCOPES = ("lora", "qlora", "full", "last:N")
PRECISIONS = ("float32", "bfloat16")

RATES = {"lora": 5e-4, "qlora": 5e-4, "full": 5e-5, "last": 1e-4}
"""Learning rates by default."""

STEPS, OWN_WINDOWS = 300, 256
"""Steps by default, and windows that a model writes by itself, which takes it long."""


@dataclass(frozen=True)
class Scope:
    """What is trained: `kind` is lora, qlora, full or last; `layers` says how many are the last."""

    kind: str
    layers: int = 0

    @property
    def adapters(self) -> bool:
        return self.kind in ("lora", "qlora")


@dataclass(frozen=True)
class RecoverOptions:
    """One recovery. `losses` maps names to weights; empty, None and "" leave a choice to `settle`
    or to what the models can do. `length` is in tokens, `batch` in windows."""

    verb: ClassVar[str] = "recover"

    model: str
    out: Path
    data: str
    teacher: str | None = None
    train: str = "lora"
    rank: int = 16
    losses: str = ""
    top_k: int = 64
    store_logits: bool = False
    blockwise: bool = False
    steps: int = STEPS
    batch: int = 8
    length: int = 256
    samples: int | None = None
    lr: float | None = None
    save_every: int = 50
    patience: int | None = None
    precision: str = "float32"
    seed: int = 0
    trust_remote_code: bool = False
    resume: bool = False
    overwrite: bool = False

    @property
    def scope(self) -> Scope:
        return parse_scope(self.train)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the losses that were asked for."""
        return parse_losses(self.losses) if self.losses else {}

    @property
    def mixture(self) -> tuple[Part, ...]:
        return parse_mixture(self.data)

    @property
    def read_files(self) -> tuple[Path, ...]:
        """The files and folders among the sources of data."""
        return tuple(part.path for part in self.mixture if part.path is not None)

    def settle(self) -> RecoverOptions:
        """The same with every choice made that needs no model; raises PrunecError (exit 2) with
        all mistakes."""
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        writes = any(part.path is None for part in self.mixture)
        samples = self.samples or self.steps * self.batch
        if self.samples is None and writes:
            samples = min(samples, OWN_WINDOWS)
        return replace(self, samples=samples, lr=self.lr or RATES[self.scope.kind])

    def _problems(self) -> Iterator[Diagnostic]:
        for parse in (lambda: self.scope, lambda: self.weights, lambda: self.mixture):
            try:
                parse()
            except PrunecError as error:
                yield from error.diagnostics
        yield from self._numbers()
        if self.precision not in PRECISIONS:
            yield _unknown("--precision", self.precision, PRECISIONS)
        yield from self._data()
        yield from self._teaching()
        yield from self._blocks()

    def _numbers(self) -> Iterator[Diagnostic]:
        least = {"rank": 1, "steps": 1, "batch": 1, "length": 2, "save_every": 1, "top_k": 0}
        optional = {"samples": 1, "patience": 1}
        for name, low in (least | optional).items():
            value = getattr(self, name)
            if value is None or value >= low:
                continue
            option = f"--{name.replace('_', '-')}"
            fact = f"{option} must be at least {low}, not {value}"
            yield Diagnostic("P811", fact, option, help="leave it out for the default")
        if self.lr is not None and not 0 < self.lr < inf:
            fact = f"--lr must be a positive number, not {self.lr}"
            yield Diagnostic("P811", fact, "--lr", help="leave it out for the default")

    def _data(self) -> Iterator[Diagnostic]:
        try:
            for path in self.read_files:
                check_place(path)
        except PrunecError as error:
            yield from error.diagnostics

    def _teaching(self) -> Iterator[Diagnostic]:
        try:
            asked = set(self.weights)
        except PrunecError:
            return
        if self.teacher is None and asked - {"ce"}:
            yield Diagnostic(
                "P870",
                f"the loss {' and '.join(sorted(asked - {'ce'}))} needs a teacher",
                "--loss",
                help="name the dense model with --teacher, or learn from the text alone: --loss ce",
            )
        if self.store_logits and (asked - {"kl", "ce"} or not self.top_k or not self.teacher):
            yield Diagnostic(
                "P870",
                "only the top of a teacher's logits can be stored",
                "--store-logits",
                help="use it with --teacher, --loss kl (or kl and ce) and --top-k 1 or more",
            )

    def _blocks(self) -> Iterator[Diagnostic]:
        """What does not go with training block by block."""
        if not self.blockwise:
            return
        try:
            kind, parts = self.scope.kind, self.mixture
        except PrunecError:
            return
        clashes = {
            "no teacher": (self.teacher is None, "name the dense model with --teacher"),
            f"--loss {self.losses}": (
                bool(self.losses) or self.store_logits,
                "leave --loss and --store-logits out: each block learns the dense one's output",
            ),
            f"--train {self.train}": (
                kind not in ("lora", "full"),
                "use --train lora or --train full",
            ),
            "data that the model writes": (
                any(part.path is None for part in parts),
                "give a text: writing takes the whole model in memory",
            ),
            "several processes": (world_size() > 1, "start it without a launcher"),
        }
        for what, (clashing, remedy) in clashes.items():
            if clashing:
                fact = f"training block by block does not go with {what}"
                yield Diagnostic("P870", fact, "--blockwise", help=remedy)


def parse_scope(text: str) -> Scope:
    """`lora`, `qlora`, `full` or `last:N`; raises P810 or P811 (exit 2)."""
    kind, colon, count = text.partition(":")
    if kind == "last" and colon:
        if count.isdecimal() and int(count) > 0:
            return Scope(kind, int(count))
        fact = f"--train last:N takes a number of layers, not {count!r}"
        raise PrunecError([Diagnostic("P811", fact, "--train", help="last:2, say")], Exit.USAGE)
    if text in SCOPES:
        return Scope(kind)
    raise PrunecError([_unknown("--train", text, SCOPES)], Exit.USAGE)


def parse_losses(text: str) -> dict[str, float]:
    """`kl` or `kl=1,ce=0.5` as weights by name; raises P810 or P811 (exit 2) with all mistakes."""
    found: dict[str, float] = {}
    problems: list[Diagnostic] = []
    for piece in text.split(","):
        name, equals, weight = (part.strip() for part in piece.partition("="))
        if name not in LOSSES:
            problems.append(_unknown("--loss", name, LOSSES))
            continue
        value = _number(weight) if equals else 1.0
        if not 0 < value < inf or name in found:
            said = "is named twice" if name in found else f"has no positive weight: {weight!r}"
            problems.append(
                Diagnostic("P811", f"loss {name} {said}", "--loss", help="--loss kl=1,ce=0.5")
            )
        found[name] = value
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _unknown(option: str, name: str, choices: tuple[str, ...]) -> Diagnostic:
    return Diagnostic(
        "P810", f"{option} does not know {name!r}", option, help=f"one of {', '.join(choices)}"
    )
