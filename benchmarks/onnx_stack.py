"""Halve the neurons of a stack of MatMuls with external data: memory and time.

    python benchmarks/onnx_stack.py --gigabytes 2.4

Prints the time of copying the data file, the time of pruning (magnitude), and the most anonymous
memory that pruning held.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, save

from prunec.cli import main as prunec

WIDTH, HIDDEN = 2048, 8192


def build(folder: Path, gigabytes: float) -> Path:
    """x -> relu(x U) D, as often as the size asks for."""
    blocks = max(1, round(gigabytes * 1e9 / (2 * WIDTH * HIDDEN * 4)))
    rng = np.random.default_rng(0)
    nodes, stored, offset = [], [], 0
    with (folder / "model.onnx.data").open("wb") as data:
        for i in range(blocks):
            for name, shape in ((f"u{i}", (WIDTH, HIDDEN)), (f"d{i}", (HIDDEN, WIDTH))):
                array = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
                data.write(array.data)
                tensor = TensorProto(
                    name=name, data_type=TensorProto.FLOAT, dims=shape,
                    data_location=TensorProto.EXTERNAL,
                )  # fmt: skip
                about = {"location": "model.onnx.data", "offset": offset, "length": array.nbytes}
                for key, value in about.items():
                    tensor.external_data.add(key=key, value=str(value))
                stored.append(tensor)
                offset += array.nbytes
            x = "x" if i == 0 else f"x{i}"
            nodes += [
                helper.make_node("MatMul", [x, f"u{i}"], [f"h{i}"]),
                helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
                helper.make_node("MatMul", [f"r{i}", f"d{i}"], [f"x{i + 1}"]),
            ]
    graph = helper.make_graph(
        nodes, "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(f"x{blocks}", TensorProto.FLOAT, ["batch", WIDTH])],
        stored,
    )  # fmt: skip
    path = folder / "model.onnx"
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def anonymous() -> int:
    """Bytes of anonymous memory of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        path = build(folder, given.gigabytes)
        start = time.perf_counter()
        shutil.copyfile(folder / "model.onnx.data", folder / "copy")
        copying = time.perf_counter() - start
        (folder / "copy").unlink()
        most, over = [anonymous()], threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                most[0] = max(most[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        code = prunec(
            ["prune", str(path), "-o", str(folder / "out"), "--target", "params=50%",
             "--method", "magnitude", "--json"]
        )  # fmt: skip
        pruning = time.perf_counter() - start
        over.set()
        watcher.join()
        print(
            f"copying {copying:.1f} s, pruning {pruning:.1f} s ({pruning / copying:.1f} times),"
            f" at most {most[0] / 1e6:.0f} MB anonymous",
            file=sys.stderr,
        )
        return code


if __name__ == "__main__":
    sys.exit(main())
