"""What `prunec factorize` is told, and the mistakes in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.run_options import RunOptions, known, positive
from prunec.target import Target

__all__ = ["FactorizeOptions"]

METHODS = ("svd-llm", "svd")
RANKS = ("uniform", "energy")
METRICS = ("params", "blocks")


@dataclass(frozen=True)
class FactorizeOptions(RunOptions):
    """One run that writes matrices as two. `ranks` says how much of each layer stays, `round_to`
    of what number every rank is a multiple."""

    verb: ClassVar[str] = "factorize"

    targets: tuple[Target, ...] = ()
    method: str = "svd-llm"
    ranks: str = "uniform"
    round_to: int = 1

    @property
    def wanted_formats(self) -> tuple[str, ...]:
        """Those asked for, or ONNX: a checkpoint has no place for two factors."""
        return self.formats or ("onnx",)

    def settle(self) -> FactorizeOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes."""
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        settled = replace(self, **self.settled_data(needed=self.method == "svd-llm"))
        if settled.method == "svd-llm" and not settled.calibrated:
            raise PrunecError(
                [
                    Diagnostic(
                        "P814",
                        "method svd-llm looks at activations and there is no calibration data",
                        "--calibration",
                        help="use --calibration self or a text file, or --method svd",
                    )
                ],
                Exit.USAGE,
            )
        return settled

    def _problems(self) -> Iterable[Diagnostic]:
        yield from known("--method", self.method, METHODS)
        yield from known("--ranks", self.ranks, RANKS)
        yield from positive("--round-to", self.round_to)
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
