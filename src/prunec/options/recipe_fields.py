"""What a recipe keeps of a verb's options: their names, how YAML holds them, and mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as brief  # a value may stand for billions by its aliases
from typing import Any, Protocol

from prunec.frontends.mixture import spell_mixture
from prunec.ir.diagnostics import Diagnostic
from prunec.options.target import parse_targets

__all__ = [
    "PATHS",
    "VERBS",
    "Told",
    "absolute",
    "as_field",
    "as_fields",
    "as_yaml",
    "mistaken_options",
]

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
        "phase": str,
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
    "factorize": {
        "targets": list,
        "method": str,
        "ranks": str,
        "round_to": int,
        "steps": int,
        "batch": int,
        "lr": float,
        **COMMON,
    },
    "emit": {"formats": list},
    "quantize": {"quantize": str, "activations": str, "block": int, **COMMON},
    "recover": {
        "teacher": str,
        "data": str,
        "losses": str,
        "top_k": int,
        "store_logits": bool,
        "blockwise": bool,
        "train": str,
        "rank": int,
        "steps": int,
        "batch": int,
        "length": int,
        "samples": int,
        "lr": float,
        "save_every": int,
        "patience": int,
        "precision": str,
        "seed": int,
    },
    "eval": {
        "data": str,
        "against": str,
        "tokenizer": str,
        "max_windows": int,
        "window": int,
    },
}
"""What a recipe keeps of a verb's options, and how YAML holds it."""

PATHS = {"plan", "keep_tokens"}
"""Options that name files."""

MODELS = {"teacher", "against", "tokenizer"}
"""Options that name models: files, folders or hub ids."""

SHAPES = {
    list: "a list of texts",
    int: "a number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}


class Told(Protocol):
    """Settled options of one run of a verb."""

    @property
    def verb(self) -> str:
        """Its name on the command line."""

    @property
    def model(self) -> str:
        """What it works on."""

    @property
    def read_files(self) -> tuple[Path, ...]:
        """The files that it reads beside the model."""


def mistaken_options(given: Mapping[Any, Any], verb: str) -> Iterator[Diagnostic]:
    """A diagnostic for every name that the verb has no option of, and for each value of the wrong
    kind."""
    for name, value in given.items():
        if name not in VERBS[verb]:
            yield _unknown(name, verb)
            continue
        kind = VERBS[verb][name]
        if value is None or _fits(value, kind):
            continue
        quoted = f"write it in quotes: {name}: '{value}'" if isinstance(value, int | float) else ""
        yield Diagnostic(
            "P841",
            f"option {name} is not {SHAPES[kind]}: {brief(value)}",
            help=quoted if kind is str else "",
        )


def as_yaml(options: Told, name: str) -> Any:
    """The value of a settled option as YAML holds it; paths from the root."""
    value = getattr(options, name)
    match name:
        case "targets":
            return [str(target) for target in value]
        case "calibration" | "data":
            mixture = getattr(options, "mixture", ())
            return spell_mixture(mixture) if mixture else str(value)
    if value is None:
        return None
    if name in PATHS:
        return str(Path(value).absolute())
    if name in MODELS:
        return absolute(str(value))
    return list(value) if isinstance(value, tuple) else value


def as_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """YAML values as values of options."""
    fields = {name: as_field(name, value) for name, value in given.items()}
    if "targets" in given:
        fields["targets"] = parse_targets(given["targets"])
    return fields


def as_field(name: str, value: Any) -> Any:
    """A YAML value as the command line gives it."""
    if name in PATHS:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def absolute(model: str) -> str:
    """A path from the root; a hub id as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def _fits(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _unknown(name: object, verb: str) -> Diagnostic:
    known = list(VERBS[verb])
    near = get_close_matches(str(name)[:80], known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"a recipe may set {', '.join(known)}"
    return Diagnostic("P841", f"prunec {verb} has no option {brief(name)} in a recipe", help=remedy)
