"""What `prunec emit` is told, and the mistakes in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.run import RunOptions
from prunec.output.staging import model_within

__all__ = ["EmitOptions"]


@dataclass(frozen=True)
class EmitOptions(RunOptions):
    """One run that writes a model in other formats, as it is."""

    verb: ClassVar[str] = "emit"

    @property
    def wanted_formats(self) -> tuple[str, ...]:
        """Those asked for, or ONNX, which most runtimes read."""
        return self.formats or ("onnx",)

    def settle(self) -> EmitOptions:
        """The same run with every choice made; raises PrunecError (exit 2) with all mistakes."""
        model = str(model_within(Path(self.model).expanduser()) or self.model)
        told = replace(self, model=model)
        problems = list(told._problems())
        if problems:
            raise PrunecError(problems, Exit.USAGE)
        return replace(told, **told.settled_data(needed=False))

    def _problems(self) -> Iterable[Diagnostic]:
        yield from self.common_problems()
        if self.model.endswith(".onnx") and not self.formats:
            yield Diagnostic(
                "P816",
                f"{Path(self.model).name} is an ONNX file already",
                "MODEL",
                help="give the checkpoint that it was exported from",
            )
