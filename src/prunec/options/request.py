"""From what was typed, and a recipe if there is one, to options that are known to be good."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from prunec.frontends.mixture import parse_mixture
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.emit import EmitOptions
from prunec.options.factorize import FactorizeOptions
from prunec.options.prune import PruneOptions
from prunec.options.quantize import QuantizeOptions
from prunec.options.recipe import MODEL, Recipe, check_files, read_recipe
from prunec.options.run import RunOptions
from prunec.options.sparsify import SparsifyOptions
from prunec.options.target import parse_targets
from prunec.output.staging import check_output
from prunec.planning.planfile import read_plan

__all__ = [
    "emit_options",
    "factorize_options",
    "prune_options",
    "quantize_options",
    "sources",
    "sparsify_options",
]

Asked = TypeVar("Asked", bound=RunOptions)

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
    options = _settled(PruneOptions(**_completed(given, PruneOptions.verb), json=as_json))
    if options.plan is not None:
        read_plan(options.plan)
    _check_out(options)
    return options


def sparsify_options(typed: Mapping[str, Any], *, as_json: bool = False) -> SparsifyOptions:
    """Settled options, as `prune_options` gives them."""
    given = _completed(dict(typed), SparsifyOptions.verb)
    options = _settled(SparsifyOptions(**given, json=as_json))
    _check_out(options)
    return options


def factorize_options(typed: Mapping[str, Any], *, as_json: bool = False) -> FactorizeOptions:
    """Settled options, as `prune_options` gives them."""
    given = dict(typed)
    if "targets" in given:
        given["targets"] = parse_targets(given["targets"])
    options = _settled(FactorizeOptions(**_completed(given, FactorizeOptions.verb), json=as_json))
    _check_out(options)
    return options


def quantize_options(typed: Mapping[str, Any], *, as_json: bool = False) -> QuantizeOptions:
    """Settled options, as `prune_options` gives them."""
    given = _completed(dict(typed), QuantizeOptions.verb)
    options = _settled(QuantizeOptions(**given, json=as_json))
    _check_out(options)
    return options


def emit_options(typed: Mapping[str, Any], *, as_json: bool = False) -> EmitOptions:
    """Settled options, as `prune_options` gives them."""
    given = _completed(dict(typed), EmitOptions.verb)
    options = _settled(EmitOptions(**given, json=as_json))
    _check_out(options)
    return options


def _completed(given: dict[str, Any], verb: str) -> dict[str, Any]:
    """What was typed, and the rest from the recipe if one is named; there must be a model."""
    if "recipe" in given:
        given = _with_recipe(given, read_recipe(given["recipe"], verb))
    if given.get("model"):
        return given
    raise fail(
        "P900",
        "no MODEL given",
        help=f"give a model folder, a hub id, or a .gguf or .onnx file; see prunec {verb} --help",
        exit_code=Exit.USAGE,
    )


def _check_out(options: RunOptions) -> None:
    if options.out is not None and not options.dry_run:
        check_output(options.out, overwrite=options.overwrite, sources=sources(options))


def sources(options: RunOptions) -> list[Path]:
    """The files and folders that a run reads and must not replace."""
    named = [Path(options.model).expanduser(), *options.calibration_files]
    return [path for path in named if os.path.exists(path)]


def _settled(options: Asked) -> Asked:
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
