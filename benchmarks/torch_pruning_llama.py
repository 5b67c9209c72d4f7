"""Prune the FFN neurons of a Llama by magnitude with Torch-Pruning, in its own way.

    python -P benchmarks/torch_pruning_llama.py MODEL OUT KEPT

Load with transformers in the stored dtype, build its dependency graph from a forward pass, prune
every layer's neurons down to KEPT by group magnitude, update the configuration, save as
safetensors. This follows the project's own example for language models, with everything but the
FFN ignored, so that the same parameters leave as in the command that it is compared with.
Runs in an environment that has torch-pruning; prints one JSON document.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-untyped,import-not-found,unused-ignore]
from transformers import AutoModelForCausalLM


def main(folder: str, out: str, kept: int) -> None:
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.eval()
    model.config.use_cache = False
    seconds["load"] = time.perf_counter() - start

    start = time.perf_counter()
    width = model.config.intermediate_size
    ignored = [model.lm_head, model.model.embed_tokens]
    ignored += [layer.self_attn for layer in model.model.layers]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=torch.arange(8).unsqueeze(0),
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=False,
        # it keeps int(width * (1 - ratio)): half a neuron more, and rounding cannot take one away
        pruning_ratio=1 - (kept + 0.5) / width,
        ignored_layers=ignored,
        root_module_types=[torch.nn.Linear],
    )
    seconds["graph"] = time.perf_counter() - start

    start = time.perf_counter()
    groups = 0
    for group in pruner.step(interactive=True):
        group.prune()
        groups += 1
    widths = sorted({layer.mlp.down_proj.in_features for layer in model.model.layers})
    assert widths == [kept], f"widths {widths} instead of {kept}"
    model.config.intermediate_size = kept
    seconds["prune"] = time.perf_counter() - start

    start = time.perf_counter()
    model.save_pretrained(out)
    seconds["save"] = time.perf_counter() - start
    document = {
        "version": importlib.metadata.version("torch-pruning"),
        "groups": groups,
        "params": sum(p.numel() for p in model.parameters()),
        "parts": {name: round(value, 2) for name, value in seconds.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
