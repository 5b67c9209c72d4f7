"""What every verb that changes the weights of a model is told, and the mistakes in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from prunec.frontends.mixture import Part, parse_mixture
from prunec.ir.diagnostics import Diagnostic, PrunecError

__all__ = ["AUTO", "FORMATS", "GIVEN", "RunOptions", "known", "positive"]

AUTO = "auto"

GIVEN = "given batches"
"""What `calibration` is when batches are handed over instead of being read from a file."""

TEXT_WINDOWS, OWN_WINDOWS, MIXED_WINDOWS = (64, 512), (32, 256), (64, 256)
"""Windows and tokens of each by default: of texts, of what the model writes itself, which takes
it minutes, and of both mixed."""

FORMATS = ("hf", "onnx", "torchscript")

NO_WAY_BACK = {
    "hf": "it has no configuration, and its weights have other names and layouts",
    "torchscript": "TorchScript is a program of torch operators, and there is no translation back",
}
"""Why formats cannot be made of an ONNX file."""


@dataclass(frozen=True)
class RunOptions(ABC):
    """One run over one model.

    `calibration` is `none`, or sources with weights (see `frontends.mixture`). `auto`, None and
    empty `formats` leave a choice to `settled_data`. `activation_budget` is in megabytes.
    """

    verb: ClassVar[str]

    model: str
    out: Path | None = None
    _: KW_ONLY
    calibration: str = AUTO
    calibration_samples: int | None = None
    calibration_length: int | None = None
    activation_budget: int = 256
    formats: tuple[str, ...] = ()
    seed: int = 0
    trust_remote_code: bool = False
    recipe: Path | None = None
    dry_run: bool = False
    verify: bool = False
    resume: bool = False
    overwrite: bool = False
    json: bool = False

    @abstractmethod
    def settle(self) -> Self:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes."""

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
    def read_files(self) -> tuple[Path, ...]:
        """All files that the run reads beside the model."""
        return self.calibration_files

    @property
    def wanted_formats(self) -> tuple[str, ...]:
        """Those asked for, or the kind that the model is."""
        return self.formats or (("onnx",) if self.model.endswith(".onnx") else ("hf",))

    def settled_data(self, *, needed: bool) -> dict[str, Any]:
        """The fields of formats and calibration with every choice made; without data asked for
        or `needed` there are none."""
        calibration = self.calibration
        if calibration == AUTO:
            calibration = "self" if needed else "none"
        windows = _windows(calibration)
        return {
            "calibration": calibration,
            "calibration_samples": self.calibration_samples or windows[0],
            "calibration_length": self.calibration_length or windows[1],
            "formats": tuple(f for f in FORMATS if f in self.wanted_formats),
        }

    def common_problems(self) -> Iterable[Diagnostic]:
        """Mistakes that show without the model."""
        for name in self.formats:
            yield from known("--format", name, FORMATS)
        others = [name for name in self.formats if name in NO_WAY_BACK]
        if self.model.endswith(".onnx") and others:
            yield Diagnostic(
                "P816",
                f"an .onnx file cannot be written as {others[0]}: {NO_WAY_BACK[others[0]]}",
                "--format",
                help="use --format onnx, or give the checkpoint that the file was exported from",
            )
        yield from positive("--calibration-samples", self.calibration_samples)
        yield from positive("--calibration-length", self.calibration_length)
        yield from positive("--activation-budget", self.activation_budget)
        yield from self._unreadable()

    def _unreadable(self) -> Iterable[Diagnostic]:
        """Mistakes in the sources of calibration data, as far as they show without the model."""
        from prunec.frontends.places import check_place

        try:
            files = self.calibration_files
        except PrunecError as error:
            yield from error.diagnostics
            return
        for path in files:
            try:
                check_place(path)
            except PrunecError as error:
                yield from error.diagnostics


def known(option: str, name: str, choices: Iterable[str]) -> Iterable[Diagnostic]:
    """A diagnostic when `name` is none of the choices."""
    choices = tuple(choices)
    if name in choices:
        return
    yield Diagnostic(
        "P810", f"{option} does not know {name!r}", option, help=f"one of {', '.join(choices)}"
    )


def positive(option: str, value: int | None) -> Iterable[Diagnostic]:
    """A diagnostic when a number is given and below 1."""
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
