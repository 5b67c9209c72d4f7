"""Pruning a 1.3 B Llama on disk by magnitude: wall time and memory, against Torch-Pruning.

Makes once, in a cache folder, a Llama of random weights (24 layers, hidden 2048, FFN 5504, 16
heads, vocabulary 32000; 1.35 billion parameters, 2.7 GB in float16), then in turns

- `prunec prune MODEL --target params=75% --method magnitude --groups neuron --format hf`,
- Torch-Pruning 1.6.1 doing the same in its own way: load with transformers, group magnitude, FFN
  neurons down to the same width, `save_pretrained` (benchmarks/torch_pruning_llama.py; in a
  virtual environment of its own that sees this one's packages, with pip from PyPI),
- `cp` of the model's file,

each as a process of its own that ends with safetensors on the same disk, the model's file read
beforehand so that it lies in the page cache, buffers flushed before and not counted after. Both
results are counted from their files and reloaded with stock transformers at the end.

`peak_anonymous_gb` is the resident memory that no file backs (RssAnon), sampled 50 times a second
over all processes of the command. Promised: below 1 GB for prunec; its wall time below that of
Torch-Pruning, and stated as a multiple of copying the file. Needs Linux, 10 GB of disk (20 with
--dtype float32), and 7 GB of memory for the rival and the reload.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import (
    Document,
    Figure,
    Finished,
    cache,
    command_line,
    figures,
    main,
    parser,
    prunec,
    say,
)
from common import run as measured
from random_llama import DTYPES, SIZES, random_llama
from rival_home import torch_pruning
from runtimes import checkpoint

PROMISED, MOST_GB = "1.3b", 1.0
CHUNK_BYTES = 1 << 24


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--size", choices=SIZES, default=PROMISED, help="tiny is for trying the benchmark out")
    add("--dtype", choices=DTYPES, default="float16", help="of the model on disk [float16]")
    add("--target", default="params=75%", help="[params=75%%]")
    add("--repeat", type=int, default=3, metavar="N", help="turns [3]")
    add("--cache", type=Path, help="folder for model, rival and results [~/.cache/prunec/...]")
    add("--without-rival", action="store_true", help="leave Torch-Pruning out")
    asked = options.parse_args(arguments)
    folder = cache(asked.cache)
    python = None if asked.without_rival else torch_pruning(folder)
    dense = random_llama(folder, asked.size, asked.dtype)
    work = Path(tempfile.mkdtemp(prefix="large-", dir=folder))
    try:
        turns = _turns(asked, dense, work, python)
        reloaded = {name: _reloaded(work / name, dense, work) for name in turns if name != "copy"}
    finally:
        shutil.rmtree(work)
    return _summary(asked, dense, turns) | {"reloaded": reloaded}


def _turns(
    asked: argparse.Namespace, dense: Path, work: Path, python: Path | None
) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {"prunec": [], "torch-pruning": [], "copy": []}
    if python is None:
        del found["torch-pruning"]
    prune = prunec(
        *("prune", dense, "-o", work / "out", "--target", asked.target, "--method", "magnitude"),
        *("--calibration", "none", "--groups", "neuron", "--format", "hf", "--json"),
    )
    here = Path(__file__).parent / "torch_pruning_llama.py"
    weights = dense / "model.safetensors"
    for turn in range(asked.repeat):
        for name in found:
            _make_ready(weights, work, name)
            match name:
                case "prunec":
                    row, told = _measure(prune)
                    kept = max(g["kept"] for g in told["groups"] if g["role"] == "neuron")
                    row |= {"parts": told["seconds"], "kept": kept}
                    (work / "out" / "hf").rename(work / name)
                    shutil.rmtree(work / "out")
                case "torch-pruning":
                    assert python is not None
                    words = (str(python), "-P", str(here), str(dense), str(work / name), str(kept))
                    row, told = _measure(words)
                    row |= {"parts": told["parts"], "kept": kept}
                case _:
                    target = work / name / weights.name
                    row, _ = _measure(("cp", "--reflink=never", str(weights), str(target)))
            if name != "copy":
                row["params"] = sum(map(math.prod, checkpoint(work / name).values()))
            found[name].append(row)
            say(f"turn {turn + 1}, {name}: {row['seconds']:.2f} s, "
                f"{row['peak_anonymous_gb']:.2f} GB anonymous")  # fmt: skip
    return found


def _measure(command: Sequence[str]) -> tuple[Document, Document]:
    """What a command took, and what it said if it said anything."""
    finished: Finished = measured(command).expect(0)
    assert finished.peak_anonymous is not None, "this needs /proc"
    row = {
        "seconds": round(finished.seconds, 3),
        "cpu_seconds": round(finished.cpu_seconds, 3),
        "peak_anonymous_gb": finished.peak_anonymous / 1e9,
        "peak_rss_gb": finished.peak_rss / 1e9,
        "command": command_line(command),
    }
    return row, finished.json() if finished.stdout.strip() else {}


def _make_ready(weights: Path, work: Path, name: str) -> None:
    """The same state for everyone: the last result gone, buffers flushed, the model cached."""
    shutil.rmtree(work / name, ignore_errors=True)
    if name == "copy":
        (work / name).mkdir()
    os.sync()
    with weights.open("rb", buffering=0) as stream:
        while stream.read(CHUNK_BYTES):
            pass


def _summary(asked: argparse.Namespace, dense: Path, turns: dict[str, list[Document]]) -> Document:
    params = sum(map(math.prod, checkpoint(dense).values()))
    medians = {name: statistics.median(r["seconds"] for r in rows) for name, rows in turns.items()}
    peaks = {name: max(r["peak_anonymous_gb"] for r in rows) for name, rows in turns.items()}
    promised = [Figure("anonymous memory, GB", peaks["prunec"], most=MOST_GB)]
    if "torch-pruning" in turns:
        left = {rows[0]["params"] for name, rows in turns.items() if name != "copy"}
        assert len(left) == 1, f"the two left different numbers of parameters: {left}"
        ratio = medians["prunec"] / medians["torch-pruning"]
        promised.append(Figure("wall time over that of Torch-Pruning", ratio, most=1.0))
    return {
        "size": asked.size,
        "dtype": asked.dtype,
        "params": params,
        "left": turns["prunec"][0]["params"] / params,
        "bytes": (dense / "model.safetensors").stat().st_size,
        "median_seconds": medians,
        "peak_anonymous_gb": peaks,
        "times_copying": {n: medians[n] / medians["copy"] for n in medians if n != "copy"},
        "turns": turns,
        "figures": figures(*(promised if asked.size == PROMISED else ())),
    }


# -- the reload --------------------------------------------------------------------


def _reloaded(folder: Path, dense: Path, work: Path) -> str:
    """Load the result with stock transformers and run it once; returns the class."""
    say(f"reloading what {folder.name} wrote")
    names, inputs, outputs = (work / name for name in ("names.json", "in.npz", "out.npz"))
    names.write_text(json.dumps(list(checkpoint(dense))), encoding="utf-8")
    tokens = np.arange(8, dtype=np.int64)[None]
    np.savez(inputs, **{"1x8/input_ids": tokens})  # type: ignore[arg-type]
    told = measured(
        (sys.executable, "-P", Path(__file__).parent / "runtimes.py", "hf", folder,
         names, inputs, outputs)
    ).expect(0).json()  # fmt: skip
    with np.load(outputs) as found:
        assert np.isfinite(found["1x8/0"]).all(), f"{folder.name}: outputs are not finite"
    assert not told["missing"], f"{folder.name}: lacks {told['missing']}"
    return str(told["loaded_by"])


if __name__ == "__main__":
    main(run)
