"""OpenVINO: convert the pruned ONNX file and the pruned checkpoint, run both."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import openvino as ov
import torch
from steps import Steps, far, feeds, size
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

SHAPES = ((1, 16), (3, 45))
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
ALLOWED = {"fp16": 5e-3, "fp32": 1e-5, "onnx": 1e-5, "hf": 1e-5}
"""How far outputs may move, of the largest: 11 bits of a weight, or the order of sums."""


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    small = steps.prune("--target", "params=85%", "--format", "hf,onnx")
    onnx = small / "onnx" / "model.onnx"
    ir = small / "openvino" / "model.xml"
    full = small / "openvino-f32" / "model.xml"
    steps.run("ovc", onnx, "--output_model", ir)
    steps.run("ovc", onnx, "--output_model", full, "--compress_to_fp16=False")

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    core = ov.Core()
    compiled = {"fp16": core.compile_model(ir, "CPU", EXACT)}
    compiled["fp32"] = core.compile_model(full, "CPU", EXACT)
    compiled["onnx"] = core.compile_model(onnx, "CPU", EXACT)
    compiled["hf"] = core.compile_model(_converted(small / "hf"), "CPU", EXACT)
    differences = {}
    for batch, length in SHAPES:
        given = feeds(names, batch, length)
        wanted = session.run(None, given)[0]
        for name, one in compiled.items():
            ports = {port.any_name for port in one.inputs}
            found = one({k: v for k, v in given.items() if k in ports})[0]
            moved = far(np.asarray(found), wanted)
            if moved > ALLOWED[name]:
                raise SystemExit(f"{name}, {batch} x {length}: outputs move by {moved}")
            differences[f"{name}, {batch} x {length}"] = moved
    steps.tell(
        ("openvino", "onnxruntime", "torch", "transformers"),
        differences=differences,
        bytes={name: size(path.parent) for name, path in
               (("onnx", onnx), ("openvino", ir), ("openvino-f32", full))},
    )  # fmt: skip


def _converted(folder: object) -> ov.Model:
    """The checkpoint, traced by OpenVINO's own frontend."""
    config = AutoConfig.from_pretrained(folder)
    causal = config.architectures[0].endswith("ForCausalLM")
    auto = AutoModelForCausalLM if causal else AutoModel
    module = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    module.config.use_cache = False
    inputs = ["input_ids", "attention_mask"]
    example = {name: torch.from_numpy(x) for name, x in feeds(inputs, 2, 8).items()}
    with torch.no_grad():
        return ov.convert_model(module, example_input=example)


if __name__ == "__main__":
    main(*sys.argv[1:])
