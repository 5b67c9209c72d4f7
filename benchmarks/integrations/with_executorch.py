"""ExecuTorch: the dense and the pruned module lowered to XNNPACK, written as .pte, and run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from fixed import Fixed, exported, inputs, pair
from steps import Steps, far, size

ALLOWED = 1e-4
REPEAT = 20


def main(model: str, work: str) -> None:
    steps = Steps(model, work)
    given = inputs()
    found = {}
    for name, module in pair(steps.model).items():
        file = steps.work / f"{name}.pte"
        delegates, left = _lower(module, given, file)
        got, seconds = _run(file, given)
        with torch.inference_mode():
            wanted = module(*(torch.from_numpy(x) for x in given.values())).numpy()
        moved = far(got, wanted)
        if moved > ALLOWED:
            raise SystemExit(f"{name}: outputs move by {moved}")
        found[name] = {
            "bytes": size(file), "moved": moved, "delegates": delegates, "left": left,
            "milliseconds": round(1e3 * seconds, 2),
        }  # fmt: skip
    steps.tell(("executorch", "torch", "transformers"), files=found)


def _lower(module: Fixed, given: dict[str, np.ndarray], file: Path) -> tuple[int, int]:
    """Write the program; gives the parts that XNNPACK runs, and the operations beside them."""
    lowered = to_edge_transform_and_lower(
        exported(module, given), partitioner=[XnnpackPartitioner()]
    )
    file.write_bytes(lowered.to_executorch().buffer)
    calls = [n for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    delegates = sum("executorch_call_delegate" in str(node.target) for node in calls)
    getters = sum("getitem" in str(node.target) for node in calls)
    return delegates, len(calls) - delegates - getters


def _run(file: Path, given: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """The output, and the shortest of several times in seconds."""
    method = Runtime.get().load_program(file).load_method("forward")
    tensors = [torch.from_numpy(x) for x in given.values()]
    times = []
    for _ in range(REPEAT):
        start = time.perf_counter()
        (got,) = method.execute(tensors)
        times.append(time.perf_counter() - start)
    return got.numpy().copy(), min(times)


if __name__ == "__main__":
    main(*sys.argv[1:])
