"""Wall time of calibrated pruning of SmolLM2-135M against one dense forward pass.

Both see the same 64 windows of 512 tokens of WikiText-2 valid, four at a time, in float32, each in
a process of its own with the same number of threads, in turns. `passes`: all that the method does
with the calibration data, as the report says (`seconds.allocate` and `seconds.prune`: scores,
widths, refit, and the stream through the pruned model). `command`: all of `prunec prune --method
METHOD --restore ls --format hf`, from start to exit, with imports, tracing, tokenising and
writing. `forward`: transformers' stock
model over all tokens, logits of every position included, loading and one warm-up batch left out.
Promised: the passes take at most 4 times as long as the forward pass with `wanda`, and at most 6
times with `auto`.

The text is looked for in `../shared/data` beside the checkout, or in --data-dir.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import (
    Document,
    Figure,
    command_line,
    cpus,
    data_file,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
)
from common import run as measured

MOST = {"wanda": 4.0, "auto": 6.0}
AT_ONCE = 2048
"""Tokens of a batch, as prunec takes them."""
FORWARD = "--only-forward"


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or model folder [smollm2]")
    add("--data-dir", type=Path, help="folder of wikitext2-valid.txt [../shared/data]")
    add("--samples", type=int, default=64, metavar="N", help="windows [64]")
    add("--length", type=int, default=512, metavar="N", help="tokens in each [512]")
    add("--method", choices=MOST, default="wanda", help="[wanda]")
    add("--layout", default="uniform", help="[uniform]")
    add("--target", default="params=85%", help="[params=85%%]")
    add("--threads", type=int, default=cpus(), help="of both [all cores]")
    add("--repeat", type=int, default=3, metavar="N", help="turns [3]")
    add(FORWARD, action="store_true", help="(the process that runs the dense model)")
    asked = options.parse_args(arguments)
    text = data_file(asked.data_dir, "wikitext2-valid.txt")
    folder = model(asked.model)
    if asked.only_forward:
        return _forward(folder, text, asked.samples, asked.length)
    shared = {"OMP_NUM_THREADS": str(asked.threads)}
    dense = (
        *(sys.executable, __file__, FORWARD, "--model", str(folder), "--data-dir", text.parent),
        *("--samples", asked.samples, "--length", asked.length),
    )
    rows: list[Document] = []
    for turn in range(asked.repeat):
        say(f"turn {turn + 1} of {asked.repeat}: dense forward pass")
        forward = measured([str(x) for x in dense], environment=shared).expect(0).json()
        say(f"turn {turn + 1} of {asked.repeat}: prunec, after {forward['forward']:.1f} s")
        with tempfile.TemporaryDirectory(prefix="prunec-time-") as work:
            pruning = prunec(
                *("prune", str(folder), "-o", Path(work) / "out", "--target", asked.target),
                *("--method", asked.method, "--layout", asked.layout, "--restore", "ls"),
                *("--calibration", text),
                *("--calibration-samples", str(asked.samples)),
                *("--calibration-length", str(asked.length), "--format", "hf", "--json"),
            )
            finished = measured(pruning, environment=shared).expect(0)
        parts = finished.json()["seconds"]
        passes = parts.get("allocate", 0.0) + parts["prune"]
        rows.append(
            {
                "forward": forward["forward"],
                "forward_without_logits": forward["without_logits"],
                "passes": passes,
                "command": finished.seconds,
                "parts": parts,
                "peak_gb": round(finished.peak_rss / 1e9, 2),
            }
        )
        say(f"passes {passes:.1f} s, command {finished.seconds:.1f} s")
    ratios = {
        f"{part}_over_forward": statistics.median(row[part] / row["forward"] for row in rows)
        for part in ("passes", "command")
    }
    return {
        "model": asked.model,
        "method": asked.method,
        "tokens": asked.samples * asked.length,
        "threads": asked.threads,
        "command": command_line(prunec(*pruning[1:])),
        "rows": rows,
        "median": {
            part: statistics.median(row[part] for row in rows)
            for part in ("forward", "forward_without_logits", "passes", "command")
        },
        "ratio": ratios,
        "figures": figures(
            Figure(
                "passes, in dense forward passes",
                ratios["passes_over_forward"],
                most=MOST[asked.method],
            )
        ),
    }


def _forward(folder: Path, text: Path, samples: int, length: int) -> Document:
    """Seconds of one pass over the windows that prunec calibrates on."""
    import torch

    from prunec.frontends import hf
    from prunec.frontends.calibration import calibration
    from prunec.frontends.source import resolve

    source = resolve(str(folder))
    module = hf.load_model(source)
    found = calibration(source, module, str(text), samples, length, 0)
    batches = [
        {name: torch.from_numpy(x) for name, x in batch.items()}
        for batch in found.batches(max(1, AT_ONCE // length))
    ]
    times = []
    with torch.inference_mode():
        for more in ({}, {"logits_to_keep": 1}):
            module(**batches[0], use_cache=False, **more)
            start = time.perf_counter()
            for batch in batches:
                module(**batch, use_cache=False, **more)
            times.append(time.perf_counter() - start)
    return {"forward": times[0], "without_logits": times[1], "tokens": found.tokens}


if __name__ == "__main__":
    if FORWARD in sys.argv:
        from common import quiet

        quiet()
        print(json.dumps(run()))
    else:
        main(run)
