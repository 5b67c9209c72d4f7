"""GGUF: llama.cpp's own converter on a pruned checkpoint of the uniform layout, read back."""

from __future__ import annotations

import re
import sys
import tarfile
from pathlib import Path

import torch
from steps import Steps, far, feeds, size
from transformers import AutoModelForCausalLM

SOURCES = "llama-cpp-python==0.3.36"
"""Its source distribution carries llama.cpp, with the converter."""

TYPES = {"f32": 1e-5, "f16": 1e-2, "q8_0": 1e-1}
"""How far logits may move."""


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    small = steps.prune("--target", "blocks=80%", "--format", "hf")
    converter = _converter(steps)
    names = ["input_ids", "attention_mask"]
    given = {name: torch.from_numpy(x) for name, x in feeds(names, 2, 24).items()}
    wanted = _logits(small / "hf", None, given)
    found = {}
    for name, allowed in TYPES.items():
        file = small / f"small-{name}.gguf"
        steps.run("python", converter, small / "hf", "--outfile", file, "--outtype", name)
        moved = far(_logits(small, file.name, given).numpy(), wanted.numpy())
        if moved > allowed:
            raise SystemExit(f"{name}: logits move by {moved}")
        found[name] = {"bytes": size(file), "moved": moved}
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


def _logits(folder: Path, file: str | None, given: dict[str, torch.Tensor]) -> torch.Tensor:
    more = {} if file is None else {"gguf_file": file}
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).eval()
    with torch.inference_mode():
        return module(**given).logits


if __name__ == "__main__":
    main(*sys.argv[1:])
