"""Write a Hugging Face checkpoint: configuration, weights, and the small files that go with them.

Uniform: the stock class loads it. Per layer: `modeling_prunec.py` goes along, named in `auto_map`.
Everything is checked against a model built from the new configuration before a byte is written.
"""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from prunec.backends import modeling_prunec
from prunec.backends.hf_build import builder, first_line, meta, quiet, shapes
from prunec.backends.hf_section import Section, merged
from prunec.backends.safetensors_writer import Entry, write
from prunec.ir.diagnostics import Diagnostic, PrunecError, fail

__all__ = [
    "CODE",
    "auto_map",
    "copy_small_files",
    "emit_per_layer",
    "emit_trained",
    "emit_uniform",
    "first_names",
    "own_class",
]

CODE = Path(modeling_prunec.__file__)
"""The loading code that goes with per-layer checkpoints, byte for byte."""

SMALL_FILES = (
    "LICENSE*",
    "NOTICE*",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template*.jinja",
    "chat_template*.json",
    "generation_config.json",
    "merges*.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece*.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer*.json",
    "tokenizer*.model",
    "vocab*.json",
    "vocab*.txt",
    # sentence-transformers
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_*_config.json",
    "[0-9]_*/config.json",
)
"""What is copied from the original's folder: data that no loader executes."""

_MAX_SHOWN = 5


def emit_uniform(
    folder: Path,
    config: Any,
    entries: Iterable[Entry],
    *,
    architecture: Any,
    source: Path | None = None,
) -> None:
    """Write what `from_pretrained` of the stock class loads.

    `config` is the fitted one, `entries` all tensors of the state dict (tied ones under any of
    their names), `architecture` the transformers class, `source` the original's folder. Raises
    P610 when the tensors are not those of the model that the configuration builds.
    """
    config = _cleaned(config, architecture.__name__)
    with quiet():
        entries = _checked(builder(architecture)(config), list(entries))
    _write(folder, config, entries, source)


def emit_per_layer(
    folder: Path,
    config: Any,
    section: Section,
    entries: Iterable[Entry],
    *,
    architecture: Any,
    source: Path | None = None,
) -> None:
    """Write what `from_pretrained` loads with `trust_remote_code=True`.

    `config` is the original one and `section` says what became smaller (see `hf_section`).
    Raises P610 as `emit_uniform` does.
    """
    stock = architecture.__name__.removeprefix(modeling_prunec.PREFIX)
    config = _cleaned(config, modeling_prunec.PREFIX + stock)
    config.prunec = merged(getattr(config, "prunec", None), section.to_json())
    config.auto_map = auto_map(config, stock)
    with quiet():
        entries = _checked(meta(lambda: own_class(config)(copy.deepcopy(config))), list(entries))
    _write(folder, config, entries, source)
    shutil.copyfile(CODE, folder / CODE.name)


def emit_trained(folder: Path, source: Path, model: Any, entries: Iterable[Entry]) -> None:
    """Write the checkpoint in `source` with other values: its configuration, code and small files
    stay byte for byte. `model` is what they build, on the meta device. Raises P610 as
    `emit_uniform` does."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "model.safetensors", _checked(model, list(entries)), {"format": "pt"})
    for file in ("config.json", *(path.name for path in source.glob("*.py"))):
        shutil.copyfile(source / file, folder / file)
    copy_small_files(source, folder)


def first_names(model: Any) -> dict[str, str]:
    """For each name in the state dict the first name of the same tensor: tied ones share one."""
    first: dict[int, str] = {}
    kept = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in kept.items()}


def own_class(config: Any) -> Any:
    """The class that loads a per-layer checkpoint of prunec's, from the installed code."""
    name = modeling_prunec.PREFIX + config.prunec["architecture"]
    try:
        return getattr(modeling_prunec, name)
    except AttributeError as error:
        raise fail(
            "P611",
            f"transformers {transformers.__version__} has no class for {name}",
            where="config.json",
            help="install the version of transformers that the checkpoint was written with",
        ) from error


def auto_map(config: Any, stock: str) -> dict[str, str]:
    """References for every Auto class that has a stock class for this configuration."""
    found: dict[str, str] = {}
    for name in sorted(n for n in vars(transformers.models.auto.modeling_auto) if "Auto" in n):
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", {})
        if type(config) not in mapping:
            continue
        classes = mapping[type(config)]
        made = classes[0] if isinstance(classes, Sequence) else classes
        found[name] = f"{CODE.stem}.{modeling_prunec.PREFIX}{made.__name__}"
    own = f"{CODE.stem}.{modeling_prunec.PREFIX}{stock}"
    if own not in found.values():
        found["AutoModel"] = own
    return found


def copy_small_files(source: Path, folder: Path) -> list[Path]:
    """Copy tokenizer, generation and processor settings; never code, never pickles."""
    copied = []
    for kind in SMALL_FILES:
        for file in sorted(source.glob(kind)):
            target = folder / file.relative_to(source)
            if not file.is_file() or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            copied.append(target)
    return copied


def _cleaned(config: Any, architecture: str) -> Any:
    """A copy without what only held for the original's files."""
    config = copy.deepcopy(config)
    config.architectures = [architecture]
    for name in ("quantization_config", "_name_or_path", "auto_map"):
        vars(config).pop(name, None)
    return config


def _checked(model: Any, entries: list[Entry]) -> list[Entry]:
    """The entries under the names that the model saves, each tensor once.

    Raises P610 for a tensor that is missing, not asked for, or of another shape.
    """
    name_of = first_names(model)
    wanted = shapes(model)
    found: dict[str, Entry] = {}
    for entry in entries:
        found.setdefault(name_of.get(entry.name, entry.name), entry)
    wrong = list(set(name_of.values()) ^ found.keys())
    wrong += [n for n, e in found.items() if n not in wrong and tuple(e.shape) != wanted[n]]
    if wrong:
        raise PrunecError(_mismatch(n, wanted, found) for n in sorted(wrong)[:_MAX_SHOWN])
    return [Entry(name, e.dtype, e.shape, e.produce) for name, e in found.items()]


def _mismatch(
    name: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Entry]
) -> Diagnostic:
    has = f"shape {list(found[name].shape)}" if name in found else "no such tensor"
    asks = f"shape {list(wanted[name])}" if name in wanted else "none"
    return Diagnostic(
        "P610",
        f"the checkpoint would have {has} where the model asks for {asks}",
        where=name,
        help="prune with --format onnx or torchscript, and report this model",
    )


def _write(folder: Path, config: Any, entries: list[Entry], source: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sizes: Counter[str] = Counter()
    for entry in entries:
        if entry.dtype.kind in "fV":  # ml_dtypes' own types have kind V
            sizes[entry.dtype.name] += entry.nbytes
    if sizes:
        config.dtype = sizes.most_common(1)[0][0]
    write(folder / "model.safetensors", entries, {"format": "pt"})
    try:
        with quiet():
            config.to_json_file(folder / "config.json", use_diff=True)
    except ValueError as error:  # values that JSON cannot hold
        raise fail("P612", first_line(error), where=str(folder / "config.json")) from error
    if source is not None:
        copy_small_files(source, folder)
