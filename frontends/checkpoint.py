"""Which stored tensor is which parameter of the model.

transformers renames what it loads: prefixes of base models come and go, old names such as
LayerNorm's gamma are modernised, and some families change tensors on the way (experts stored
one by one become one fused tensor). Names follow transformers' own tables, so a checkpoint
means here what it means there. Where tensors themselves change, transformers loads the model
into memory and the result is the store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from prunec.frontends.hf import load_model, place
from prunec.frontends.source import Source
from prunec.frontends.tensors import to_numpy
from prunec.frontends.weights import ArrayStore, RenamedStore, Weights
from prunec.ir.diagnostics import Diagnostic, PrunecError, fail

__all__ = [
    "CheckpointMap",
    "checkpoint_map",
    "load_through_transformers",
    "map_checkpoint_names",
    "open_parameters",
]

SHOWN = 5


@dataclass(frozen=True)
class CheckpointMap:
    """`names`: model name -> stored name, for every parameter and stored buffer, tied names too.

    `unused`: stored tensors the model has no place for. `converted`: parameters that are no
    stored tensor but computed from some, by transformers' conversions.
    """

    names: dict[str, str]
    unused: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()


@dataclass
class _Findings:
    names: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, str] = field(default_factory=dict)
    converted: set[str] = field(default_factory=set)


def map_checkpoint_names(model: PreTrainedModel, store: Weights) -> dict[str, str]:
    """Model name -> stored name; P123 when the stored tensors are not one to one parameters."""
    found = checkpoint_map(model, store)
    if not found.converted:
        return found.names
    raise fail(
        "P123",
        f"{len(found.converted)} parameters are stored in another form than the model holds"
        f" them: {_some(found.converted)}",
        help="load the model once with transformers and save it again, or use a smaller one",
    )


def checkpoint_map(model: PreTrainedModel, store: Weights) -> CheckpointMap:
    """Match a store with a model (which may be on the meta device).

    Raises P120 (missing parameters), P121 (the file has more layers than the configuration),
    P122 (shapes differ), P124 (tied in the configuration, different in the file), all found
    problems together.
    """
    _refuse_quantized(model)
    found = _match(model, store)
    missing, unexpected = _adjust(model, found)
    problems = [*_tie(model, store, found, missing)]
    if found.converted:
        # What a conversion makes of several tensors is known only once it has run.
        return CheckpointMap(found.names, (), tuple(sorted(found.converted)))
    problems += _missing(model, missing)
    problems += _more_layers(model, unexpected)
    problems += _shapes(model, store, found.names)
    if problems:
        raise PrunecError(problems)
    return CheckpointMap(found.names, tuple(sorted(unexpected)))


def open_parameters(model: PreTrainedModel, source: Source) -> Weights:
    """The parameters and stored buffers of a source under the names of the model.

    Lazy views of the file whenever stored tensors are parameters; in memory otherwise.
    """
    store = source.require_weights()
    found = checkpoint_map(model, store)
    if found.converted:
        return load_through_transformers(source)
    return RenamedStore(store, found.names)


def load_through_transformers(source: Source) -> ArrayStore:
    """All parameters in memory in their stored dtype, as transformers converts them on loading."""
    model = load_model(source, dtype="auto")
    return ArrayStore({name: to_numpy(tensor) for name, tensor in model.state_dict().items()})


def _refuse_quantized(model: PreTrainedModel) -> None:
    if getattr(model.config, "quantization_config", None) is None:
        return
    raise fail(
        "P125",
        "the checkpoint is quantized: its stored tensors are codes and scales, not weights",
        where=place(model.config),
        help="prune the original checkpoint and quantize the result",
    )


def _match(model: PreTrainedModel, store: Weights) -> _Findings:
    """Follow transformers' renaming of every stored name."""
    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    prefix = model.base_model_prefix
    found = _Findings()
    for stored in sorted(store, key=dot_natural_key):
        name, conversion = rename_source_key(stored, renamings, converters, prefix, state)
        if name not in state and stored in state:
            name, conversion = rename_source_key(stored, [], [], prefix, state)
        if name not in state:
            found.unexpected[name] = stored
        elif conversion is not None:
            found.converted.add(name)
        else:
            found.names[name] = stored
    return found


def _adjust(model: PreTrainedModel, found: _Findings) -> tuple[set[str], set[str]]:
    """Missing and unexpected names, but for those that the model's class says to ignore."""
    known = found.names.keys() | found.converted
    info = LoadStateDictInfo(
        missing_keys={name for name, _ in model.named_parameters(remove_duplicate=False)} - known,
        unexpected_keys=set(found.unexpected),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    unfiltered = set(info.missing_keys)
    model._adjust_missing_and_unexpected_keys(info)
    # Parameters that the class computes itself: transformers must make their values.
    found.converted |= unfiltered - info.missing_keys - set(model.all_tied_weights_keys)
    return info.missing_keys, {found.unexpected[name] for name in info.unexpected_keys}


def _tie(
    model: PreTrainedModel, store: Weights, found: _Findings, missing: set[str]
) -> Iterable[Diagnostic]:
    """Give tied names that are not stored the tensor of the name that is."""
    names = dict(model.named_parameters(remove_duplicate=False))
    groups: dict[int, list[str]] = {}
    for name, parameter in names.items():
        groups.setdefault(id(parameter), []).append(name)
    for group in groups.values():
        stored = [name for name in group if name in found.names]
        if len(group) == 1 or not stored:
            continue
        first = found.names[stored[0]]
        for other in stored[1:]:
            if not _same(store, first, found.names[other]):
                yield _untied(model, stored[0], other)
        for name in group:
            found.names[name] = first
        missing -= set(group)


def _same(store: Weights, one: str, other: str) -> bool:
    return one == other or np.array_equal(store[one], store[other])


def _untied(model: PreTrainedModel, one: str, other: str) -> Diagnostic:
    return Diagnostic(
        "P124",
        f"the configuration ties {one} and {other}, but their stored values differ",
        place(model.config),
        help="set tie_word_embeddings to false in config.json",
    )


def _missing(model: PreTrainedModel, missing: set[str]) -> Iterable[Diagnostic]:
    if missing:
        yield Diagnostic(
            "P120",
            f"the checkpoint lacks {len(missing)} parameters: {_some(missing)}",
            place(model.config),
            help=f"the configuration names {type(model).__name__}: correct it,"
            " or complete the weights",
        )


def _more_layers(model: PreTrainedModel, unexpected: set[str]) -> Iterable[Diagnostic]:
    """Unknown tensors are unused heads, unless only their number is unknown to the model."""
    patterns = {_unnumbered(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = model.base_model_prefix + "."
    extra = [
        name
        for name in unexpected
        if re.search(r"\d", name)
        and {_unnumbered(n) for n in (name, prefix + name, name.removeprefix(prefix))} & patterns
    ]
    if extra:
        yield Diagnostic(
            "P121",
            f"the configuration has fewer layers than the checkpoint, which also has"
            f" {len(extra)} tensors such as {_some(extra)}",
            place(model.config),
            help="correct the number of layers in config.json",
        )


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _shapes(model: PreTrainedModel, store: Weights, names: dict[str, str]) -> Iterable[Diagnostic]:
    state = model.state_dict()
    wrong = [n for n, stored in names.items() if tuple(state[n].shape) != store.shape(stored)]
    for name in wrong[:SHOWN]:
        shape, held = list(state[name].shape), list(store.shape(names[name]))
        yield Diagnostic(
            "P122",
            f"{name} is {held} in the checkpoint and {shape} by the configuration"
            + (f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""),
            place(model.config),
            help="config.json belongs to another checkpoint, or was edited: correct it",
        )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names, key=dot_natural_key)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
