"""Halve the neurons of a stack of MatMuls with external data: memory and time.

    python benchmarks/onnx_stack.py --gigabytes 2.4

In turns, the data file is copied and the model pruned by magnitude with the command line, each
with the data in the page cache and buffers flushed before. `cpu_seconds` is what pruning computed,
its hash of the source among it, which goes on beside the rest. Python's bytecode is kept from the
first turn on, as it is where prunec is installed. Promised: at most 300 MB of anonymous memory, and
3 times the time of the copy.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Document, Figure, figures, main, parser, prunec, say
from common import run as measured
from onnx import TensorProto, helper, save

WIDTH, HIDDEN = 2048, 8192
MOST_TIMES, MOST_MB = 3.0, 300
CHUNK_BYTES = 1 << 24


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--gigabytes", type=float, default=2.4, help="of weights [2.4]")
    add("--repeat", type=int, default=3, metavar="N", help="turns [3]")
    add("--folder", type=Path, help="where the files are made [the system's]")
    asked = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        path = build(Path(scratch), asked.gigabytes)
        turns = [_turn(path) for _ in range(asked.repeat)]
    times = statistics.median(t["pruning"] for t in turns) / statistics.median(
        t["copying"] for t in turns
    )
    most = max(turn["anonymous_mb"] for turn in turns)
    return {
        "turns": turns,
        "figures": figures(
            Figure("times the copy", times, most=MOST_TIMES),
            Figure("anonymous memory, MB", most, most=MOST_MB),
        ),
    }


def _turn(path: Path) -> Document:
    data, copy, out = path.with_name("model.onnx.data"), path.with_name("copy"), path.parent / "out"
    _ready(data)
    copied = measured(("cp", "--reflink=never", str(data), str(copy))).expect(0)
    copy.unlink()
    _ready(data)
    finished = measured(
        prunec(
            "prune", path, "-o", out, "--target", "params=50%", "--method", "magnitude", "--json"
        ),
        environment={"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": f"{path.parent}/code"},
    ).expect(0)
    shutil.rmtree(out)
    assert finished.peak_anonymous is not None, "this needs /proc"
    row = {
        "copying": round(copied.seconds, 2),
        "pruning": round(finished.seconds, 2),
        "cpu_seconds": round(finished.cpu_seconds, 2),
        "anonymous_mb": round(finished.peak_anonymous / 1e6),
        "parts": finished.json()["seconds"],
    }
    say(str(row))
    return row


def _ready(data: Path) -> None:
    os.sync()
    with data.open("rb", buffering=0) as stream:
        while stream.read(CHUNK_BYTES):
            pass


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


if __name__ == "__main__":
    main(run)
