"""GGUF: llama.cpp's own converter on a pruned checkpoint of the uniform layout, read back.

A type of fewer bits rounds the weights, and how far that moves the logits is up to the model. So a
file is compared with the checkpoint whose weights were rounded alike, which must agree closely, and
what the rounding does is told for the dense model as well.
"""

from __future__ import annotations

import copy
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from steps import Steps, far, feeds, size
from transformers import AutoModelForCausalLM

SOURCES = "llama-cpp-python==0.3.36"
"""Its source distribution carries llama.cpp, with the converter."""

TYPES = {"f32": Type.F32, "f16": Type.F16, "q8_0": Type.Q8_0}
ALLOWED = 1e-5
"""How far the logits of a file may be from those of weights that were rounded alike."""


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    small = steps.prune("--target", "blocks=80%", "--format", "hf")
    converter = _converter(steps)
    names = ["input_ids", "attention_mask"]
    given = {name: torch.from_numpy(x) for name, x in feeds(names, 2, 24).items()}
    sides = {"pruned": _load(small / "hf"), "dense": _load(steps.model)}
    exact = {side: _logits(module, given) for side, module in sides.items()}
    found = {}
    for name, kind in TYPES.items():
        file = small / f"small-{name}.gguf"
        steps.run("python", converter, small / "hf", "--outfile", file, "--outtype", name)
        read = _logits(_load(small, gguf_file=file.name), given)
        rounded = {
            side: _logits(_rounded(copy.deepcopy(m), kind), given) for side, m in sides.items()
        }
        away = far(read, rounded["pruned"])
        moved = {side: far(rounded[side], exact[side]) for side in sides}
        found[name] = {"bytes": size(file), "from_rounded": away, "rounding_moves": moved}
        if away > ALLOWED:
            raise SystemExit(f"{name}: not the rounded checkpoint: {found[name]}")
    steps.tell(("gguf", "transformers", "torch"), checkpoint=size(small / "hf"), files=found)


def _converter(steps: Steps) -> Path:
    """llama.cpp's script beside the packages that it imports, from the source distribution."""
    command = ("pip", "download", "-q", "--no-deps", "--no-binary", ":all:", SOURCES)
    steps.run(*command, "--no-build-isolation", "-d", "sources")
    (archive,) = (steps.work / "sources").glob("*.tar.gz")
    wanted = re.compile(r"[^/]+/vendor/llama.cpp/(convert_hf_to_gguf.*|conversion/.*|gguf-py/.*)")
    with tarfile.open(archive) as stored:
        members = [m for m in stored.getmembers() if wanted.fullmatch(m.name)]
        stored.extractall(steps.work / "sources", members, filter="data")
    (found,) = (steps.work / "sources").glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
    return found


def _load(folder: Path, **given: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given).eval()


def _rounded(module: Any, kind: Type) -> Any:
    """The module with its matrices rounded as the converter does: rows that blocks do not divide
    become float16, and vectors stay as they are."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    with torch.no_grad():
        for value in module.parameters():
            if value.ndim < 2:
                continue
            to = kind if value.shape[-1] % block == 0 else Type.F16
            packed = gguf.quants.quantize(value.numpy(), to)
            value.copy_(torch.from_numpy(gguf.quants.dequantize(packed, to)))
    return module


def _logits(module: Any, given: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = module(**given).logits.numpy()
    return logits


if __name__ == "__main__":
    main(*sys.argv[1:])
