"""Read what `prunec run` is to do: stages in order, or the recipe of a single verb.

    model: ./smollm2
    stages:
      - prune: {target: params=75%, calibration: train.txt}
      - recover: {data: train.txt, steps: 200}
      - quantize: {quantize: int8}
      - eval: {data: test.txt}

Options have the names of the command line, with or without their dashes' underscores, or those
that recipes have; what the command line takes with commas may be a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError
from prunec.options.recipe import common_mistakes, hashes_in, load_recipe
from prunec.options.recipe_fields import VERBS, mistaken_options

__all__ = ["TYPED", "Road", "Stage", "read_road", "renamed"]

KEYS = ("version", "verb", "model", "stages", "files", "versions")
TYPED = {"target": "targets", "format": "formats", "loss": "losses"}
"""Options whose names on the command line are not those of recipes."""

NEEDED = {"recover": "data", "eval": "data"}
SHAPE = "write `- prune: {target: params=75%}`, one verb with its options"


@dataclass(frozen=True)
class Stage:
    """A verb, and its options as YAML has them, under the names that recipes use."""

    verb: str
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Road:
    """What is to be done with a model, in order; `files` maps paths to hashes where the recipe
    was written by a run."""

    path: Path
    model: str
    stages: tuple[Stage, ...]
    files: Mapping[str, str] = field(default_factory=dict)


def read_road(path: Path) -> Road:
    """Read and check a recipe; raises PrunecError (P840, P841, P880, exit 2) with every mistake."""
    content = load_recipe(path)
    if isinstance(content.get("model"), str):
        content = content | {"model": {"path": content["model"]}}
    problems = list(_mistakes(content))
    if problems:
        located = [Diagnostic(p.code, p.message, str(path), help=p.help) for p in problems]
        raise PrunecError(located, Exit.USAGE)
    stages = tuple(
        Stage(verb, {n: v for n, v in given.items() if v is not None})
        for verb, given in _stages(content)
    )
    return Road(path, content.get("model", {}).get("path", ""), stages, hashes_in(content))


def _stages(content: Mapping[str, Any]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Verbs with their options, those of a stage as recipes of a single verb name them."""
    if "stages" not in content:
        yield content.get("verb", "prune"), content.get("options", {})
        return
    for stage in content["stages"]:
        if isinstance(stage, str):
            yield stage, {}
            continue
        ((verb, given),) = stage.items()
        yield verb, {} if given is None else renamed(verb, given)


def renamed(verb: str, given: Mapping[Any, Any]) -> dict[Any, Any]:
    """Options under the names that recipes use; a text that stands for several is taken apart."""
    found = {}
    for typed, value in given.items():
        name = typed.replace("-", "_") if isinstance(typed, str) else typed
        name = TYPED.get(name, name)
        if VERBS[verb].get(name) is list and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        found[name] = value
    return found


def _mistakes(content: Mapping[str, Any]) -> Iterator[Diagnostic]:
    yield from common_mistakes(content)
    if "stages" not in content:
        yield from _single(content)
        return
    for key in content:
        if key not in KEYS:
            yield _unknown("P841", f"a recipe has no {brief(key)}", key, KEYS)
    stages = content["stages"]
    if not isinstance(stages, list) or not stages:
        yield Diagnostic("P880", "`stages` is not a list of stages", help=SHAPE)
        return
    shaped = [list(_shapeless(place, stage)) for place, stage in enumerate(stages, 1)]
    yield from (problem for problems in shaped for problem in problems)
    sound = [stage for stage, problems in zip(stages, shaped, strict=True) if not problems]
    for verb, given in _stages({"stages": sound}):
        yield from _mistaken(verb, given)


def _single(content: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Mistakes in the recipe of one verb."""
    verb, options = content.get("verb"), content.get("options", {})
    if verb is None:
        fact = "a recipe needs `stages`, or the `verb` that it is of"
        yield Diagnostic("P880", fact, help="`prunec run --help` shows a recipe")
    elif not isinstance(verb, str) or verb not in VERBS:
        yield _unknown("P880", f"there is no stage {brief(verb)}", verb, VERBS)
    elif not isinstance(options, dict):
        yield Diagnostic("P841", "`options` is not an object")
    else:
        yield from _mistaken(verb, options)


def _shapeless(place: int, stage: Any) -> Iterator[Diagnostic]:
    """Mistakes in what a stage looks like."""
    items = {stage: None} if isinstance(stage, str) else stage
    if not isinstance(items, dict) or len(items) != 1:
        yield Diagnostic("P880", f"stage {place} is not one verb: {brief(stage)}", help=SHAPE)
        return
    ((verb, given),) = items.items()
    if not isinstance(verb, str) or verb not in VERBS:
        yield _unknown("P880", f"there is no stage {brief(verb)}", verb, VERBS)
    elif given is not None and not isinstance(given, dict):
        fact = f"the options of stage {place} ({verb}) are not an object: {brief(given)}"
        yield Diagnostic("P880", fact, help=SHAPE)


def _mistaken(verb: str, given: Mapping[Any, Any]) -> Iterator[Diagnostic]:
    yield from mistaken_options(given, verb)
    need = NEEDED.get(verb)
    if need is not None and given.get(need) is None:
        yield Diagnostic("P812", f"{verb} needs `{need}`", help=f"{verb}: {{{need}: text.txt}}")


def _unknown(code: str, fact: str, name: object, known: Mapping[str, Any] | tuple[str, ...]
             ) -> Diagnostic:  # fmt: skip
    near = get_close_matches(str(name)[:80], list(known), n=1)
    remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
    return Diagnostic(code, fact, help=remedy)
