"""Cost of `prunec sensitivity` on SmolLM2-135M, as multiples of one dense forward pass.

Every KV group (90), sublayer (60) and layer (30) is removed alone on 16 windows of 512 tokens of
WikiText-2 valid, exactly and by the first-order estimate (`--fast`). `forward`: transformers' stock
model over the same windows, one at a time, logits of every position included, one warm-up left out.
Each runs in a process of its own with the same number of threads; loading, tracing and tokenising
are left out of all. Time is that of the processor, which other load disturbs less, and the wall's
stands beside it. Promised: the exact table takes at most 110 forward passes, the estimate at most
6; their rank correlation is stated, of all rows and by role.

The text is looked for in `../shared/data` beside the checkout, or in --data-dir.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Document, Figure, cpus, data_file, figures, main, model, parser, prunec, say
from common import run as measured

ROLES = ("kv_head", "sublayer", "layer")
MOST = {"exact": 110.0, "fast": 6.0}
FORWARD = "--only-forward"


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or model folder [smollm2]")
    add("--data-dir", type=Path, help="folder of wikitext2-valid.txt [../shared/data]")
    add("--samples", type=int, default=16, metavar="N", help="windows [16]")
    add("--length", type=int, default=512, metavar="N", help="tokens in each [512]")
    add("--threads", type=int, default=cpus(), help="of all [all cores]")
    add(FORWARD, action="store_true", help="(the process that runs the dense model)")
    asked = options.parse_args(arguments)
    text = data_file(asked.data_dir, "wikitext2-valid.txt")
    folder = model(asked.model)
    if asked.only_forward:
        return _forward(folder, text, asked.samples, asked.length)
    shared = {"OMP_NUM_THREADS": str(asked.threads)}
    dense = (
        *(sys.executable, __file__, FORWARD, "--model", folder, "--data-dir", text.parent),
        *("--samples", str(asked.samples), "--length", str(asked.length)),
    )
    command = prunec(
        *("sensitivity", folder, "--groups", ",".join(ROLES), "--calibration", text),
        *("--calibration-samples", str(asked.samples)),
        *("--calibration-length", str(asked.length), "--json"),
    )
    forward = measured(dense, environment=shared).expect(0).json()
    say(f"one forward pass takes {forward['cpu']:.1f} s")
    reports, passes = {}, {}
    for name, more in {"exact": (), "fast": ("--fast",)}.items():
        report = measured((*command, *more), environment=shared, timeout=36_000).expect(0).json()
        assert report["calibration"]["tokens"] == forward["tokens"], "not the same windows"
        spent = report["seconds"]
        passes[name] = {
            "seconds": spent,
            "cpu": round(spent["cpu"] / forward["cpu"], 2),
            "wall": round(spent["measure"] / forward["wall"], 2),
        }
        say(f"{name}: {passes[name]}")
        reports[name] = report
    counts = {role: sum(r["role"] == role for r in reports["exact"]["rows"]) for role in ROLES}
    return {
        "model": asked.model,
        "windows": {"count": asked.samples, "tokens": asked.length},
        "removals": counts,
        "forward": forward,
        "passes": passes,
        "rank_correlation": _agreement(reports["exact"]["rows"], reports["fast"]["rows"]),
        "figures": figures(
            *(
                Figure(f"{name}: forward passes", passes[name]["cpu"], most=most)
                for name, most in MOST.items()
            )
        ),
    }


def _agreement(
    exact: Sequence[Mapping[str, Any]], fast: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Spearman's, between the estimates and the increases in loss and the divergences."""
    estimates = {row["name"]: row["estimate"] for row in fast}
    chosen = {"all": ROLES, **{role: (role,) for role in ROLES}}
    return {
        name: {
            by: _spearman(
                [row[by] for row in exact if row["role"] in roles],
                [estimates[row["name"]] for row in exact if row["role"] in roles],
            )
            for by in ("loss", "divergence")
        }
        for name, roles in chosen.items()
    }


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks; no two values of one list are the same."""
    import numpy as np

    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return round(float(np.corrcoef(*ranks)[0, 1]), 3)


def _forward(folder: Path, text: Path, samples: int, length: int) -> Document:
    """Seconds of one pass of the stock model over the windows that prunec takes."""
    import torch
    from transformers import AutoModelForCausalLM

    from prunec.options.prune import PruneOptions
    from prunec.planning.depth import single_windows
    from prunec.progress import Silent
    from prunec.runs.calibrating import calibrate
    from prunec.runs.loading import load

    loaded = load(str(folder), trust_remote_code=False, need_weights=False, progress=Silent())
    options = PruneOptions(
        str(folder),
        calibration=str(text),
        calibration_samples=samples,
        calibration_length=length,
    )
    windows = single_windows(calibrate(loaded, options, Silent()), samples)
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = [torch.from_numpy(window["input_ids"]) for window in windows]
    with torch.no_grad():
        network(input_ids=tokens[0], use_cache=False)
        wall, cpu = time.perf_counter(), time.process_time()
        for ids in tokens:
            network(input_ids=ids, use_cache=False)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "tokens": sum(ids.numel() for ids in tokens),
    }


if __name__ == "__main__":
    main(run)
