"""Plan files: which indices of which parameters stay, reviewable and fed back with `--plan`.

`removed` names layers and sublayers that go as a whole. `parameters` is the contract: for every
parameter touched, the kept indices of each dimension that lost some, ascending, keyed by the
dimension as text. `groups` and `pinned` say why. `shapes`, when there, gives the dense shape of
each parameter in `parameters`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail

__all__ = ["VERSION", "check_plan", "read_plan", "write_plan"]

VERSION = 1
Plan = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

MOST_SHOWN = 8
"""Of many mistakes of one kind the first few are enough to see what went wrong."""


def write_plan(plan: Mapping[str, Any], path: Path) -> None:
    """Write `plan` with one line for each parameter dimension, group and pin."""
    path.write_text(format_plan(plan), encoding="utf-8")


def format_plan(plan: Mapping[str, Any]) -> str:
    whole = {"version": VERSION, **plan}
    entries = [f"  {_dump(key)}: {_block(value)}" for key, value in whole.items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _block(value: Any) -> str:
    """A mapping or list spread over one line an item; anything else on one line."""
    if isinstance(value, Mapping) and value:
        lines = [f"    {_dump(key)}: {_dump(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n  }"
    if isinstance(value, list | tuple) and value:
        return "[\n" + ",\n".join(f"    {_dump(item)}" for item in value) + "\n  ]"
    return _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Arrays and array scalars as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a plan cannot hold {type(value).__name__}")


def read_plan(path: Path, shapes: Shapes | None = None) -> Plan:
    """Read and check a plan; against the dense `shapes` of the model's parameters when given.

    Raises PrunecError (exit 2) with every mistake found.
    """
    try:
        plan = json.loads(path.read_bytes(), object_pairs_hook=_no_repeats)
    except FileNotFoundError:
        raise _unreadable(path, "does not exist", "give the plan.json of an earlier run") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}", "") from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"is not JSON: {error}", "give a plan.json as it was") from None
    problems = list(_structure(plan))
    if not problems and shapes is not None:
        problems = list(check_plan(plan, shapes))
    if problems:
        raise PrunecError([_located(problem, path) for problem in problems], Exit.USAGE)
    assert isinstance(plan, dict)
    return plan


def check_plan(plan: Mapping[str, Any], shapes: Shapes) -> Iterator[Diagnostic]:
    """What keeps a well-formed plan from fitting a model whose parameters have `shapes`."""
    kept: dict[str, dict[str, list[int]]] = plan["parameters"]
    recorded: dict[str, list[int]] = plan.get("shapes", {})
    unknown = [name for name in kept if name not in shapes]
    changed = [n for n in kept if n in shapes and tuple(recorded.get(n, shapes[n])) != shapes[n]]
    if unknown or changed:
        yield _other_model(kept, unknown, changed, recorded, shapes)
        return
    found = (
        problem
        for name, dims in kept.items()
        for dim, indices in dims.items()
        for problem in _misfit(name, dim, indices, shapes[name])
    )
    yield from _shortened(found)


def _other_model(
    kept: Mapping[str, Any],
    unknown: list[str],
    changed: list[str],
    recorded: Mapping[str, list[int]],
    shapes: Shapes,
) -> Diagnostic:
    if unknown:
        example = f"{unknown[0]} is not in this model"
    else:
        name = changed[0]
        example = f"{name} has shape {list(shapes[name])} here and {recorded[name]} in the plan"
    return Diagnostic(
        "P834",
        f"the plan is of another model: {len(unknown) + len(changed)} of its {len(kept)} "
        f"parameters do not match; {example}",
        help="give the model that the plan was made for, or make a new plan with --target",
    )


def _misfit(
    name: str, dim: str, indices: list[int], shape: tuple[int, ...]
) -> Iterator[Diagnostic]:
    if int(dim) >= len(shape):
        yield Diagnostic(
            "P833",
            f"{name} has {len(shape)} dimensions and no dimension {dim}",
            help="dimensions count from 0",
        )
        return
    size = shape[int(dim)]
    if indices[-1] >= size:
        yield Diagnostic(
            "P833",
            f"{name}: index {indices[-1]} of dimension {dim} is out of range",
            help=f"dimension {dim} has size {size}",
        )


def _structure(plan: Any) -> Iterator[Diagnostic]:
    """Mistakes in the form of a plan, whatever the model."""
    if not isinstance(plan, dict) or not isinstance(plan.get("parameters"), dict):
        yield Diagnostic(
            "P831",
            "not a plan: there is no object `parameters`",
            help='a plan is {"parameters": {NAME: {"DIM": [kept, ...]}}, ...}',
        )
        return
    if plan.get("version", VERSION) != VERSION:
        yield Diagnostic(
            "P831",
            f"plan version {plan['version']!r} is not known",
            help=f"this prunec reads version {VERSION}; use the one that wrote the plan",
        )
        return
    removed = plan.get("removed", [])
    if not isinstance(removed, list) or not all(isinstance(name, str) for name in removed):
        yield Diagnostic("P831", "`removed` is not a list of names")
    elif not plan["parameters"] and not removed:
        yield Diagnostic("P831", "the plan touches no parameter", help="there is nothing to do")
    yield from _listed(plan)
    yield from _shapes(plan.get("shapes", {}))
    yield from _shortened(_entries(plan["parameters"]))


def _listed(plan: Mapping[str, Any]) -> Iterator[Diagnostic]:
    for key in ("groups", "pinned"):
        value = plan.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            yield Diagnostic("P831", f"`{key}` is not a list of objects")


def _shapes(shapes: Any) -> Iterator[Diagnostic]:
    valid = isinstance(shapes, dict) and all(
        isinstance(shape, list) and all(_is_index(n) for n in shape) for shape in shapes.values()
    )
    if not valid:
        yield Diagnostic("P831", "`shapes` does not map parameter names to lists of sizes")


def _entries(parameters: Mapping[str, Any]) -> Iterator[Diagnostic]:
    for name, dims in parameters.items():
        if not isinstance(dims, dict) or not dims:
            yield Diagnostic("P832", f"{name}: not an object of dimensions", help='{"DIM": [...]}')
            continue
        for dim, indices in dims.items():
            yield from _entry(name, dim, indices)


def _entry(name: str, dim: str, indices: Any) -> Iterator[Diagnostic]:
    if not (dim.isascii() and dim.isdigit()):
        yield Diagnostic("P832", f"{name}: {dim!r} is not a dimension", help="0, 1, ...")
        return
    if not isinstance(indices, list) or not all(_is_index(i) for i in indices):
        yield Diagnostic(
            "P832",
            f"{name}: dimension {dim} is not a list of indices from 0 up",
            help="list what stays, for example [0, 1, 5]",
        )
        return
    if not indices:
        yield Diagnostic(
            "P832",
            f"{name}: dimension {dim} keeps nothing",
            help="keep one index at least, or leave the parameter out to keep all",
        )
        return
    for before, after in pairwise(indices):
        if after <= before:
            problem = "is there twice" if after == before else f"comes after {before}"
            yield Diagnostic(
                "P832",
                f"{name}: index {after} of dimension {dim} {problem}",
                help="kept indices are ascending, each one once",
            )
            return


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shortened(problems: Iterator[Diagnostic]) -> Iterator[Diagnostic]:
    every = list(problems)
    yield from every[:MOST_SHOWN]
    if len(every) > MOST_SHOWN:
        yield Diagnostic("P832", f"and {len(every) - MOST_SHOWN} more mistakes of this kind")


def _located(problem: Diagnostic, path: Path) -> Diagnostic:
    return Diagnostic(problem.code, problem.message, str(path), problem.snippet, problem.help)


def _unreadable(path: Path, problem: str, remedy: str) -> PrunecError:
    return fail("P830", f"plan {path} {problem}", where="--plan", help=remedy, exit_code=Exit.USAGE)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
