"""Find which config field makes which parameter dimension, by rebuilding with one field changed.

There is no table of models: each integer of the config is set to another value in turn, the
model is rebuilt on the meta device, and the dimensions that moved belong to that field.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from prunec.backends.hf_build import Build, Shapes, changed, few_layers, first_line, quiet, shapes

__all__ = ["Discovery", "Family", "Moved", "Place", "config_fields", "discover", "moved_places"]

Place = tuple[str, int]
"""A parameter's name and one of its dimensions."""

_PROBES_FOR_EMPTY = (24, 60)


@dataclass(frozen=True)
class Moved:
    """The dimensions that a config field makes, and the value it has now."""

    value: int
    places: frozenset[Place]


@dataclass(frozen=True)
class Discovery:
    """What `discover` found.

    `config` has those fields filled that were empty and stood for a size; it builds the same
    model. `fields` has the dimensions each field makes, `refused` the reason why a field could
    not be set to another value.
    """

    config: Any
    shapes: Shapes
    fields: Mapping[str, Moved]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """A config, how to build a model from it, and what is found out about the two on demand."""

    config: Any
    build: Build

    @cached_property
    def shapes(self) -> Shapes:
        return shapes(self._model)

    @cached_property
    def small(self) -> Any:
        """The config with as few layers as hold every kind of layer."""
        with quiet():
            return few_layers(self.config, self.build, self.shapes)

    @cached_property
    def fields(self) -> Discovery:
        """What makes the dimensions of the small model."""
        return discover(self.small, self.build)

    @cached_property
    def derived(self) -> frozenset[str]:
        """Buffers that no checkpoint stores: they follow from the config."""
        return frozenset(self.shapes.keys() - self._model.state_dict().keys())

    @cached_property
    def tied(self) -> dict[str, str]:
        """The first name of every parameter and buffer, by each of its names."""
        first: dict[int, str] = {}
        named = [
            *self._model.named_parameters(remove_duplicate=False),
            *self._model.named_buffers(remove_duplicate=False),
        ]
        return {name: first.setdefault(id(tensor), name) for name, tensor in named}

    @cached_property
    def _model(self) -> torch.nn.Module:
        with quiet():
            return self.build(self.config)


def discover(config: Any, build: Build) -> Discovery:
    """Rebuild with each integer field changed and see which parameter dimensions move.

    Empty fields that stand for a size (`n_inner` of four times the hidden size) are filled
    first, so that they no longer move with another field. A field whose change adds or removes
    parameters, as a number of layers does, makes no dimension.
    """
    with quiet():
        dense = shapes(build(config))
        empty = [path for path, value in config_fields(config.to_dict()) if value is None]
        for path in dict.fromkeys([*empty, *_asked_for(config, build)]):
            config = _filled(config, build, dense, path)
        found: dict[str, Moved] = {}
        refused: dict[str, str] = {}
        for path, value in config_fields(config.to_dict()):
            if value is None:
                continue
            places, reason = _probe(config, build, dense, path, value)
            if places:
                found[path] = Moved(value, places)
            if reason:
                refused[path] = reason
    return Discovery(config, dense, found, refused)


def moved_places(before: Shapes, after: Shapes) -> frozenset[Place] | None:
    """The dimensions whose size differs; None when the parameters are not the same ones."""
    if before.keys() != after.keys():
        return None
    if any(len(before[name]) != len(after[name]) for name in before):
        return None
    return frozenset(
        (name, dim)
        for name, shape in before.items()
        for dim, size in enumerate(shape)
        if after[name][dim] != size
    )


def config_fields(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Paths of all integer and all empty fields, those of sub-configs and of lists too."""
    for name, value in data.items():
        path = prefix + name
        match value:
            case bool():
                continue
            case int() | None:
                yield path, value
            case dict() if "model_type" in value:
                yield from config_fields(value, path + ".")
            case list() if value and all(type(item) is int for item in value):
                yield from ((f"{path}[{i}]", item) for i, item in enumerate(value))
            case _:
                continue


def _asked_for(config: Any, build: Build) -> list[str]:
    """Fields that the model looks for in vain: some families take `head_dim` if it is there."""
    asked: dict[str, None] = {}

    def missing(self: Any, name: str) -> Any:
        if not name.startswith("_"):
            asked[name] = None
        raise AttributeError(f"{type(self).__name__} has no {name}")

    kind = type(config)
    asking = copy.copy(config)
    try:
        asking.__class__ = type(kind.__name__, (kind,), {"__getattr__": missing})
        build(asking)
    except Exception:  # a family that takes no subclass of its config just asks for nothing
        return []
    return list(asked)


def _probe(
    config: Any, build: Build, dense: Shapes, path: str, value: int
) -> tuple[frozenset[Place] | None, str]:
    """Try other values for one field until some dimension moves; the first refusal beside it."""
    refusal = ""
    for attempt in dict.fromkeys((value + 1, 2 * value, 3 * value, value // 2, value // 3, 1)):
        if attempt < 1 or attempt == value:
            continue
        places, reason = _places(config, build, dense, path, attempt)
        refusal = refusal or reason
        if places:
            return places, refusal
    return None, refusal


def _filled(config: Any, build: Build, dense: Shapes, path: str) -> Any:
    """The config with one empty field set to the value it stands for, if it stands for a size."""
    for attempt in _PROBES_FOR_EMPTY:
        try:
            after = shapes(build(changed(config, {path: attempt})))
        except Exception:  # config classes raise anything; an empty field may just not be a size
            continue
        places = moved_places(dense, after)
        if not places:
            continue
        implied = {dense[n][d] * attempt / after[n][d] for n, d in places if after[n][d]}
        if len(implied) != 1 or not (value := implied.pop()).is_integer():
            return config
        same, _ = _places(config, build, dense, path, int(value))
        return changed(config, {path: int(value)}) if same == frozenset() else config
    return config


def _places(
    config: Any, build: Build, dense: Shapes, path: str, value: int
) -> tuple[frozenset[Place] | None, str]:
    """The dimensions that move under one new value, and the reason if the value was refused."""
    try:
        after = shapes(build(changed(config, {path: value})))
    except Exception as error:  # a refusal has no common type among config and model classes
        return None, first_line(error)
    return moved_places(dense, after), ""
