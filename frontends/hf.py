"""Hugging Face models: their configuration, their class, and modules without or with weights."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt
import torch
import transformers
from accelerate import init_empty_weights
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prunec.frontends.quiet import quiet
from prunec.frontends.source import CONFIG, Source
from prunec.frontends.tensors import to_numpy
from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["build_meta", "load_config", "load_model", "model_class", "place", "real_buffers"]

# Asked in this order when a configuration names no architecture: the most specific language
# model first, then heads by task, at last the bare model.
BY_TASK = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForImageClassification",
    "AutoModelForSemanticSegmentation",
    "AutoModelForObjectDetection",
    "AutoModelForAudioClassification",
    "AutoModel",
)
SHOWN = 5
MOST_MODULES = 50_000
"""A model of 671 billion parameters has 1,215, its experts being one parameter of a layer; so many
as this take some seconds."""

quiet()


def load_config(source: Source, trust_remote_code: bool | None = None) -> PreTrainedConfig:
    """The configuration of a source.

    Raises P110 (none, or not JSON), P111 (unknown kind of model), P112 (its fields do not
    fit together), P113 (it needs code of its own, which was not allowed to run).
    """
    trust = source.trust_remote_code if trust_remote_code is None else trust_remote_code
    path = source.config_path
    if path is None:
        remedy = "give a folder with config.json"
        raise fail("P110", f"{source.name} has no configuration", help=remedy)
    fields = _fields(path)
    _check_kind(fields, path, trust)
    try:
        config = AutoConfig.from_pretrained(_home(path), trust_remote_code=trust)
    # Every configuration class validates in its own way, with exceptions of any type.
    except Exception as error:
        raise _bad_config(path, error) from error
    return cast(PreTrainedConfig, config)


def _home(path: Path) -> Path:
    """transformers resolves custom code beside the config only when given the folder."""
    return path.parent if path.name == CONFIG else path


def _fields(path: Path) -> dict[str, Any]:
    remedy = "fetch or write the file again"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        message = f"the configuration is not JSON: {error}"
        raise fail("P110", message, where=str(path), help=remedy) from error
    except OSError as error:
        message = f"the configuration cannot be read: {error.strerror}"
        raise fail("P110", message, where=str(path), help=remedy) from error
    if not isinstance(fields, dict):
        message = "the configuration is not a JSON object"
        raise fail("P110", message, where=str(path), help=remedy)
    return fields


def _check_kind(fields: dict[str, Any], path: Path, trust: bool) -> None:
    kind = fields.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if "auto_map" in fields:
        if trust:
            return
        raise _needs_code(str(path))
    if not isinstance(kind, str) or not kind:
        message = "the configuration names no model_type"
        remedy = "add model_type, as `save_pretrained` of transformers writes it"
        raise fail("P111", message, where=str(path), help=remedy)
    near = difflib.get_close_matches(kind, list(CONFIG_MAPPING), n=3)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    raise fail(
        "P111",
        f"transformers {transformers.__version__} knows no model_type {kind!r}",
        where=str(path),
        help=f"{guess}A model newer than this transformers needs a newer one",
    )


def _needs_code(where: str) -> PrunecError:
    return fail(
        "P113",
        "the model brings python code of its own, which would run on this machine",
        where=where,
        help="read the code, then allow it with --trust-remote-code",
    )


def _bad_config(path: Path | str, error: Exception) -> PrunecError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    return fail(
        "P112",
        f"transformers cannot build a model from the configuration: {text}",
        where=str(path),
        help="correct the field named above, or install what it asks for",
    )


def place(config: PreTrainedConfig) -> str:
    """Where a configuration was read from."""
    return config.name_or_path or ""


def model_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that `architectures` names, or the fitting Auto class's choice without one.

    Raises P111 when transformers has no such class, P113 when it would be remote code.
    """
    names = _architectures(config)
    auto_map: Any = getattr(config, "auto_map", None)
    references = auto_map.items() if isinstance(auto_map, dict) else ()
    custom = {str(ref).rsplit(".", 1)[-1]: ref for key, ref in references if "Model" in key}
    for name in names:
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return _fitting(found, config)
        if name in custom:
            return _remote_class(config, custom[name], trust_remote_code)
    if names:
        message = f"transformers {transformers.__version__} has no architecture {names[0]!r}"
        remedy = "correct `architectures` in config.json, or install a newer transformers"
        raise fail("P111", message, where=place(config), help=remedy)
    return _class_by_task(config)


def _architectures(config: PreTrainedConfig) -> list[str]:
    named: Any = config.architectures or []
    names = [named] if isinstance(named, str) else named
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return list(names)
    raise fail(
        "P112",
        "`architectures` is not a list of class names",
        where=place(config),
        help="correct `architectures` in config.json",
    )


def _fitting(found: type[PreTrainedModel], config: PreTrainedConfig) -> type[PreTrainedModel]:
    if found.config_class is None or isinstance(config, found.config_class):
        return found
    raise fail(
        "P111",
        f"architecture {found.__name__} takes a {found.config_class.__name__},"
        f" but model_type {config.model_type!r} makes a {type(config).__name__}",
        where=place(config),
        help="correct `architectures` or `model_type` in config.json",
    )


def _remote_class(config: PreTrainedConfig, ref: str, trust: bool) -> type[PreTrainedModel]:
    if not trust:
        raise _needs_code(place(config))
    try:
        found = get_class_from_dynamic_module(ref, place(config))
    except Exception as error:  # whatever foreign code raises
        raise _bad_config(place(config), error) from error
    return cast(type[PreTrainedModel], found)


def _class_by_task(config: PreTrainedConfig) -> type[PreTrainedModel]:
    for auto in BY_TASK:
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) not in mapping:
            continue
        found = mapping[type(config)]
        return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)
    message = f"transformers has no model class for {type(config).__name__}"
    remedy = "name the class in `architectures` of config.json"
    raise fail("P111", message, where=place(config), help=remedy)


def build_meta(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in evaluation mode with parameters and buffers on the meta device: no memory.

    Attention is the fused one where the class has it, else eager. Raises P111 to P113.
    """
    made: Any = model_class(config, trust_remote_code)
    try:
        with torch.device("meta"), _limited():
            model = made._from_config(copy.deepcopy(config), dtype=dtype)
    except Exception as error:  # constructors raise anything on inconsistent fields
        raise _bad_config(place(config), error) from error
    return cast(PreTrainedModel, model.eval())


@contextmanager
def _limited() -> Iterator[None]:
    """Within the block a constructor that goes on and on is stopped: a damaged configuration may
    ask for a billion layers."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > MOST_MODULES:
            raise ValueError(f"it asks for more than {MOST_MODULES:,} modules")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def real_buffers(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> dict[str, npt.NDArray[Any]]:
    """Values of all buffers at construction, non-persistent ones such as `inv_freq` included."""
    made: Any = model_class(config, trust_remote_code)
    try:
        with no_init_weights(), init_empty_weights(include_buffers=False), _limited():
            model = made._from_config(copy.deepcopy(config), dtype=dtype)
    except Exception as error:  # as in build_meta
        raise _bad_config(place(config), error) from error
    named = model.named_buffers(remove_duplicate=False)
    return {name: to_numpy(buffer) for name, buffer in named}


def load_model(
    source: Source,
    config: PreTrainedConfig | None = None,
    *,
    dtype: torch.dtype | str = torch.float32,
) -> PreTrainedModel:
    """The model with its weights, in evaluation mode on the CPU, to generate or evaluate with.

    `dtype="auto"` keeps the stored one. Raises P120 when the file does not hold all parameters
    and P112 when transformers cannot load it at all.
    """
    source.require_weights()
    config = load_config(source) if config is None else config
    made: Any = model_class(config, source.trust_remote_code)
    try:
        model, info = made.from_pretrained(
            source.folder,
            config=copy.deepcopy(config),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # as in build_meta
        raise _bad_config(source.folder, error) from error
    if missing := sorted(info["missing_keys"]):
        raise fail(
            "P120",
            f"the checkpoint lacks {len(missing)} parameters: {', '.join(missing[:SHOWN])}",
            where=str(source.folder),
            help=f"the configuration names {made.__name__}: correct it, or complete the weights",
        )
    return cast(PreTrainedModel, model.eval())
