"""The ways in which people turn a Hugging Face model into an ONNX file, one function each.

    python tools/exporters.py ./smollm2 dynamo smollm2.onnx

`dynamo` and `legacy` are torch's two exporters, `transformers` is that of transformers; `-fused`
adds the fusions for ONNX Runtime that transformers or onnxruntime.transformers make; `cache` is the
decoder that reads and gives the keys and values of what came before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

__all__ = ["WAYS", "export"]

OPSET = 17
"""Of the legacy exporter, the newest that it does well."""

BATCH, LENGTH = 2, 13


class First(torch.nn.Module):
    """Token ids and a mask in, the first output out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return result


def _inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % 60
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _torch(model: Any, out: Path, *, dynamo: bool) -> None:
    inputs = _inputs()
    arguments: dict[str, Any] = {"opset_version": OPSET}
    if dynamo:
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        arguments = {"dynamic_shapes": dict.fromkeys(inputs, dims), "external_data": _large(model)}
    else:
        arguments["dynamic_axes"] = {n: {0: "batch", 1: "sequence"} for n in (*inputs, "out")}
    torch.onnx.export(
        First(model), tuple(inputs.values()), str(out), dynamo=dynamo, verbose=False,
        input_names=list(inputs), output_names=["out"], **arguments,
    )  # fmt: skip


def _large(model: Any) -> bool:
    """Whether the weights are too many for one file."""
    return bool(sum(p.numel() * p.element_size() for p in model.parameters()) > 1 << 30)


def _transformers(model: Any, out: Path, *, fusions: str | None = None) -> None:
    exporters = _exporters()
    config = exporters.OnnxConfig(dynamic=True, ort_fusions=fusions)
    found = exporters.OnnxExporter().export(model, _inputs(), config=config)
    exporters.OnnxExporter.save_program(found.program, out)


def _cache(model: Any, out: Path) -> None:
    exporters = _exporters()
    found = exporters.OnnxExporter().export_for_generation(
        model, _inputs(), exporters.OnnxConfig(dynamic=True), multi_token_decode=True
    )
    exporters.OnnxExporter.save_program(found.components["decode"].program, out)


def _exporters() -> Any:
    """The module; its names are made when they are read, which its stubs do not tell."""
    import transformers.exporters

    return transformers.exporters


def _fused(model: Any, out: Path, *, dynamo: bool) -> None:
    """What a plain export becomes by the fusions that ONNX Runtime comes with."""
    from onnxruntime.transformers.optimizer import optimize_model

    plain = out.with_name(f"plain-{out.name}")
    _torch(model, plain, dynamo=dynamo)
    fused = optimize_model(
        str(plain), model_type="gpt2" if model.can_generate() else "bert", opt_level=0,
        num_heads=model.config.num_attention_heads, hidden_size=model.config.hidden_size,
    )  # fmt: skip
    fused.save_model_to_file(str(out), use_external_data_format=_large(model))
    plain.unlink()


WAYS: Mapping[str, Callable[[Any, Path], None]] = {
    "dynamo": partial(_torch, dynamo=True),
    "legacy": partial(_torch, dynamo=False),
    "transformers": _transformers,
    "transformers-fused": partial(_transformers, fusions="cpu"),
    "dynamo-fused": partial(_fused, dynamo=True),
    "legacy-fused": partial(_fused, dynamo=False),
    "cache": _cache,
}


def export(model: Any, way: str, out: Path) -> Path:
    """Write a loaded model to `out`; large weights go to a file beside it."""
    if way != "cache":
        model.config.use_cache = False
    with torch.no_grad():
        WAYS[way](model.eval(), out)
    return out


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a folder or hub id")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(given.model)
    causal = any(name.endswith("CausalLM") for name in config.architectures or ())
    kind = AutoModelForCausalLM if causal else AutoModel
    export(kind.from_pretrained(given.model, dtype=torch.float32), given.way, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
