"""Fewer layers in a stock config: which fields say how many there are, and the new names.

There is no table of models: each field that holds the number of a list's layers is set to the new
number, fields with one value for each layer are cut to those that stay, and the model is rebuilt
on the meta device until its parameters are the ones that are left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from typing import Any

from prunec.backends.hf_build import Build, Shapes, changed, quiet, shapes
from prunec.backends.hf_fields import Family, config_fields
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Graph, Op, Parameter, renamed

__all__ = ["Shallower", "shallower"]

Layer = tuple[str, int]
"""The path of a list of modules, and a place in it."""


@dataclass(frozen=True)
class Shallower:
    """A config with fewer layers. `layers` says which go; `alive` names those of their parameters
    that other layers read: they belong to the next layer then."""

    config: Any
    layers: frozenset[Layer]
    alive: frozenset[str] = frozenset()

    def renamed(self, name: str) -> str:
        """The name in the smaller model of a parameter or a module."""
        parts = name.split(".")
        return ".".join(self._number(parts, i) for i in range(len(parts)))

    def _number(self, parts: list[str], at: int) -> str:
        if not parts[at].isdigit():
            return parts[at]
        path, number = ".".join(parts[:at]), int(parts[at])
        return str(number - sum(p == path and n < number for p, n in self.layers))

    def gone(self, name: str) -> bool:
        """Whether a parameter goes with its layer."""
        inside = any(f"{name}.".startswith(f"{path}.{n}.") for path, n in self.layers)
        return inside and name not in self.alive

    def renumbered(self, graph: Graph) -> Graph:
        """The program with parameters and modules under their new names."""
        stored = [self._parameter(p) for p in graph.parameters.values()]
        return replace(
            graph,
            parameters={parameter.name: parameter for parameter in stored},
            ops=tuple(self._op(op) for op in graph.ops),
        )

    def _parameter(self, parameter: Parameter) -> Parameter:
        aliases = tuple(self.renamed(alias) for alias in parameter.aliases)
        return replace(parameter, name=self.renamed(parameter.name), aliases=aliases)

    def _op(self, op: Op) -> Op:
        def value(name: str) -> str:
            return "@" + self.renamed(name[1:]) if name.startswith("@") else name

        return replace(renamed(op, value), loc=replace(op.loc, module=self.renamed(op.loc.module)))


def shallower(
    family: Family,
    layers: Collection[Layer],
    alive: Collection[str],
    before: Shallower | None = None,
) -> Shallower | Diagnostic:
    """The stock config without these layers, or why there is none.

    `alive` names the parameters of the smaller program. Layers that went `before` are not among
    those of the `family`, but all names are as if they were.
    """
    if before is not None:
        return _further(family, frozenset(layers), frozenset(alive), before)
    found = Shallower(family.config, frozenset(), frozenset(alive))
    with quiet():
        now = family.shapes
        for path in dict.fromkeys(path for path, _ in layers):
            numbers = {n for p, n in layers if p == path}
            step = replace(found, layers=frozenset((path, n) for n in numbers))
            wanted = {step.renamed(n): shape for n, shape in now.items() if not step.gone(n)}
            total = len({_place(name, path) for name in now} - {None})
            config = _config(found.config, family.build, total, sorted(numbers), wanted)
            if config is None:
                return _no_field(family, path, total, total - len(numbers))
            found = replace(found, config=config, layers=found.layers | step.layers)
            now = wanted
    return found


def _further(
    family: Family, layers: frozenset[Layer], alive: frozenset[str], before: Shallower
) -> Shallower | Diagnostic:
    moved = (before.renamed(f"{path}.{number}").rpartition(".") for path, number in layers)
    left = frozenset((path, int(number)) for path, _, number in moved)
    found = shallower(family, left, frozenset(map(before.renamed, alive)))
    if isinstance(found, Diagnostic):
        return found
    return Shallower(found.config, before.layers | layers, alive)


def _place(name: str, path: str) -> int | None:
    """Which module of a list a parameter belongs to."""
    rest = name.removeprefix(path + ".").partition(".")[0]
    return int(rest) if name.startswith(path + ".") and rest.isdigit() else None


def _config(
    config: Any, build: Build, total: int, numbers: list[int], wanted: Shapes
) -> Any | None:
    """The config with a field set to the new number that builds what is wanted."""
    kept = [n for n in range(total) if n not in numbers]
    for changes in _candidates(config.to_dict(), total, kept):
        try:
            smaller = changed(config, changes)
            if shapes(build(smaller)) == wanted:
                return smaller
        except Exception:  # config and model classes refuse with exceptions of any type
            continue
    return None


def _candidates(data: Mapping[str, Any], total: int, kept: list[int]) -> Iterator[dict[str, Any]]:
    """Each field of that number set to the new one, with lists of that length cut and without."""
    for path, value in config_fields(data):
        if value != total:
            continue
        *outer, _ = path.split(".")
        holder = ".".join(outer)
        inside: Any = reduce(getitem, outer, data)
        lists = {
            f"{holder}.{name}".lstrip("."): [items[i] for i in kept]
            for name, items in inside.items()
            if isinstance(items, list) and len(items) == total
        }
        yield {path: len(kept), **lists}
        if lists:
            yield {path: len(kept)}


def _no_field(family: Family, path: str, total: int, left: int) -> Diagnostic:
    return Diagnostic(
        "P615",
        f"no field of {type(family.config).__name__} makes {left} layers of the {total} in {path}",
        where=path,
        help="write --format onnx or torchscript, which hold any program",
    )
