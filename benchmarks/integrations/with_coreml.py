"""Core ML: the dense and the pruned module as .mlpackage, its shapes checked; run on a Mac only."""

from __future__ import annotations

import sys
from typing import Any

import coremltools as ct
import numpy as np
import torch
from fixed import Fixed, exported, inputs, pair
from steps import Steps, far, size

ALLOWED = 2e-2
"""How far float16 may move outputs where they can be computed."""


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    given = inputs()
    found = {name: _convert(steps, name, module, given) for name, module in pair(model).items()}
    if found["pruned"]["weights"] >= found["dense"]["weights"]:
        raise SystemExit(f"the pruned package has no smaller weights: {found}")
    steps.tell(("coremltools", "torch", "transformers"), files=found)


def _convert(
    steps: Steps, name: str, module: Fixed, given: dict[str, np.ndarray]
) -> dict[str, Any]:
    with torch.inference_mode():
        wanted = module(*(torch.from_numpy(x) for x in given.values())).numpy()
    made = ct.convert(
        exported(module, given).run_decompositions(),
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
    )
    path = steps.work / f"{name}.mlpackage"
    made.save(str(path))
    spec = ct.utils.load_spec(str(path))
    shapes = {i.name: tuple(i.type.multiArrayType.shape) for i in spec.description.input}
    (out,) = spec.description.output
    told = _types(spec)
    if list(shapes.values()) != [x.shape for x in given.values()] or told != wanted.shape:
        raise SystemExit(f"{name}: shapes are {shapes} and {told}, not {wanted.shape}")
    found = {
        "bytes": size(path),
        "weights": size(path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"),
        "inputs": shapes,
        "output": {out.name: told},
        "operations": len(_block(spec).operations),
    }
    if sys.platform == "darwin":
        fed = dict(zip(shapes, (x.astype(np.int32) for x in given.values()), strict=True))
        found["moved"] = far(made.predict(fed)[out.name], wanted)
        if found["moved"] > ALLOWED:
            raise SystemExit(f"{name}: outputs move by {found['moved']}")
    return found


def _block(spec: Any) -> Any:
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return block


def _types(spec: Any) -> tuple[int, ...]:
    """The shape of what the program gives."""
    block = _block(spec)
    (name,) = block.outputs
    types = {o.name: o.type.tensorType for op in block.operations for o in op.outputs}
    return tuple(dim.constant.size for dim in types[name].dimensions)


if __name__ == "__main__":
    main(*sys.argv[1:])
