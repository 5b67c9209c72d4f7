"""What a per-layer checkpoint says about itself: the section `prunec` of its `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.backends.hf_attributes import Attributes, Trace, attributes
from prunec.backends.hf_build import pattern
from prunec.backends.hf_families import ParameterAxes, by_every_name, parts
from prunec.backends.hf_fields import Family, Moved
from prunec.backends.hf_fit import wanted_shapes
from prunec.backends.modeling_prunec import PREFIX, VERSION
from prunec.ir.axes import new_size, size
from prunec.ir.diagnostics import Diagnostic
from prunec.ir.graph import Graph

__all__ = ["Kept", "Section", "merged", "per_layer"]

Kept = Mapping[str, Mapping[int, npt.NDArray[np.int64]]]
"""For each parameter and buffer touched, the kept indices by dimension."""

_RECOMPUTED = ("dynamic", "longrope")


@dataclass(frozen=True)
class Section:
    """Everything that the loading code needs beyond the original configuration.

    `layers` is for readers only: the values of configuration fields in each layer, under the
    names of transformers' `per_layer_config`. It stays inside the section because a
    `per_layer_config` of the configuration itself makes stock code refuse to read these fields.
    """

    architecture: str
    shapes: Mapping[str, list[int]]
    buffers: Mapping[str, dict[str, list[int]]]
    attributes: Attributes
    layers: Mapping[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "architecture": self.architecture,
            "shapes": dict(self.shapes),
            "buffers": dict(self.buffers),
            "attributes": dict(self.attributes),
            "per_layer_config": dict(self.layers),
        }


def per_layer(
    family: Family,
    axes: ParameterAxes,
    counts: Mapping[str, int],
    wanted: Graph,
    trace: Trace,
    kept: Kept | None = None,
) -> Section | list[Diagnostic]:
    """Describe the model with these counts left, or say why its class cannot run it.

    `wanted` is the rewritten program and `trace` traces a model as the original was traced; the
    result has been traced and found to compute `wanted`. `kept` is needed for buffers that no
    checkpoint stores; without it, as before any index is chosen, the first ones are taken.
    """
    new = wanted_shapes(family, axes, counts)
    cut = {n: s for n, s in new.items() if s != family.shapes[n] and family.tied[n] == n}
    recomputed = sorted(cut.keys() & family.derived) if _recomputes(family.config.to_dict()) else []
    if recomputed:
        return [_replaced(recomputed[0])]
    found = attributes(family, axes, counts, wanted, trace)
    if isinstance(found, list):
        return found
    return Section(
        architecture=type(family.build(family.config)).__name__.removeprefix(PREFIX),
        shapes={n: list(s) for n, s in cut.items() if n not in family.derived},
        buffers={
            n: _indices(family.shapes[n], s, (kept or {}).get(n, {}))
            for n, s in cut.items()
            if n in family.derived
        },
        attributes=found,
        layers=_layers(family, axes, counts),
    )


def merged(before: Mapping[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """The section of a model that was pruned before, relative to the same original sizes."""
    if before is None:
        return after
    buffers = dict(before["buffers"])
    for name, dims in after["buffers"].items():
        old = buffers.get(name, {})
        both = {d: [old[d][i] for i in new] if d in old else new for d, new in dims.items()}
        buffers[name] = old | both
    modules = before["attributes"].keys() | after["attributes"].keys()
    layers = before["per_layer_config"].keys() | after["per_layer_config"].keys()
    return after | {
        "architecture": before["architecture"],
        "shapes": before["shapes"] | after["shapes"],
        "buffers": buffers,
        "attributes": {
            m: before["attributes"].get(m, {}) | after["attributes"].get(m, {})
            for m in sorted(modules)
        },
        "per_layer_config": {
            i: before["per_layer_config"].get(i, {}) | after["per_layer_config"].get(i, {})
            for i in sorted(layers, key=int)
        },
    }


def _recomputes(data: object) -> bool:
    """Whether the model computes its rotary frequencies anew for long inputs, which no trace of
    a short one shows."""
    if not isinstance(data, dict):
        return False
    return data.get("rope_type") in _RECOMPUTED or any(map(_recomputes, data.values()))


def _replaced(name: str) -> Diagnostic:
    return Diagnostic(
        "P613",
        "the model computes its rotary frequencies anew for long inputs: removed ones come back",
        where=name,
        help="leave head_dim whole with --groups, or write --format onnx or torchscript",
    )


def _indices(
    old: tuple[int, ...], new: tuple[int, ...], kept: Mapping[int, npt.NDArray[np.int64]]
) -> dict[str, list[int]]:
    return {
        str(dim): [int(i) for i in kept.get(dim, np.arange(k))]
        for dim, (k, n) in enumerate(zip(new, old, strict=True))
        if k != n
    }


def _layers(
    family: Family, axes: ParameterAxes, counts: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """By layer, the fields whose value all dimensions they make agree upon."""
    found: dict[str, dict[str, int]] = {}
    complete = by_every_name(family, axes)
    for name, moved in family.fields.fields.items():
        for layer, values in _values_by_layer(family, complete, counts, moved).items():
            if len(values) == 1 and (value := next(iter(values))) != moved.value:
                found.setdefault(layer, {})[name] = value
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _values_by_layer(
    family: Family, axes: ParameterAxes, counts: Mapping[str, int], moved: Moved
) -> dict[str, set[int]]:
    """New values of a field that explain all dimensions it makes in a layer, by layer number."""
    kinds = {(pattern(n), family.fields.shapes[n], dim) for n, dim in moved.places}
    found: dict[str, set[int]] = {}
    for name, dims in axes.items():
        layer = re.search(r"(?:^|\.)(\d+)\.", name)
        for dim, axis in enumerate(dims):
            if layer is None or (pattern(name), family.shapes[name], dim) not in kinds:
                continue
            sizes = {new_size(p, counts) for p in parts(axis) if size(p) == moved.value}
            found[layer[1]] = found.get(layer[1], sizes) & sizes
    return found
