"""A 7 B Llama of random weights on disk (13.5 GB in float16), inspected, pruned and calibrated.

Two commands, each a process of its own that writes a Hugging Face folder at 70 % of the blocks:

- `prunec prune --method magnitude`, no calibration;
- `prunec prune --method wanda-sp` on 16 windows of 256 random tokens.

`peak_anonymous_gb` is the resident memory that no file backs. `waiting` is the share of all cores'
time that the process left unused: reading and writing, and what has one thread; it means something
on an idle machine only. Promised: below 1 GB and below 3 GB of anonymous memory. Needs Linux, 25 GB
of disk, and hours on two cores where they multiply matrices of half precision slowly.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import (
    Document,
    Figure,
    cache,
    command_line,
    cpus,
    figures,
    main,
    parser,
    prunec,
    say,
)
from common import run as measured
from random_llama import SIZES, random_llama

PROMISED = "7b"
MOST_GB = {"magnitude": 1.0, "wanda-sp": 3.0}


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--size", choices=SIZES, default=PROMISED, help="the others are for trying it out [7b]")
    add("--methods", nargs="+", choices=MOST_GB, default=list(MOST_GB), metavar="METHOD",
        help="magnitude wanda-sp")  # fmt: skip
    add("--samples", type=int, default=16, metavar="N", help="windows [16]")
    add("--length", type=int, default=256, metavar="N", help="tokens of each [256]")
    add("--cache", type=Path, help="folder for model and results [~/.cache/prunec/benchmarks]")
    asked = options.parse_args(arguments)
    folder = cache(asked.cache)
    dense = random_llama(folder, asked.size, "float16")
    inspected = measured(prunec("inspect", dense, "--json")).expect(0)
    rows = []
    for method in asked.methods:
        work = Path(tempfile.mkdtemp(prefix="disk-", dir=folder))
        try:
            rows.append(_row(method, dense, work, asked.samples, asked.length, asked.size))
        finally:
            shutil.rmtree(work)
    bounds = [
        Figure(f"{row['method']}: GB", row["peak_anonymous_gb"], most=MOST_GB[row["method"]])
        for row in rows
    ]
    return {
        "bytes": (dense / "model.safetensors").stat().st_size,
        "inspect_seconds": inspected.seconds,
        "rows": rows,
        "figures": figures(*(bounds if asked.size == PROMISED else ())),
    }


def _row(method: str, dense: Path, work: Path, samples: int, length: int, size: str) -> Document:
    data: tuple[str | Path, ...] = ("--calibration", "none")
    if method != "magnitude":
        windows = np.random.default_rng(0).integers(0, SIZES[size]["vocab"], (samples, length))
        np.savez(work / "tokens.npz", input_ids=windows)
        data = ("--calibration", work / "tokens.npz", "--calibration-samples", str(samples))
    command = prunec(
        *("prune", dense, "-o", work / "out", "--target", "blocks=70%", "--method", method),
        *("--groups", "neuron", "--format", "hf", "--json", *data),
    )
    say(command_line(command))
    finished = measured(command).expect(0)
    told = finished.json()
    assert finished.peak_anonymous is not None, "this needs /proc"
    return {
        "method": method,
        "seconds": finished.seconds,
        "cpu_seconds": finished.cpu_seconds,
        "waiting": max(0.0, 1 - finished.cpu_seconds / (finished.seconds * cpus())),
        "peak_anonymous_gb": finished.peak_anonymous / 1e9,
        "peak_rss_gb": finished.peak_rss / 1e9,
        "seconds_by_part": told["seconds"],
        "left": told["pruned"]["params"] / told["dense"]["params"],
        "command": command_line(command),
    }


if __name__ == "__main__":
    main(run)
