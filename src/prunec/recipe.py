"""Recipes: everything needed to repeat a run, as YAML.

The model and the files that a run reads are named with their SHA-256. `--trust-remote-code` is
never taken from a recipe: whoever runs it decides.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from reprlib import repr as brief  # a value may stand for billions by its aliases
from typing import Any

from prunec.frontends.mixture import spell_mixture
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.run_options import RunOptions
from prunec.target import parse_targets

__all__ = [
    "MODEL",
    "Recipe",
    "check_files",
    "hash_data",
    "hash_source",
    "read_recipe",
    "versions",
    "write_recipe",
]

VERSION = 1

COMMON: Mapping[str, type] = {
    "calibration": str,
    "calibration_samples": int,
    "calibration_length": int,
    "formats": list,
    "seed": int,
}

VERBS: Mapping[str, Mapping[str, type]] = {
    "prune": {
        "targets": list,
        "method": str,
        "groups": list,
        "layout": str,
        "round_to": int,
        "steps": int,
        "keep_tokens": str,
        "depth": str,
        "experts": str,
        "batch": int,
        "length": int,
        "dtype": str,
        "runtime": str,
        "threads": int,
        "restore": str,
        "allocate": str,
        "plan": str,
        "recover_every": str,
        "recover": str,
        "allow_interface_change": bool,
        **COMMON,
    },
    "sparsify": {
        "sparsity": str,
        "method": str,
        "compare": str,
        "ratios": str,
        "leave": list,
        **COMMON,
    },
    "quantize": {"quantize": str, "activations": str, "block": int, **COMMON},
}
"""What a recipe keeps of a verb's options, and how YAML holds it."""

PACKAGES = (
    "prunec", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "safetensors", "torch",
    "transformers",
)  # fmt: skip

MODEL_FILES = {".json", ".safetensors", ".model", ".txt", ".py", ".jinja"}
"""What a folder means as a model; its pictures and read-me files may change."""

MODEL_FIELDS = ("path", "sha256")

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


def write_recipe(path: Path, options: RunOptions, sha256: str) -> None:
    """Write settled `options`, with the hash of the model (see `hash_source`), and versions."""
    written = {
        "version": VERSION,
        "verb": options.verb,
        "model": {"path": _absolute(options.model), "sha256": sha256},
        "options": {name: _as_yaml(options, name) for name in VERBS[options.verb]},
        "files": {str(p.absolute()): hash_data(p) for p in options.read_files},
        "versions": versions(),
    }
    import yaml

    text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def read_recipe(path: Path, verb: str = "prune") -> Recipe:
    """Read and check a recipe of a verb; raises PrunecError (exit 2) with every mistake found."""
    content = _load(path)
    problems = list(_mistakes(content, verb))
    if problems:
        located = [Diagnostic(p.code, p.message, str(path), help=p.help) for p in problems]
        raise PrunecError(located, Exit.USAGE)
    model = content.get("model", {})
    given = {k: v for k, v in content.get("options", {}).items() if v is not None}
    return Recipe(path, model.get("path", ""), _as_fields(given), _hashes(content))


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
        if name in recipe.files and Path(name).exists()
        if _hash_as(what, Path(name)) != recipe.files[name]
    ]
    if changed:
        raise PrunecError(changed, Exit.USAGE)


def hash_source(path: Path) -> str:
    """SHA-256 of a file, of an ONNX file with its external data, or of a model folder.

    A folder's hash covers the names and contents of the files that make it a model.
    """
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix in MODEL_FILES and p.is_file()]
    else:
        files = [path, *_external_data(path)]
    if len(files) == 1 and files[0] == path:
        return _hash_file(path)
    total = hashlib.sha256()
    for file in sorted(files, key=lambda p: p.name):
        total.update(f"{file.name}\0{_hash_file(file)}\n".encode())
    return total.hexdigest()


def hash_data(path: Path) -> str:
    """SHA-256 of a file, or of a folder: of the names and contents of all files in it."""
    if not path.is_dir():
        return _hash_file(path)
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return total.hexdigest()


def _hash_as(what: str, path: Path) -> str:
    return hash_source(path) if what == MODEL else hash_data(path)


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _external_data(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights."""
    if path.suffix != ".onnx":
        return []
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    graph = onnx.load(path, load_external_data=False).graph
    stored = {ExternalDataInfo(t).location for t in graph.initializer if t.data_location == 1}
    return [path.parent / name for name in sorted(stored)]


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        # the parser in C, where there is one: the other takes minutes for a file of brackets
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load(path.read_bytes(), Loader=loader)
    except FileNotFoundError:
        raise _unreadable(path, "does not exist") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(path, f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise _unreadable(path, "is not a recipe")
    return content


def _mistakes(content: Mapping[str, Any], verb: str) -> Iterator[Diagnostic]:
    if content.get("version", VERSION) != VERSION:
        yield Diagnostic("P841", f"recipe version {brief(content['version'])} is not known")
    model = content.get("model", {})
    if not isinstance(model, dict) or not _texts(model.get(name, "") for name in MODEL_FIELDS):
        yield Diagnostic("P841", "`model` is not an object with a `path`")
    files = content.get("files", {})
    if not isinstance(files, dict) or not _texts([*files, *files.values()]):
        yield Diagnostic("P841", "`files` does not map paths to hashes")
    written = content.get("verb", "prune")
    if written != verb:
        named = isinstance(written, str) and written in VERBS
        remedy = f"use prunec {written}" if named else "choose another recipe"
        yield Diagnostic("P841", f"this is no recipe of prunec {verb}", help=remedy)
        return
    options = content.get("options", {})
    if not isinstance(options, dict):
        yield Diagnostic("P841", "`options` is not an object")
        return
    for name, value in options.items():
        yield from _mistaken_option(name, value, VERBS[verb])


SHAPES = {list: "a list of texts", int: "a number", str: "a text", bool: "true or false"}


def _mistaken_option(name: Any, value: Any, options: Mapping[str, type]) -> Iterator[Diagnostic]:
    if name not in options:
        known = ", ".join(options)
        yield Diagnostic("P841", f"unknown option {brief(name)}", help=f"a recipe may set {known}")
        return
    kind = options[name]
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if kind is list and fits:
        fits = all(isinstance(item, str) for item in value)
    if value is not None and not fits:
        shape = SHAPES[kind]
        yield Diagnostic("P841", f"option {name} is not {shape}: {brief(value)}")


def _texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _as_yaml(options: RunOptions, name: str) -> Any:
    match name, getattr(options, name):
        case "targets", targets:
            return [str(target) for target in targets]
        case (("plan" | "keep_tokens"), path):
            return None if path is None else str(path.absolute())
        case "calibration", _:
            return spell_mixture(options.mixture) if options.mixture else options.calibration
        case _, tuple() as values:
            return list(values)
        case _, value:
            return value


def _as_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """YAML values as values of options."""
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    if "targets" in given:
        fields["targets"] = parse_targets(given["targets"])
    for name in {"plan", "keep_tokens"} & given.keys():
        fields[name] = Path(given[name])
    return fields


def _hashes(content: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = dict(content.get("files", {}))
    model = content.get("model", {})
    if "path" in model and "sha256" in model:
        found[model["path"]] = model["sha256"]
    return found


def _absolute(model: str) -> str:
    """A path from the root; a hub id as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def versions() -> dict[str, str]:
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
