"""torchao: a pruned checkpoint with its weights in INT8, saved and loaded again by transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from steps import Steps, far, feeds, size
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, TorchAoConfig

ALLOWED = 0.1
"""How far the first output may move."""


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    small = steps.prune("--target", "blocks=80%", "--format", "hf") / "hf"
    names = ["input_ids", "attention_mask"]
    given = {name: torch.from_numpy(x) for name, x in feeds(names, 2, 24).items()}
    wanted = _output(_loaded(small), given)
    quantised = _loaded(small, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    found = _output(quantised, given)
    folder = steps.work / "int8"
    quantised.save_pretrained(folder)
    again = _output(_loaded(folder), given)
    moved = far(found.numpy(), wanted.numpy())
    if not 0 < moved < ALLOWED:
        raise SystemExit(f"outputs move by {moved}")
    if not torch.equal(again, found):
        raise SystemExit("what was loaded again gives other outputs")
    steps.tell(
        ("torchao", "transformers", "torch"), checkpoint=size(small), int8=size(folder), moved=moved
    )


def _loaded(folder: Path, **given: Any) -> Any:
    config = AutoConfig.from_pretrained(folder)
    writes = any(name.endswith("CausalLM") for name in config.architectures or ())
    kind = AutoModelForCausalLM if writes else AutoModel
    return kind.from_pretrained(folder, dtype=torch.float32, **given).eval()


def _output(module: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return module(**given)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
