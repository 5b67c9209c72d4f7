"""Find the integers of modules that must follow when layers become smaller one by one.

A model built from the original sizes and given smaller parameters still believes in the old
`num_heads` or `split_size`. Which attributes must change is found without a table of models: an
attribute is a candidate for every part of the nearby parameters' axes that has its size. The
likeliest values are put in and the model is traced; the trace must equal the rewritten program.
Where it does not, the ambiguous ones among the attributes that the forward pass reads are tried
the other way, fewest changes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from prunec.backends import modeling_prunec
from prunec.backends.hf_build import cut_layers, first_line, pattern, quiet, shapes
from prunec.backends.hf_families import ParameterAxes, by_every_name, parts
from prunec.backends.hf_fields import Family
from prunec.backends.hf_fit import wanted_shapes
from prunec.backends.hf_program import same_program
from prunec.backends.hf_spy import Reads, spied
from prunec.ir.axes import new_size, size
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Graph

__all__ = ["Attributes", "Trace", "Values", "attributes"]

Trace = Callable[[torch.nn.Module], Graph]
"""Trace a model on the meta device; the pipeline hands it over."""

Attributes = dict[str, dict[str, int]]
"""By module path, the integers to set."""

Values = dict[tuple[str, str], tuple[int, ...]]

_MAX_TRIES = 24
_CONFIG = "config."


@dataclass(frozen=True)
class _Slot:
    """An attribute of the modules at one place of every layer.

    `options` are the new values it may take, one per module; the first is the likeliest, and
    `old`, which is among them, leaves it alone. `sure` says that nothing speaks for leaving it.
    """

    modules: tuple[str, ...]
    name: str
    old: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    sure: bool

    @property
    def key(self) -> tuple[str, str]:
        return pattern(self.modules[0]), self.name


@dataclass(frozen=True)
class _Search:
    family: Family
    axes: ParameterAxes
    counts: Mapping[str, int]
    wanted: Graph
    trace: Trace

    def shapes(self) -> dict[str, list[int]]:
        """New shapes of the parameters that change."""
        dense = self.family.shapes
        new = wanted_shapes(self.family, self.axes, self.counts)
        return {
            n: list(s) for n, s in new.items() if s != dense[n] and n not in self.family.derived
        }


def attributes(
    family: Family,
    axes: ParameterAxes,
    counts: Mapping[str, int],
    wanted: Graph,
    trace: Trace,
) -> Attributes | list[Diagnostic]:
    """The integers to set so that the model with smaller parameters computes `wanted`.

    `wanted` is the rewritten program; `trace` traces a model as the original was traced. The
    result has been traced and compared in full. Takes one trace where the likeliest values are
    right, and at most 24 of a small model more otherwise.
    """
    search = _Search(family, by_every_name(family, axes), counts, wanted, trace)
    with quiet():
        model = family.build(family.config)
        slots = list(_slots(search, model))
        chosen = {slot.key: slot.options[0] for slot in slots}
        problems, reads = _try(search, model, slots, chosen)
        if problems:
            found = _searched(search, slots, problems)
            if isinstance(found, list):
                return found
            chosen, reads = found
    return _settled(slots, chosen, reads)


def _slots(search: _Search, model: torch.nn.Module) -> Iterator[_Slot]:
    """Candidates: integers whose value is the size of a part that changes."""
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for path, module in model.named_modules():
        for name, value in _integers(module):
            groups.setdefault((pattern(path), name), {})[path] = value
    for (_, name), members in groups.items():
        slot = _slot(search, name, members)
        if slot is not None:
            yield slot


def _integers(module: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Integer attributes, and integer fields of the config it sees; typed layers keep their own."""
    stated = {
        n
        for kind, names in modeling_prunec.SIZES.items()
        if isinstance(module, kind)
        for n in names
    }
    for name, value in vars(module).items():
        if type(value) is int and not name.startswith("_") and name not in stated:
            yield name, value
    config = None if isinstance(module, PreTrainedModel) else vars(module).get("config")
    for name, value in vars(config).items() if config is not None else ():
        if type(value) is int and not name.startswith("_"):
            yield _CONFIG + name, value


def _slot(search: _Search, name: str, members: Mapping[str, int]) -> _Slot | None:
    """The options of one attribute; every one must be the same part in every layer.

    That rules out a layer's own number: it is 3 only in layer 3.
    """
    near: dict[tuple[str, int, int], list[int]] = {}
    far: dict[tuple[str, int, int], list[int]] = {}
    for path, value in members.items():
        for rule, (new, close) in _rules(search, path, value).items():
            (near if close else far).setdefault(rule, []).append(new)
    old = tuple(members.values())
    complete = [[tuple(v) for v in r.values() if len(v) == len(members)] for r in (near, far)]
    options = dict.fromkeys(itertools.chain(*complete))
    changing = [values for values in options if values != old]
    if not changing:
        return None
    likely = [values for values in complete[0] if values != old]
    stays = name.startswith(_CONFIG) or not likely
    ordered = (old, *changing) if stays else (*likely[:1], old, *changing)
    unique = tuple(dict.fromkeys(ordered))
    return _Slot(tuple(members), name, old, unique, sure=bool(likely) and old not in options)


def _rules(search: _Search, path: str, value: int) -> dict[tuple[str, int, int], tuple[int, bool]]:
    """Parts of the axes below a module that have this size: the new size, and whether they are
    those of the module's own parameters or its children's."""
    found: dict[tuple[str, int, int], tuple[int, bool]] = {}
    clashes = set()
    prefix = path + "." if path else ""
    for parameter, dims in search.axes.items():
        if not parameter.startswith(prefix):
            continue
        rest = parameter.removeprefix(prefix)
        for dim, axis in enumerate(dims):
            for i, part in enumerate(parts(axis)):
                if size(part) != value:
                    continue
                rule = (pattern(rest), dim, i)
                new = (new_size(part, search.counts), rest.count(".") <= 1)
                if found.setdefault(rule, new) != new:
                    clashes.add(rule)
    return {rule: new for rule, new in found.items() if rule not in clashes}


def _try(
    search: _Search,
    model: torch.nn.Module,
    slots: Sequence[_Slot],
    chosen: Values,
    within: tuple[str, ...] = (),
) -> tuple[list[Diagnostic], Reads]:
    """Put values into a freshly built model, trace it and compare; see what it reads meanwhile.

    With `within`, the model has the first layers only and is compared in these modules.
    """
    here = {path for path, _ in model.named_modules()}
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    section = {
        "shapes": {n: s for n, s in search.shapes().items() if n in names},
        "buffers": _cut_buffers(search, model),
        "attributes": {p: v for p, v in _settled(slots, chosen).items() if p in here},
    }
    modeling_prunec.shrink(model, section)
    with spied(model, [(s.modules, s.name) for s in slots]) as reads:
        try:
            found = search.trace(model)
        except Exception as error:  # a model that disagrees with its own sizes raises anything
            return [Diagnostic("P609", f"the model does not run: {first_line(error)}")], reads
    if within:
        return same_program(found, search.wanted, within), reads
    return same_program(search.wanted, found), reads


def _cut_buffers(search: _Search, model: torch.nn.Module) -> dict[str, dict[str, list[int]]]:
    """Which buffers shrink; on the meta device any indices do."""
    shapes = {name: tuple(b.shape) for name, b in model.named_buffers()}
    found: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        dims = search.axes.get(name, ())
        new = [new_size(axis, search.counts) for axis in dims]
        cut = {str(d): list(range(k)) for d, k in enumerate(new) if k != shape[d]}
        found |= {name: cut} if cut else {}
    return found


def _searched(
    search: _Search, slots: Sequence[_Slot], problems: list[Diagnostic]
) -> tuple[Values, Reads] | list[Diagnostic]:
    """Try other values for what the forward pass reads, on as few layers as possible.

    What the first layers accept has to hold for all: these layers may have kept sizes that others
    lost, and then they do not tell two readings of a number apart.
    """
    config, within = _first_layers(search.family)
    build = search.family.build
    with spied(model := build(config), [(s.modules, s.name) for s in slots]) as reads:
        search.trace(model)
    read = [s for s in slots if any((m, s.name) in reads for m in s.modules)]
    others = {s.key: s.options[0] for s in slots if s not in read}
    # Unread attributes do not matter here, and an unread field of the config stays.
    tries = sorted(
        itertools.product(*(range(len(s.options)) for s in read)),
        key=lambda ranks: (sum(r > 0 for r in ranks), sum(ranks)),
    )
    for ranks in itertools.islice(tries, 0 if within else 1, _MAX_TRIES):
        picked = {s.key: s.options[r] for s, r in zip(read, ranks, strict=True)}
        values = others | picked
        problems, reads = _try(search, build(config), slots, values, within)
        if within and not problems:
            problems, reads = _try(search, build(search.family.config), slots, values)
        if not problems:
            return values, reads
    return [_unknown(problems)]


def _first_layers(family: Family, keep: int = 2) -> tuple[Any, tuple[str, ...]]:
    """The config of the first layers and the paths of these layers; the whole one if it must be."""
    config = cut_layers(family.config, range(keep))
    if config is None:
        return family.config, ()
    try:
        model = family.build(config)
    except Exception:  # a config class may want all its layers
        return family.config, ()
    stored = family.shapes.keys() - family.derived
    if {pattern(n) for n in stored} - {pattern(n) for n in shapes(model)}:
        return family.config, ()
    layers = {_layer(path) for path, _ in model.named_modules()} - {""}
    return config, tuple(sorted(layers))


def _layer(path: str) -> str:
    """The path of the layer that a module is in, down to the layer's number."""
    steps = path.split(".")
    numbered = [i for i, step in enumerate(steps) if step.isdigit()]
    return ".".join(steps[: numbered[0] + 1]) if numbered else ""


def _settled(slots: Sequence[_Slot], chosen: Values, reads: Reads | None = None) -> Attributes:
    """Values by module; what is not read and might as well stay is left alone."""
    found: Attributes = {}
    for slot in slots:
        read = reads is None or any((m, slot.name) in reads for m in slot.modules)
        if not read and not slot.sure:
            continue
        for module, old, new in zip(slot.modules, slot.old, chosen[slot.key], strict=True):
            if new != old:
                found.setdefault(module, {})[slot.name] = new
    return found


def _unknown(problems: list[Diagnostic]) -> Diagnostic:
    first = problems[0]
    return Diagnostic(
        "P609",
        "no setting of the modules' integers makes this model compute the pruned program:"
        f" {first.message}",
        where=first.where,
        snippet=first.snippet,
        help="leave this group whole with --groups, or write --format onnx or torchscript",
    )
