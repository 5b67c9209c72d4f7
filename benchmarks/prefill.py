"""Prefill throughput of SmolLM2-135M in ONNX Runtime, pruned to 60 % of its blocks, against dense.

Both ONNX files are written by prunec's own backend. One sequence of 512 tokens, logits of every
position; dense and pruned are run in turns (A B A B ...), and medians are compared. The promise is
that the work saved is time saved: the measured speed-up is at least 0.9 of the ratio of FLOPs that
report.json states (output head and attention included, for the same length).
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Document, Figure, command_line, cpus, figures, main, model, parser, prunec, say
from common import run as measured

LEAST = 0.9
LENGTH = 512
"""The length that report.json states FLOPs for."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or model folder [smollm2]")
    add("--target", default="blocks=60%", help="[blocks=60%%]")
    add("--layout", default="uniform", help="uniform (default) or per-layer")
    add("--repeat", type=int, default=31, metavar="N", help="runs of each [31]")
    add("--threads", type=int, default=cpus(), help="of ONNX Runtime [all cores]")
    add("--prune", default="", metavar="OPTIONS", help="more of prunec prune, as one text")
    asked = options.parse_args(arguments)
    folder = model(asked.model)
    with tempfile.TemporaryDirectory(prefix="prunec-prefill-") as work:
        out, dense = Path(work) / "out", Path(work) / "dense.onnx"
        command = prunec(
            *("prune", folder, "-o", out, "--target", asked.target, "--method", "magnitude"),
            *("--calibration", "none", "--format", "onnx", "--layout", asked.layout, "--json"),
            *asked.prune.split(),
        )
        say("pruning")
        measured(command).expect(0)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        say("writing the dense model")
        _write_dense(str(folder), dense)
        say(f"measuring {asked.repeat} runs of each")
        times = _times(dense, out / "onnx" / "model.onnx", asked.threads, asked.repeat)
    sizes = report["dense"], report["pruned"]
    assert all(size["length"] == LENGTH and size["batch"] == 1 for size in sizes)
    flops = sizes[0]["flops"] / sizes[1]["flops"]
    medians = [statistics.median(taken) for taken in times]
    speedup = medians[0] / medians[1]
    rows = [
        {
            "model": name,
            "params": size["params"],
            "blocks": size["blocks"],
            "flops": size["flops"],
            "median": median,
            "fastest": min(taken),
            "slowest": max(taken),
            "tokens_per_second": LENGTH / median,
        }
        for name, size, median, taken in zip(
            ("dense", "pruned"), sizes, medians, times, strict=True
        )
    ]
    return {
        "command": command_line(command),
        "threads": asked.threads,
        "length": LENGTH,
        "repeat": asked.repeat,
        "rows": rows,
        "flops_ratio": flops,
        "speedup": speedup,
        "speedup_of_fastest": min(times[0]) / min(times[1]),
        "figures": figures(
            Figure("speed-up as a share of the FLOPs ratio", speedup / flops, least=LEAST)
        ),
    }


def _write_dense(folder: str, path: Path) -> None:
    from prunec.backends import onnx
    from prunec.progress import Silent
    from prunec.runs.loading import load

    loaded = load(folder, trust_remote_code=False, need_weights=True, progress=Silent())
    onnx.emit(loaded.graph, loaded.weights, path)


def _times(dense: Path, pruned: Path, threads: int, repeat: int) -> list[list[float]]:
    from prunec.measuring.bench import measure
    from prunec.measuring.feeds import example_feeds
    from prunec.measuring.runners import open_onnx

    runners = [open_onnx(path, threads) for path in (dense, pruned)]
    feeds = [example_feeds(runner.inputs, batch=1, length=LENGTH) for runner in runners]
    return [list(taken) for taken in measure(runners, feeds, repeat, alone=threads == 1).seconds]


if __name__ == "__main__":
    main(run)
