"""What `prunec quantize` is told, and the mistakes in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.run import RunOptions, known
from prunec.output.staging import model_within

__all__ = ["QuantizeOptions"]

KINDS = ("int8", "int4")
ACTIVATIONS = ("dynamic", "static", "float")
BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class QuantizeOptions(RunOptions):
    """One quantisation to ONNX. `activations` are quantised while the model runs (`dynamic`), with
    ranges seen in calibration (`static`) or not at all (`float`, and always in 4 bits); `block`
    inputs of an output then share a scale."""

    verb: ClassVar[str] = "quantize"

    quantize: str = ""
    activations: str = "dynamic"
    block: int = 32

    @property
    def in_blocks(self) -> bool:
        """Whether weights alone are quantised, in blocks."""
        return self.quantize == "int4" or self.activations == "float"

    def settle(self) -> QuantizeOptions:
        problems = list(self._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        model = str(model_within(Path(self.model).expanduser()) or self.model)
        static = self.activations == "static"
        settled = replace(self, model=model, formats=("onnx",))
        settled = replace(settled, **settled.settled_data(needed=static))
        if static and not settled.calibrated:
            raise PrunecError(
                [
                    Diagnostic(
                        "P814",
                        "static quantisation needs calibration data",
                        "--calibration",
                        help="give the data that the model was pruned with, or use dynamic",
                    )
                ],
                Exit.USAGE,
            )
        return settled

    def _problems(self) -> Iterable[Diagnostic]:
        if not self.quantize:
            yield Diagnostic(
                "P812",
                "nothing says what the weights are to become",
                "--quantize",
                help="say --quantize int8 or --quantize int4",
            )
        else:
            yield from known("--quantize", self.quantize, KINDS)
        yield from known("--activations", self.activations, ACTIVATIONS)
        if self.block not in BLOCKS:
            sizes = ", ".join(map(str, BLOCKS))
            yield Diagnostic(
                "P855",
                f"there are no blocks of {self.block} in ONNX Runtime",
                "--block",
                help=f"one of {sizes}",
            )
        if self.quantize == "int4" and self.activations == "static":
            yield Diagnostic(
                "P852",
                "--activations has no say here: in 4 bits only weights are quantised",
                "--activations",
                help="drop --activations",
            )
        yield from self.common_problems()
