"""From what was typed, and a recipe if there is one, to options that are known to be good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunec.frontends.mixture import parse_mixture
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options import PruneOptions
from prunec.output import check_output
from prunec.planfile import read_plan
from prunec.recipe import MODEL, Recipe, check_files, read_recipe
from prunec.target import parse_targets

__all__ = ["prune_options"]

RIVALS = {"targets": "plan", "plan": "targets"}
"""Of these only one can be given: what is typed displaces the recipe's."""

NO_OUTPUT = Diagnostic(
    "P812", "no output folder given", "-o", help="add -o OUT, or --dry-run for the plan"
)

NAMED = {"model": MODEL, "plan": "plan"}
"""Options that name a file of the recipe, and what it is to the user."""


def prune_options(typed: Mapping[str, Any], *, as_json: bool = False) -> PruneOptions:
    """Settled options. What was typed wins over the recipe, that over defaults.

    All that can be checked without looking into the model is checked here, before any work;
    raises PrunecError (exit 2). Touches nothing.
    """
    given = dict(typed)
    if "targets" in given:
        given["targets"] = parse_targets(given["targets"])
    if "recipe" in given:
        given = _with_recipe(given, read_recipe(given["recipe"]))
    if not given.get("model"):
        raise fail(
            "P900",
            "no MODEL given",
            help="give a model folder, a hub id, or a .gguf or .onnx file; see prunec prune --help",
            exit_code=Exit.USAGE,
        )
    options = _settled(PruneOptions(**given, json=as_json))
    if options.plan is not None:
        read_plan(options.plan)
    if options.out is not None and not options.dry_run:
        check_output(options.out, overwrite=options.overwrite, sources=sources(options))
    return options


def sources(options: PruneOptions) -> list[Path]:
    """The files and folders that a run reads and must not replace."""
    named = [Path(options.model).expanduser(), *options.calibration_files]
    return [path for path in named if path.exists()]


def _settled(options: PruneOptions) -> PruneOptions:
    """Settled options of a run that writes, unless it is a dry one."""
    absent = [] if options.out is not None or options.dry_run else [NO_OUTPUT]
    try:
        settled = options.settle()
    except PrunecError as error:
        raise PrunecError([*error.diagnostics, *absent], error.exit_code) from None
    if absent:
        raise PrunecError(absent, Exit.USAGE)
    return settled


def _with_recipe(typed: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    taken = {
        name: value
        for name, value in recipe.options.items()
        if name not in typed and RIVALS.get(name) not in typed
    }
    if "model" not in typed and recipe.model:
        taken["model"] = recipe.model
    names = {str(taken[key]): what for key, what in NAMED.items() if key in taken}
    if taken.get("calibration", "none") not in ("none", "auto"):
        parts = parse_mixture(taken["calibration"])
        names |= {str(part.path): "calibration data" for part in parts if part.path is not None}
    check_files(recipe, names)
    return {**taken, **typed}
