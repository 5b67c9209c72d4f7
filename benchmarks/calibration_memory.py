"""Peak resident memory of `prunec prune --method auto`, or of `sparsify`, against what it may need.

    python benchmarks/calibration_memory.py
    python benchmarks/calibration_memory.py --verb sparsify

SmolLM2-135M, and a 1.3 B Llama of random weights in float16 on disk (as in large_magnitude.py).
The bound: the largest block's weights in the dtype that the program computes with, the largest Gram
matrix in float64, the activation budget (256 MB) and 400 MB for the runtime. `peak_rss_gb` is the
largest resident set of the process over all of the run, from start to exit, file pages and shared
libraries included. `resident_model_gb` says what the weights alone would take in that dtype.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common import (
    Document,
    Figure,
    cache,
    command_line,
    data_file,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
)
from common import run as measured
from random_llama import random_llama
from runtimes import checkpoint

BUDGET, RUNTIME = 256 << 20, 400 << 20
WIDTHS = {"float64": 8, "float32": 4}
"""Bytes of a number that is computed with; half precision is widened on the CPU."""
VERBS: dict[str, tuple[str, ...]] = {
    "prune": ("--target", "blocks=80%", "--method", "auto", "--layout", "per-layer"),
    "sparsify": ("--sparsity", "50%", "--method", "sparsegpt"),
}
LAYER = re.compile(r"^(.*?\.\d+)\.")


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="+", default=("smollm2", "1.3b"), metavar="MODEL",
        help="names, folders, or sizes of random Llamas [smollm2 1.3b]")  # fmt: skip
    add("--data-dir", type=Path, help="folder of wikitext2-valid.txt [../shared/data]")
    add("--verb", default="prune", choices=list(VERBS), help="[prune]")
    add("--samples", type=int, default=64, metavar="N", help="windows [64]; of random Llamas 8")
    add("--length", type=int, default=512, metavar="N", help="tokens in each [512]")
    add("--cache", type=Path, help="folder for models [~/.cache/prunec/...]")
    asked = options.parse_args(arguments)
    text = data_file(asked.data_dir, "wikitext2-valid.txt")
    rows = []
    for name in asked.models:
        made = name == "1.3b"
        folder = random_llama(cache(asked.cache), name, "float16") if made else model(name)
        say(f"{name}: {asked.verb}")
        with tempfile.TemporaryDirectory(prefix="prunec-memory-") as work:
            command = prunec(
                *(asked.verb, str(folder), "-o", Path(work) / "out", *VERBS[asked.verb]),
                *("--format", "hf", "--json"),
                *_calibration(Path(work), asked.samples, asked.length, text, made=made),
            )
            finished = measured(command).expect(0)
        rows.append(_row(name, folder, finished.peak_rss, finished.seconds) | {
            "command": command_line(command),
            "peak_anonymous_gb": (finished.peak_anonymous or 0) / 1e9,
            "seconds_by_part": finished.json().get("seconds"),
        })  # fmt: skip
        say(f"{name}: {rows[-1]['peak_rss_gb']:.2f} GB, bound {rows[-1]['bound_gb']:.2f} GB")
    return {
        "rows": rows,
        "figures": figures(
            *(Figure(f"{r['model']}: GB", r["peak_rss_gb"], most=r["bound_gb"]) for r in rows)
        ),
    }


def _calibration(
    work: Path, samples: int, length: int, text: Path, *, made: bool
) -> Sequence[str | Path]:
    """A model of random weights has no tokenizer: its windows are tokens at random."""
    if not made:
        sizes = ("--calibration-samples", str(samples), "--calibration-length", str(length))
        return ("--calibration", text, *sizes)
    import numpy as np

    windows = np.random.default_rng(0).integers(0, 32000, (min(samples, 8), length))
    np.savez(work / "tokens.npz", input_ids=windows)
    return ("--calibration", work / "tokens.npz", "--calibration-samples", str(len(windows)))


def _row(name: str, folder: Path, peak: int, seconds: float) -> Document:
    shapes = checkpoint(folder)
    dtype = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype", "float32")
    width = WIDTHS.get(dtype, 4)
    blocks: dict[str, int] = defaultdict(int)
    for tensor, shape in shapes.items():
        if found := LAYER.match(tensor):
            blocks[found[1]] += math.prod(shape) * width
    inside = [shape for tensor, shape in shapes.items() if LAYER.match(tensor) and len(shape) > 1]
    gram = 8 * max(max(shape) for shape in inside) ** 2
    bound = max(blocks.values()) + gram + BUDGET + RUNTIME
    return {
        "model": name,
        "peak_rss_gb": peak / 1e9,
        "bound_gb": bound / 1e9,
        "block_gb": max(blocks.values()) / 1e9,
        "gram_gb": gram / 1e9,
        "resident_model_gb": sum(math.prod(s) for s in shapes.values()) * width / 1e9,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main(run)
