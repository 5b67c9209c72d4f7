"""What `prunec factorize` is told, and the mistakes in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.run import RunOptions, known, positive
from prunec.options.target import Target

__all__ = ["FactorizeOptions"]

METHODS = ("svd-llm", "svd")
GATES = "gates"
RANKS = ("uniform", "energy", GATES)
STEPS = 300
"""Of training by default, where gates choose the ranks."""
RATE = 2e-4
METRICS = ("params", "blocks")


@dataclass(frozen=True)
class FactorizeOptions(RunOptions):
    """One run that writes matrices as two. `ranks` says how much of each layer stays, `round_to`
    of what number every rank is a multiple; `steps` of `batch` windows train the factors at the
    rate `lr`; None leaves both to `settle`."""

    verb: ClassVar[str] = "factorize"

    targets: tuple[Target, ...] = ()
    method: str = "svd-llm"
    ranks: str = "uniform"
    round_to: int = 1
    steps: int | None = None
    batch: int = 8
    lr: float | None = None

    @property
    def wanted_formats(self) -> tuple[str, ...]:
        """Those asked for, or ONNX: a checkpoint has no place for two factors."""
        return self.formats or ("onnx",)

    def settle(self) -> FactorizeOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes."""
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        steps = self.steps or (STEPS if self.ranks == GATES else 0)
        needed = self.method == "svd-llm" or steps > 0
        settled = replace(self, steps=steps, lr=self.lr or RATE, **self.settled_data(needed=needed))
        if not needed or settled.calibrated:
            return settled
        what = (
            "method svd-llm looks at activations" if self.method == "svd-llm" else "it is to learn"
        )
        raise PrunecError(
            [
                Diagnostic(
                    "P814",
                    f"{what} and there is no calibration data",
                    "--calibration",
                    help="use --calibration self or a text file; --method svd without --steps"
                    " needs none",
                )
            ],
            Exit.USAGE,
        )

    def _problems(self) -> Iterable[Diagnostic]:
        yield from known("--method", self.method, METHODS)
        yield from known("--ranks", self.ranks, RANKS)
        for option, value in {
            "--round-to": self.round_to,
            "--steps": self.steps,
            "--batch": self.batch,
        }.items():
            yield from positive(option, value)
        if self.lr is not None and not 0 < self.lr < inf:
            fact = f"--lr must be a positive number, not {self.lr}"
            yield Diagnostic("P811", fact, "--lr", help="leave it out for the default")
        yield from self.common_problems()
        if len(self.targets) != 1 or self.targets[0].metric not in METRICS:
            yield Diagnostic(
                "P812",
                "factorize needs one target in parameters",
                "--target",
                help="say --target params=80%, or blocks=60% (without embeddings and head)",
            )
        if self.model.endswith(".onnx"):
            yield Diagnostic(
                "P816",
                "an ONNX file is edited in place, and a layer in two is another program",
                "MODEL",
                help="factorize the checkpoint that the file was exported from",
            )
        if "hf" in self.formats:
            yield Diagnostic(
                "P816",
                "a Hugging Face class builds one matrix where there are two now",
                "--format",
                help="use --format onnx,torchscript",
            )
