"""`prunec quantize`: weights in 8 or 4 bits, as an ONNX file, by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prunec import __version__
from prunec.backends.onnx_check import open_session
from prunec.backends.onnx_quantize import (
    int4,
    int8,
    int8_weights,
    quantised_ops,
    ready,
    static_int8,
)
from prunec.ir.diagnostics import Diagnostic, Exit, fail
from prunec.options.quantize import QuantizeOptions
from prunec.output.emission import emit
from prunec.output.staging import Formats
from prunec.passes.dce import dce
from prunec.passes.rewrite import Rewritten
from prunec.progress import Progress, Silent
from prunec.reports.card import CAUTION, formats, front_matter, how, joined, model_name
from prunec.reports.data import RunReport, WrittenFormat
from prunec.reports.escape import markdown
from prunec.resume.state import State
from prunec.runs.calibrating import Calibrated
from prunec.runs.run import Outcome, Run, keep_recipe, load_for, run_staged, write_papers

__all__ = ["QuantizeReport", "quantize"]

SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class QuantizeReport(RunReport):
    """What `prunec quantize` did. `dense_bytes` is the size of the float file, `operations` counts
    quantised operations by name, `padded` names weights whose inputs are no multiple of the block.

    `error` is the norm of the change of the outputs over the norm of the float outputs, on windows
    of each source of calibration data; empty without data.
    """

    quantize: str
    activations: str
    block: int
    dense_bytes: int
    operations: Mapping[str, int]
    padded: tuple[str, ...]
    error: Mapping[str, float] = field(default_factory=dict)


def quantize(options: QuantizeOptions, progress: Progress | None = None) -> QuantizeReport:
    """Quantise a model as `options` (settled) say and write OUT, which appears only when whole.

    Raises PrunecError (P856) for a model that is quantised already and (P857) when it holds nothing
    that could be.
    """
    told = progress or Silent()

    def work(stage: Path, state: State | None) -> QuantizeReport:
        loaded = load_for(options, told)
        if loaded.file is not None:
            _refuse_quantised(loaded.source.path)
        return _Run(options, loaded, told, state).written(stage)

    return run_staged(options, work)


def _refuse_quantised(path: Path) -> None:
    found = quantised_ops(path)
    if found:
        told = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
        raise fail(
            "P856",
            f"{path.name} is quantised already: it holds {told}",
            where=str(path),
            help="quantise the float model that it was made from",
            exit_code=Exit.USAGE,
        )


@dataclass
class _Run(Run[QuantizeOptions]):
    """One quantisation of a loaded model."""

    def written(self, stage: Path) -> QuantizeReport:
        calibrated = self.calibrated
        target = stage / Formats.ONNX
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=stage) as scratch:
            dense = self._dense(Path(scratch))
            usable = Path(scratch) / "ready.onnx"
            weights = ready(dense, usable)
            padded = self._padded(weights)
            with self.timed("quantize"), self.progress.step("Quantising"):
                self._quantise(usable, target, calibrated)
            operations = quantised_ops(target)
            if not operations:
                raise fail(
                    "P857",
                    "nothing was quantised: the file multiplies no stored float32 matrices",
                    where=self.loaded.source.name,
                    help="quantise a model in float32",
                )
            error = _errors(dense, target, calibrated)
            size = _size(dense)
        written = (WrittenFormat("onnx", Formats.ONNX, _size(target)),)
        report = QuantizeReport(
            model=self.options.model,
            out=str(self.options.out),
            quantize=self.options.quantize,
            activations=self.options.activations,
            block=self.options.block,
            calibration=self.options.calibration,
            dense_bytes=size,
            operations=operations,
            padded=padded,
            formats=written,
            error=error,
            seconds=self.seconds,
            warnings=tuple(self.warnings),
        )
        keep_recipe(self._outcome(), stage)
        write_papers(stage, report, _card(report))
        return report

    def _outcome(self) -> Outcome:
        return Outcome(
            loaded=self.loaded,
            options=self.options,
            family=None,
            rewritten=Rewritten(dce(self.loaded.graph), {}),
            replaced={},
        )

    def _dense(self, scratch: Path) -> Path:
        """The float file: the one that was given, or one that is written of a checkpoint."""
        if self.loaded.file is not None:
            return self.loaded.source.path
        emit(self._outcome(), scratch, self.progress)
        return scratch / Formats.ONNX

    def _quantise(self, source: Path, target: Path, calibrated: Calibrated | None) -> None:
        if self.options.quantize == "int4":
            int4(source, target, self.options.block)
        elif self.options.activations == "float":
            int8_weights(source, target, self.options.block)
        elif self.options.activations == "dynamic":
            int8(source, target)
        else:
            assert calibrated is not None, "options are settled"
            static_int8(source, target, calibrated.batches)

    def _padded(self, weights: Sequence[tuple[str, int]]) -> tuple[str, ...]:
        """Weights whose last block is filled up with zeros, which costs memory and time."""
        block = self.options.block
        found = tuple(name for name, inputs in weights if inputs % block)
        if not self.options.in_blocks or not found:
            return ()
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        told = Diagnostic(
            "P858",
            f"blocks of {block} do not divide the inputs of {', '.join(found[:SHOWN])}{more}, which"
            " are filled up with zeros",
            "--block",
            help=f"prune with --round-to {block}, or choose smaller blocks",
        )
        self.warn((told,))
        return found


def _size(path: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _errors(dense: Path, small: Path, calibrated: Calibrated | None) -> dict[str, float]:
    if calibrated is None or not calibrated.samples:
        return {}
    one, other = open_session(dense), open_session(small, optimised=True)
    names = {value.name for value in one.get_inputs()}
    found = {}
    for sample in calibrated.samples:
        feeds = {name: array for name, array in sample.inputs.items() if name in names}
        wanted, given = one.run(None, feeds), other.run(None, feeds)
        pairs = [
            (a.astype(np.float64), b.astype(np.float64)) for a, b in zip(wanted, given, strict=True)
        ]
        change = sum(float(np.square(a - b).sum()) for a, b in pairs)
        norm = sum(float(np.square(a).sum()) for a, _ in pairs)
        found[calibrated.sources[sample.source].name] = (
            float(np.sqrt(change / norm)) if norm else 0.0
        )
    return found


def _card(report: QuantizeReport) -> str:
    name = markdown(model_name(report.model))
    size = report.formats[0].bytes
    choices = {"weights": report.quantize}
    if report.quantize == "int8":
        choices["activations"] = report.activations
    if report.quantize == "int4" or report.activations == "float":
        choices["block"] = str(report.block)
    errors = [
        f"On {markdown(source)} the outputs move by {error:.3g} of their norm."
        for source, error in report.error.items()
    ]
    return joined(
        [
            front_matter(),
            f"# {name}, quantised",
            f"Made from {name} by prunec {__version__} with the tools of ONNX Runtime: "
            f"{size:,} bytes, {report.dense_bytes / size:.2f} times fewer than in float32.",
            how(choices, report.calibration),
            *errors,
            formats(report.formats, custom=False),
            CAUTION,
        ]
    )
