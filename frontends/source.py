"""What MODEL means: a folder, a hub id, a `.gguf` file, a bare `config.json`, an `.onnx` file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prunec.frontends.weights import INDEX, SINGLE, WeightStore
from prunec.ir.diagnostics import PrunecError, fail

__all__ = ["CONFIG", "Source", "resolve"]

Kind = Literal["hf", "gguf", "config", "onnx", "module"]
"""`hf` and `gguf` have a folder with config and weights (for `gguf` the converted copy);
`config` has no weights; `onnx` has no config; `module` is in memory and has no files."""

CONFIG = "config.json"
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
IMAGES = ("preprocessor_config.json", "processor_config.json")
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Where a model is. `name` is what the user called it; `path` the folder or file to read.

    `weights` is None when the model has none to read (`config`, `onnx`, or nobody needed them).
    """

    kind: Kind
    name: str
    path: Path
    config_path: Path | None
    weights: WeightStore | None
    tokenizer: bool = False
    image_processor: bool = False
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path:
        """The folder of the model's files."""
        return self.path if self.path.is_dir() else self.path.parent

    def require_weights(self) -> WeightStore:
        """The weights, or P101 when the source has none."""
        if self.weights is None:
            raise fail(
                "P101",
                f"{self.name} has no weights",
                where=str(self.path),
                help="give a folder with config.json and safetensors, or a .gguf file",
            )
        return self.weights


def resolve(model: str, *, need_weights: bool = True, trust_remote_code: bool = False) -> Source:
    """Find MODEL and open its weights lazily.

    With `need_weights=False` no weights are opened, and a folder without any, or a bare config
    file, is a source of kind `config`. Raises P100 (nothing there), P101 to P105 (see
    `weights`), P110 (no config), P115 (hub), P116 (GGUF).
    """
    path = Path(model).expanduser()
    # os.path: of a name that is too long for any disk pathlib raises
    if os.path.isdir(path):
        return _folder(model, path, "hf", need_weights, trust_remote_code)
    if os.path.isfile(path):
        return _file(model, path, need_weights, trust_remote_code)
    if _looks_local(model, path):
        raise fail(
            "P100",
            "no such file or folder",
            where=model,
            help="give a folder with config.json and safetensors, a hub id such as"
            " owner/name, a .gguf or an .onnx file",
        )
    from prunec.frontends.hub import snapshot

    folder = snapshot(model, weights=need_weights, code=trust_remote_code)
    return _folder(model, folder, "hf", need_weights, trust_remote_code)


def _looks_local(model: str, path: Path) -> bool:
    """A hub id is one or two plain words; all else must be a path."""
    if not HUB_ID.fullmatch(model) or path.suffix in {".gguf", ".onnx", ".json", ".safetensors"}:
        return True
    return "/" in model and os.path.isdir(path.parent)


def _file(model: str, path: Path, need_weights: bool, trust: bool) -> Source:
    match path.suffix.lower():
        case ".onnx":
            beside = any((path.parent / name).is_file() for name in TOKENIZERS)
            return Source("onnx", model, path, None, None, tokenizer=beside)
        case ".gguf":
            return _gguf(model, path, need_weights, trust)
        case ".json" if need_weights:
            raise fail(
                "P101",
                "a configuration alone has no weights",
                where=model,
                help="give the folder that holds the weights too; `prunec inspect` works without",
            )
        case ".json":
            return Source("config", model, path, path, None, trust_remote_code=trust)
        case ".safetensors":
            raise fail(
                "P110",
                "weights alone do not say what the model is",
                where=model,
                help=f"give the folder that holds {CONFIG} beside the weights",
            )
        case ".bin" | ".pt" | ".pth" | ".ckpt" | ".pkl":
            raise fail(
                "P102",
                f"{path.name} is a pickle checkpoint, which can run code when it is opened",
                where=model,
                help="convert it to safetensors where you trust it, and give the folder",
            )
        case suffix:
            raise fail(
                "P100",
                f"files of type {suffix or '(none)'} are no models",
                where=model,
                help="give a folder, a hub id, a .gguf, an .onnx file, or config.json to inspect",
            )


def _gguf(model: str, path: Path, need_weights: bool, trust: bool) -> Source:
    from prunec.frontends.gguf import converted

    return _folder(model, converted(path), "gguf", need_weights, trust)


def _folder(model: str, folder: Path, kind: Kind, need_weights: bool, trust: bool) -> Source:
    config = folder / CONFIG
    if not config.is_file():
        raise _no_config(folder)
    has_weights = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return Source(
        kind if need_weights or has_weights else "config",
        model,
        folder,
        config,
        # Not opened unasked: whoever needs none need not have them whole.
        WeightStore(folder) if need_weights else None,
        tokenizer=any((folder / name).is_file() for name in TOKENIZERS),
        image_processor=any((folder / name).is_file() for name in IMAGES),
        trust_remote_code=trust,
    )


def _no_config(folder: Path) -> PrunecError:
    """What to give instead of a folder without config.json."""
    inner = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
    files = sorted(p.name for pattern in ("*.gguf", "*.onnx") for p in folder.glob(pattern))
    remedy = f"give a folder that holds {CONFIG} and safetensors"
    if inner:
        remedy = f"did you mean {folder / inner[0]}?"
    elif files:
        remedy = f"did you mean {folder / files[0]}?"
    return fail("P110", f"no {CONFIG} in the folder", where=str(folder), help=remedy)
