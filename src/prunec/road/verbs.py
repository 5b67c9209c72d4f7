"""What a stage may do: verbs of the command line, what they read and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from prunec.frontends.places import check_place
from prunec.ir.diagnostics import Exit
from prunec.measuring.evaluate import EvalOptions, check_options
from prunec.options.recipe_fields import Told
from prunec.options.request import (
    emit_options,
    factorize_options,
    prune_options,
    quantize_options,
    sparsify_options,
)
from prunec.output.staging import Formats, staged
from prunec.progress import Progress
from prunec.recovery.options import RecoverOptions

__all__ = ["STAGES", "Options", "Verb"]


class Options(Told, Protocol):
    """Settled options of a stage."""

    @property
    def trust_remote_code(self) -> bool:
        """Whether code that the model brings may run."""


class Report(Protocol):
    """What a verb tells in the end."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Verb:
    """One verb. `settle` checks options as fields by name, without looking into the model; `run`
    does the work in the folder that the options name.

    `reads` are the formats that it can start from, the preferred one first; `formats` those that
    it writes, None when the options say so; with `keeps` these are by default the one that it read.
    `dense` is the option that names the dense model, filled in with the run's own; `final` means
    that its result goes into no other stage; with `rounds` it keeps whole blocks of a quantisation
    that follows.
    """

    settle: Callable[[dict[str, Any]], Any]
    run: Callable[[Any, Path, Progress], Report]
    reads: tuple[str, ...] = ("hf", "onnx")
    formats: tuple[str, ...] | None = None
    dense: str = ""
    resumes: bool = True
    final: bool = False
    keeps: bool = False
    rounds: bool = False


def _prune(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.verbs.pipeline import prune

    return prune(options, progress)


def _sparsify(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.verbs.sparsifying import sparsify

    return sparsify(options, progress)


def _factorize(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.verbs.factorizing import factorize_model

    return factorize_model(options, progress)


def _emit(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.verbs.emitting import emit_model

    return emit_model(options, progress)


def _quantize(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.verbs.quantizing import quantize

    return quantize(options, progress)


def _recover(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.recovery.run import recover

    return recover(options, progress)


def _evaluate(options: Any, out: Path, progress: Progress) -> Report:
    from prunec.measuring.evaluate import evaluate

    with staged(out, overwrite=True) as stage:
        report = evaluate(options, progress)
        text = json.dumps(report.to_json(), indent=1)
        (stage / Formats.REPORT).write_text(text, encoding="utf-8")
    return report


def _recovery(given: dict[str, Any]) -> RecoverOptions:
    return RecoverOptions(**given).settle()


def _evaluation(given: dict[str, Any]) -> EvalOptions:
    known = {field.name for field in fields(EvalOptions)}
    taken: dict[str, Any] = {name: value for name, value in given.items() if name in known}
    options = EvalOptions(**taken | {"data": Path(given["data"])})
    check_options(options)
    check_place(options.data)
    return options


STAGES: Mapping[str, Verb] = {
    "prune": Verb(prune_options, _prune, keeps=True, rounds=True),
    "recover": Verb(_recovery, _recover, ("hf",), ("hf",), dense="teacher"),
    "sparsify": Verb(sparsify_options, _sparsify, keeps=True),
    "factorize": Verb(factorize_options, _factorize, ("hf",), rounds=True),
    "emit": Verb(emit_options, _emit, ("hf",)),
    "quantize": Verb(quantize_options, _quantize, ("hf", "onnx"), ("onnx",), final=True),
    "eval": Verb(_evaluation, _evaluate, (), (), dense="against", resumes=False),
}


def exit_code(report: Report) -> int:
    """That of the verb on the command line."""
    return int(getattr(report, "exit_code", Exit.DONE))
