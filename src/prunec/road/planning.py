"""From a recipe to stages that are known to fit one another, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunec import __version__
from prunec.frontends.source import resolve
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.quantize import QuantizeOptions
from prunec.options.recipe import spelled
from prunec.options.recipe_fields import as_field
from prunec.output.staging import Formats
from prunec.resume.hashes import hash_source
from prunec.resume.state import key_of
from prunec.road.reading import Road, Stage
from prunec.road.verbs import STAGES, Options

__all__ = ["Planned", "hash_model", "plan_road"]

PLACES = {"hf": Formats.HF, "onnx": Formats.ONNX, "torchscript": Formats.TORCHSCRIPT}


@dataclass(frozen=True)
class Planned:
    """A stage with settled options. `key` stands for all that decides its result: its options, the
    files that it reads, and all stages before it."""

    name: str
    verb: str
    options: Options
    key: str


@dataclass(frozen=True)
class _Here:
    """The model between two stages: where it lies, in which formats, and who made it."""

    folder: str
    formats: tuple[str, ...]
    maker: str
    final: bool = False
    stored: bool = False

    def within(self, kind: str) -> str:
        """The model in one format."""
        return str(Path(self.folder) / PLACES[kind]) if self.stored else self.folder


def plan_road(road: Road, out: Path, *, trust: bool) -> list[Planned]:
    """Every stage with its options settled, in OUT's folders.

    Raises PrunecError (exit 2) with the mistakes of all stages: options that the verb refuses
    (each named with its stage), and (P881) a stage that cannot read what the one before leaves.
    """
    key, dense = hash_model(road.model, trust), road.model
    kind = "onnx" if dense.endswith(".onnx") else "hf"
    here = _Here(dense, (kind,), "the model")
    block = _block(road)
    planned: list[Planned] = []
    problems: list[Diagnostic] = []
    for place, stage in enumerate(road.stages, 1):
        name = f"{place}-{stage.verb}"
        try:
            options = _settled(stage, here, out / name, dense, block, trust)
        except PrunecError as error:
            problems += [_named(p, name) for p in error.diagnostics]
            here = replace(here, final=False)
            continue
        key = key_of((__version__, stage.verb, spelled(options), key), options.read_files,
                     *_other_models(stage, options, dense))  # fmt: skip
        planned.append(Planned(name, stage.verb, options, key))
        verb = STAGES[stage.verb]
        if verb.formats != ():
            here = _Here(str(out / name), _formats(stage, options), name, verb.final, stored=True)
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    return planned


def _formats(stage: Stage, options: Any) -> tuple[str, ...]:
    """What a stage writes."""
    fixed = STAGES[stage.verb].formats
    return tuple(options.formats) if fixed is None else fixed


def _block(road: Road) -> int | None:
    """How many inputs share a scale in the quantisation that follows, if there is one by blocks."""
    stage = next((stage for stage in road.stages if stage.verb == "quantize"), None)
    if stage is None:
        return None
    told = {n: v for n, v in stage.given.items() if n in ("quantize", "activations", "block")}
    options = QuantizeOptions(model=road.model, **told)
    return options.block if options.in_blocks else None


def _settled(
    stage: Stage, here: _Here, out: Path, dense: str, block: int | None, trust: bool
) -> Options:
    verb = STAGES[stage.verb]
    given: dict[str, Any] = {name: as_field(name, value) for name, value in stage.given.items()}
    given |= {"model": _read(stage.verb, here), "trust_remote_code": trust}
    if verb.formats != ():
        given |= {"out": out, "overwrite": True}
    if verb.resumes:
        given["resume"] = True
    if verb.rounds and block is not None:
        given.setdefault("round_to", block)
    if verb.keeps and here.stored:
        given.setdefault("formats", (_kind(stage.verb, here),))
    if verb.dense and not dense.endswith(".onnx" if verb.dense == "teacher" else "\0"):
        given.setdefault(verb.dense, dense)
    settled: Options = verb.settle(given)
    return settled


def _kind(verb: str, here: _Here) -> str:
    """The format that a verb starts from; raises P881 when there is none that it can read."""
    reads = STAGES[verb].reads
    found = next((kind for kind in reads if kind in here.formats), None)
    if here.final:
        fact = f"{verb} cannot go on from {here.maker}, which is quantised"
        raise _unfit(fact, "quantise last; only eval may follow")
    if found is None:
        fact = f"{verb} reads {' or '.join(reads)}, and {here.maker} leaves"
        remedy = f"add {reads[0]} to the formats of {here.maker}"
        if not here.stored:
            remedy = "start from a Hugging Face checkpoint"
        raise _unfit(f"{fact} {', '.join(here.formats)}", remedy)
    return found


def _read(verb: str, here: _Here) -> str:
    """What a stage is told as its MODEL: a verb that only looks is shown all formats."""
    return here.within(_kind(verb, here)) if STAGES[verb].reads else here.folder


def _other_models(stage: Stage, options: Options, dense: str) -> Iterator[str]:
    """Hashes of models beside the one that is worked on, where they are not the run's own."""
    name = STAGES[stage.verb].dense
    other = getattr(options, name) if name else None
    if other is not None and other != dense:
        yield hash_model(other, options.trust_remote_code)


def hash_model(model: str, trust: bool) -> str:
    """The hash of a model's files, or the name of a hub's snapshot; raises what `resolve` does
    when there is no such model."""
    source = resolve(model, need_weights=False, trust_remote_code=trust)
    return hash_source(source.path) if Path(model).expanduser().exists() else source.path.name


def _named(problem: Diagnostic, name: str) -> Diagnostic:
    where = f"stage {name}" + (f", {problem.where}" if problem.where else "")
    return replace(problem, where=where)


def _unfit(fact: str, remedy: str) -> PrunecError:
    return fail("P881", fact, help=remedy, exit_code=Exit.USAGE)
