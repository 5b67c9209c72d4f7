"""Olive: workflows that prune, convert and quantise, run by its own command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from steps import Steps, far, feeds, size
from transformers import AutoModel

ALLOWED = 1e-5
"""How far a float32 file may be from the pruned checkpoint."""

PACKAGE = "olive_package.json"
PRUNE = {"type": "PrunecPrune", "target": "params=85%", "method": "magnitude",
         "calibration": "none"}  # fmt: skip
CONVERT = {"type": "OnnxConversion", "use_dynamo_exporter": True}
QUANTIZE = {"type": "OnnxDynamicQuantization"}


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    steps.run("python", "-m", "prunec.integrations", "olive", PACKAGE)
    dense = {"type": "HfModel", "model_path": model, "task": "feature-extraction"}
    files = {
        "converted": _run(steps, "converted", dense, prune=PRUNE, convert=CONVERT),
        "quantised": _run(
            steps, "quantised", dense, prune=PRUNE, convert=CONVERT, quantize=QUANTIZE
        ),
        "written": _run(steps, "written", dense, prune=PRUNE | {"format": "onnx"}),
    }
    small = steps.prune("--target", PRUNE["target"], "--format", "hf")
    given = feeds(["input_ids", "attention_mask"], 2, 24)
    wanted = _checkpoint(small / "hf", given)
    moved = {name: far(_onnx(file, given), wanted) for name, file in files.items()}
    if max(moved["converted"], moved["written"]) > ALLOWED:
        raise SystemExit(f"outputs move by {moved}")
    again = {"type": "ONNXModel", "model_path": str(files["written"])}
    smaller = _run(steps, "again", again, prune=PRUNE)
    if not np.isfinite(_onnx(smaller, given)).all():
        raise SystemExit("the file that was pruned as a file gives numbers that are none")
    sizes = {name: size(file) for name, file in {**files, "again": smaller}.items()}
    steps.tell(
        ("olive-ai", "onnxruntime", "torch", "transformers"),
        dense=size(steps.model / "model.safetensors"),
        bytes=sizes,
        moved=moved,
    )


def _run(steps: Steps, name: str, model: dict[str, Any], **passes: Any) -> Path:
    """The ONNX file that a workflow leaves; raises SystemExit when it leaves no report."""
    document = {
        "input_model": model,
        "passes": passes,
        "cache_dir": "cache",
        "output_dir": name,
        "log_severity_level": 1,
    }
    (steps.work / f"{name}.json").write_text(json.dumps(document, indent=1))
    command = ("olive", "run", "--config", f"{name}.json", "--package-config", PACKAGE)
    steps.run(*command, env={"OLIVE_DISABLE_TELEMETRY": "1"})
    out = steps.work / name
    lacking = [paper for paper in ("report.html", "plan.json") if not (out / paper).exists()]
    if lacking:
        raise SystemExit(f"{name}: Olive did not keep {', '.join(lacking)}")
    (file,) = out.glob("*.onnx")
    return file


def _checkpoint(folder: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    module = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return module(**{name: torch.from_numpy(x) for name, x in given.items()})[0].numpy()


def _onnx(file: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    more = {"token_type_ids": np.zeros_like(given["input_ids"])}
    return session.run(None, {name: x for name, x in {**given, **more}.items() if name in names})[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
