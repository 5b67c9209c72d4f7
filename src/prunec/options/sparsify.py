"""What `prunec sparsify` is told, and the mistakes in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.run import AUTO, RunOptions, known

__all__ = ["SparsifyOptions"]

METHODS = ("magnitude", "wanda", "sparsegpt")
COMPARE = ("row", "layer")
RATIOS = ("uniform", "owl", "global")


@dataclass(frozen=True)
class SparsifyOptions(RunOptions):
    """One run that zeroes single weights.

    `sparsity` is a share such as `50%`, of zeros, or `N:M`. `compare` says which entries compete,
    `ratios` how much of each layer goes, `leave` which weights stay as they are (patterns with
    `*` and `?`).
    """

    verb: ClassVar[str] = "sparsify"

    sparsity: str = ""
    method: str = AUTO
    compare: str = AUTO
    ratios: str = "uniform"
    leave: tuple[str, ...] = ()

    @property
    def grouped(self) -> bool:
        """Whether the pattern is N:M."""
        return ":" in self.sparsity

    def settle(self) -> SparsifyOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes."""
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        method = "wanda" if self.method == AUTO else self.method
        compare = self.compare
        if compare == AUTO and method != "sparsegpt" and not self.grouped:
            compare = "row" if method == "wanda" else "layer"
        settled = replace(
            self,
            method=method,
            compare=compare,
            **self.settled_data(needed=method != "magnitude" or self.ratios == "owl"),
        )
        needy = list(settled._unfed())
        if needy:
            raise PrunecError(needy, Exit.USAGE)
        return settled

    def _problems(self) -> Iterable[Diagnostic]:
        from prunec.passes.sparse.patterns import parse_pattern

        if not self.sparsity:
            yield Diagnostic(
                "P812",
                "no sparsity given",
                "--sparsity",
                help="say how much becomes zero, such as --sparsity 50%, or --sparsity 2:4",
            )
        else:
            try:
                parse_pattern(self.sparsity)
            except PrunecError as error:
                yield from error.diagnostics
        yield from known("--method", self.method, (AUTO, *METHODS))
        yield from known("--compare", self.compare, (AUTO, *COMPARE))
        yield from known("--ratios", self.ratios, RATIOS)
        yield from self.common_problems()
        yield from self._conflicts()

    def _conflicts(self) -> Iterable[Diagnostic]:
        if self.grouped and self.compare != AUTO:
            yield _beside("--compare", "in an N:M pattern the neighbours of a group compete")
        elif self.method == "sparsegpt" and self.compare != AUTO:
            yield _beside("--compare", "SparseGPT compares the entries of a block of columns")
        if self.grouped and self.ratios != "uniform":
            yield _beside("--ratios", "an N:M pattern leaves every layer the same share")
        elif self.ratios == "global" and self.method != "magnitude":
            yield Diagnostic(
                "P852",
                "scores of different layers have no common scale but for --method magnitude",
                "--ratios",
                help="use --method magnitude, or --ratios owl",
            )

    def _unfed(self) -> Iterable[Diagnostic]:
        if self.calibrated:
            return
        if self.method == "magnitude" and self.ratios != "owl":
            return
        what = f"method {self.method}" if self.method != "magnitude" else "--ratios owl"
        yield Diagnostic(
            "P814",
            f"{what} looks at activations and there is no calibration data",
            "--calibration",
            help="use --calibration self or a text file, or --method magnitude",
        )


def _beside(option: str, reason: str) -> Diagnostic:
    return Diagnostic("P852", f"{option} has no say here: {reason}", option, help=f"drop {option}")
