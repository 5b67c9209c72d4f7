"""Zeros without training: magnitude, Wanda and SparseGPT on SmolLM2.

    python benchmarks/sparse.py
    python benchmarks/sparse.py --sparsity 40% 2:4 --windows 4 --samples 16

SmolLM2-135M, dense and with 40 % of the weights of its blocks set to zero by each method, each
calibrated on WikiText-2 valid. On windows of WikiText-2 test, with transformers: the perplexity,
and the accuracy of the next token (`kept`: relative to that of the dense model). Promised: methods
with data lose less than magnitude.

The texts are looked for in `../shared/data` beside the checkout, or in --data-dir.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Document, Figure, data_file, figures, main, model, parser, prunec, say
from common import run as measured
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

METHODS = ("magnitude", "wanda", "sparsegpt")


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or model folder [smollm2]")
    add("--sparsity", nargs="+", default=["40%"], metavar="S", help="[40%%]")
    add("--data-dir", type=Path, help="folder of the texts [../shared/data]")
    add("--samples", type=int, default=128, metavar="N", help="windows of calibration [128]")
    add("--length", type=int, default=512, metavar="N", help="tokens in each of these [512]")
    add("--windows", type=int, default=20, metavar="N", help="windows of test [20]")
    add("--window", type=int, default=1024, metavar="N", help="tokens in each of these [1024]")
    asked = options.parse_args(arguments)
    text = data_file(asked.data_dir, "wikitext2-test.txt").read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(model(asked.model))(text, return_tensors="pt").input_ids
    windows = tokens[0, : asked.windows * asked.window].reshape(asked.windows, asked.window)
    dense = _evaluated(model(asked.model), windows)
    rows: list[Document] = [{"method": "dense", "sparsity": "0%", **dense, "kept": 1.0}]
    say(str(rows[0]))
    with tempfile.TemporaryDirectory(prefix="prunec-sparse-") as folder:
        for sparsity in asked.sparsity:
            for method in METHODS:
                row = _row(asked, Path(folder) / "out", sparsity, method, windows)
                rows.append(row | {"kept": round(row["accuracy"] / dense["accuracy"], 4)})
                say(str(rows[-1]))
    return {"rows": rows, "figures": figures(*_promised(rows))}


def _row(asked: Any, out: Path, sparsity: str, method: str, windows: torch.Tensor) -> Document:
    call = [
        *("sparsify", model(asked.model), "-o", out, "--overwrite", "--sparsity", sparsity),
        *("--method", method, "--format", "hf", "--json"),
    ]
    if method != "magnitude":
        call += [
            *("--calibration", data_file(asked.data_dir, "wikitext2-valid.txt")),
            *("--calibration-samples", str(asked.samples)),
            *("--calibration-length", str(asked.length)),
        ]
    made = measured(prunec(*call)).expect(0)
    return {
        "method": method,
        "sparsity": sparsity,
        **_evaluated(out / "hf", windows),
        "cpu_seconds": round(made.cpu_seconds, 1),
    }


def _evaluated(place: Path, windows: torch.Tensor) -> Document:
    """Perplexity and accuracy of the next token, each window on its own."""
    network = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    loss, right, count = 0.0, 0, 0
    with torch.inference_mode():
        for window in windows:
            logits, wanted = network(window[None]).logits[0, :-1], window[1:]
            loss += float(cross_entropy(logits, wanted, reduction="sum"))
            right += int((logits.argmax(-1) == wanted).sum())
            count += len(wanted)
    return {"perplexity": round(math.exp(loss / count), 3), "accuracy": round(right / count, 4)}


def _promised(rows: Sequence[Document]) -> Iterator[Figure]:
    found = {(row["sparsity"], row["method"]): row["perplexity"] for row in rows}
    for (sparsity, method), perplexity in found.items():
        if method in ("wanda", "sparsegpt"):
            times = found[sparsity, "magnitude"] / perplexity
            what = f"{sparsity}: how many times worse magnitude is than {method}"
            yield Figure(what, round(times, 3), least=1.0)


if __name__ == "__main__":
    main(run)
