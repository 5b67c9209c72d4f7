"""Recipes: everything needed to repeat a run, as YAML.

The model and the files that a run reads are named with their BLAKE3 hash. `--trust-remote-code` is
never taken from a recipe: whoever runs it decides.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from reprlib import repr as brief  # a value may stand for billions by its aliases
from typing import Any

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.plain_yaml import load_yaml
from prunec.options.recipe_fields import VERBS, Told, absolute, as_fields, as_yaml, mistaken_options
from prunec.resume.hashes import hash_data, hash_source

__all__ = [
    "MODEL",
    "Recipe",
    "check_files",
    "common_mistakes",
    "hashes_in",
    "load_recipe",
    "read_recipe",
    "spelled",
    "versions",
    "write_recipe",
    "write_whole",
]

VERSION = 1

PACKAGES = (
    "prunec", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "safetensors", "torch",
    "transformers",
)  # fmt: skip

MODEL_FIELDS = ("path", "blake3")

MODEL = "model"
"""What the model's file is to the user; see `check_files`."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as read. `options` are fields of the verb's options; `files` maps the path of each
    file that the run reads, the model included, to its hash."""

    path: Path
    model: str
    options: dict[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)


def write_recipe(path: Path, options: Told, digest: str) -> None:
    """Write settled `options`, with the hash of the model (see `hash_source`), and versions."""
    what = {"verb": options.verb, "options": spelled(options)}
    write_whole(path, what, options.model, digest, options.read_files)


def spelled(options: Told) -> dict[str, Any]:
    """Settled options as a recipe holds them."""
    return {name: as_yaml(options, name) for name in VERBS[options.verb]}


def write_whole(
    path: Path, what: Mapping[str, Any], model: str, digest: str, files: Iterable[Path]
) -> None:
    """Write a recipe of `what` is to be done with a model, and the files that it is done with."""
    written = {
        "version": VERSION,
        "model": {"path": absolute(model), "blake3": digest},
        **what,
        "files": {str(p.absolute()): hash_data(p) for p in files},
        "versions": versions(),
    }
    import yaml

    text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def read_recipe(path: Path, verb: str = "prune") -> Recipe:
    """Read and check a recipe of a verb; raises PrunecError (exit 2) with every mistake found."""
    content = load_recipe(path)
    problems = list(_mistakes(content, verb))
    if problems:
        located = [Diagnostic(p.code, p.message, str(path), help=p.help) for p in problems]
        raise PrunecError(located, Exit.USAGE)
    model = content.get("model", {})
    given = {k: v for k, v in content.get("options", {}).items() if v is not None}
    return Recipe(path, model.get("path", ""), as_fields(given), hashes_in(content))


def check_files(recipe: Recipe, names: Mapping[str, str]) -> None:
    """Raise PrunecError (exit 2) when files of the recipe are not what they were.

    `names` maps those that the run takes from the recipe to what they are to the user; the model
    is the `MODEL`.
    """
    changed = [
        Diagnostic(
            "P842",
            f"the {what} is not what it was when the recipe was written: {name}",
            str(recipe.path),
            help=f"give the {what} on the command line to use it as it is now",
        )
        for name, what in names.items()
        if name in recipe.files and os.path.exists(name)
        if _hash_as(what, Path(name)) != recipe.files[name]
    ]
    if changed:
        raise PrunecError(changed, Exit.USAGE)


def _hash_as(what: str, path: Path) -> str:
    return hash_source(path) if what == MODEL else hash_data(path)


def load_recipe(path: Path) -> dict[str, Any]:
    """The content of a recipe; raises PrunecError (P840, exit 2) when it has none."""
    try:
        content = load_yaml(path)
    except FileNotFoundError:
        raise _unreadable(path, "does not exist") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise _unreadable(path, "is not a recipe")
    return content


def common_mistakes(content: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Mistakes in what recipes of one verb and of a whole run have in common."""
    if content.get("version", VERSION) != VERSION:
        yield Diagnostic("P841", f"recipe version {brief(content['version'])} is not known")
    model = content.get("model", {})
    if not isinstance(model, dict) or not _texts(model.get(name, "") for name in MODEL_FIELDS):
        yield Diagnostic("P841", "`model` is not an object with a `path`")
    files = content.get("files", {})
    if not isinstance(files, dict) or not _texts([*files, *files.values()]):
        yield Diagnostic("P841", "`files` does not map paths to hashes")


def _mistakes(content: Mapping[str, Any], verb: str) -> Iterator[Diagnostic]:
    yield from common_mistakes(content)
    written = content.get("verb", "prune")
    if written != verb:
        named = isinstance(written, str) and written in VERBS
        remedy = f"use prunec {written}, or prunec run" if named else "choose another recipe"
        yield Diagnostic("P841", f"this is no recipe of prunec {verb}", help=remedy)
        return
    options = content.get("options", {})
    if not isinstance(options, dict):
        yield Diagnostic("P841", "`options` is not an object")
        return
    yield from mistaken_options(options, verb)


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def hashes_in(content: Mapping[str, Any]) -> dict[str, str]:
    """The files that a recipe names, the model among them, by path."""
    found: dict[str, str] = dict(content.get("files", {}))
    model = content.get("model", {})
    if "path" in model and "blake3" in model:
        found[model["path"]] = model["blake3"]
    return found


@cache
def versions() -> Mapping[str, str]:
    """Of Python and of the packages that decide what a run gives."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _unreadable(path: Path, problem: str) -> PrunecError:
    return fail(
        "P840",
        f"recipe {path} {problem}",
        where="--recipe",
        help="give the recipe.yaml of an earlier run",
        exit_code=Exit.USAGE,
    )
