"""Build transformers models on the meta device from a config, whole or cut down to few layers."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from prunec.ir.diagnostics import PrunecError, fail

__all__ = [
    "Build",
    "Shapes",
    "builder",
    "changed",
    "cut_layers",
    "few_layers",
    "first_line",
    "meta",
    "model_class",
    "pattern",
    "quiet",
    "shapes",
]

Build = Callable[[Any], torch.nn.Module]
"""From a config to a model whose parameters are on the meta device."""

Shapes = dict[str, tuple[int, ...]]
"""Shape of each parameter and buffer by every name it has, tied names included."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch and transformers say about models that are tried and thrown away."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def model_class(config: Any, fallback: str | None = None) -> Any:
    """The transformers class that `config.architectures` names, or else the class `fallback`."""
    names = [*(getattr(config, "architectures", None) or []), *([fallback] if fallback else [])]
    for name in names:
        found = getattr(transformers, name.removeprefix("Pruned"), None)
        if found is not None:
            return found
    raise fail(
        "P601",
        f"no transformers class is named by architectures={names} in the config",
        where="config.json",
        help="add the class name of the model to `architectures` in config.json",
    )


def meta(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Run a model's constructor with all its tensors on the meta device, without a word."""
    with quiet(), torch.device("meta"):
        return make()


def builder(architecture: Any) -> Build:
    """How to build `architecture` (a transformers class) on the meta device from a config.

    In float32, as programs are traced, whatever dtype the config names for what is stored.
    """

    def build(config: Any) -> torch.nn.Module:
        own = copy.deepcopy(config)
        return meta(lambda: architecture._from_config(own, dtype=torch.float32))

    return build


def shapes(model: torch.nn.Module) -> Shapes:
    """Shape of every parameter and buffer, under each of its names."""
    found = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    buffers = model.named_buffers(remove_duplicate=False)
    return found | {name: tuple(b.shape) for name, b in buffers}


def pattern(name: str) -> str:
    """A parameter's name with its layer and expert numbers replaced by `*`."""
    return _NUMBER.sub("*", name)


def first_line(error: BaseException) -> str:
    """What an exception says, on one line and with no more than 200 characters."""
    text = error.diagnostics[0].message if isinstance(error, PrunecError) else str(error)
    return re.sub(r"\s+", " ", text.strip())[:200] or type(error).__name__


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """The config with fields set; `a.b` reaches into sub-config `a`, `a[2]` into a list.

    Raises whatever the config class raises when it refuses the values.
    """
    data = config.to_dict()
    for path, value in changes.items():
        *outer, last = re.findall(r"[^.\[\]]+", path)
        place = data
        for key in outer:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = value
    with quiet():
        result = type(config).from_dict(data)
    result._attn_implementation = config._attn_implementation
    return result


def few_layers(config: Any, build: Build, full: Shapes) -> Any:
    """The config cut to two layers, or one of each kind, or uncut when that loses something.

    Every parameter of the whole model must have a like one (same name but for the layer's
    number, same shape) in the small model, so that what is found there holds for the whole.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return config
    per_layer = _per_layer(config, layers).values()
    kinds = {repr([values[i] for values in per_layer]): i for i in reversed(range(layers))}
    small = cut_layers(config, sorted(kinds.values()) if len(kinds) > 1 else range(2))
    try:
        found = {} if small is None else shapes(build(small))
    except Exception:  # whatever a model class raises, the whole model still serves
        return config
    wanted = {(pattern(name), shape) for name, shape in full.items()}
    return small if wanted == {(pattern(n), s) for n, s in found.items()} else config


def cut_layers(config: Any, keep: Sequence[int]) -> Any | None:
    """The config with only these layers; None when there are no more or the config refuses."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or len(keep) >= layers:
        return None
    field = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    lists = {name: [v[i] for i in keep] for name, v in _per_layer(config, layers).items()}
    try:
        return changed(config, {field: len(keep), **lists})
    except Exception:  # config classes refuse with exceptions of any type
        return None


def _per_layer(config: Any, layers: int) -> dict[str, list[Any]]:
    """Fields that have one value for each layer."""
    data = config.to_dict().items()
    return {name: v for name, v in data if isinstance(v, list) and len(v) == layers}
