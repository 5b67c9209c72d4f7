"""Low rank at equal parameters: activation-aware SVD, plain SVD, trained gates, neuron pruning.

    python benchmarks/lowrank.py --work ~/lowrank
    python benchmarks/lowrank.py --model minilm --shares 60 --ways all --work ~/lowrank
    python benchmarks/lowrank.py --shares 80 --samples 16 --windows 4 --work ~/lowrank

A model with 90, 80, 70 and 60 % of the parameters of its blocks, by `prunec factorize` (svd-llm and
svd, the same share of every matrix, and svd-llm with `--ranks energy`) and by `prunec prune` of
neurons, without training afterwards; and by factors that learn, with ranks of svd-llm and with
ranks that gates choose. Calibrated and trained on WikiText-2 valid. Perplexity, or where the model
is no language model the mean cosine of its outputs to the dense ones, is that of windows of
WikiText-2 test (`prunec eval` of the ONNX file). Promised: with data better than without at every
share, and gates within 2 % of their target. Rows are kept in --work, and the same command goes on
after the last of them.

The texts are looked for in `../shared/data` beside the checkout, or in --data-dir.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import (
    Document,
    Figure,
    cache,
    data_file,
    figures,
    main,
    model,
    parser,
    prunec,
    say,
    source_hash,
    speaks,
)
from common import run as measured

WAYS: dict[str, tuple[str, ...]] = {
    "svd-llm": ("factorize", "--method", "svd-llm"),
    "svd-llm, energy": ("factorize", "--method", "svd-llm", "--ranks", "energy"),
    "svd": ("factorize", "--method", "svd"),
    "neurons": ("prune", "--groups", "neuron"),
}
TRAINED: dict[str, tuple[str, ...]] = {
    "svd-llm, trained": ("factorize",),
    "gates, trained": ("factorize", "--ranks", "gates"),
}
LONGEST = 12
"""Characters of a text that a token is given: more than any stretch of it needs."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or model folder [smollm2]")
    add("--shares", nargs="+", type=int, default=[90, 80, 70, 60], metavar="PERCENT")
    names = [*WAYS, *TRAINED]
    add("--ways", nargs="+", default=list(WAYS), choices=[*names, "all"], metavar="WAY")
    add("--steps", type=int, default=200, metavar="N", help="of training, where there is any [200]")
    add("--work", type=Path, help="folder of rows [~/.cache/prunec/benchmarks/lowrank]")
    add("--data-dir", type=Path, help="folder of the texts [../shared/data]")
    add("--samples", type=int, default=64, metavar="N", help="windows of calibration [64]")
    add("--length", type=int, default=256, metavar="N", help="tokens in each of these [256]")
    add("--windows", type=int, default=8, metavar="N", help="windows of test [8]")
    add("--window", type=int, default=512, metavar="N", help="tokens in each of these [512]")
    asked = options.parse_args(arguments)
    work = asked.work or cache() / "lowrank"
    work.mkdir(parents=True, exist_ok=True)
    text = data_file(asked.data_dir, "wikitext2-test.txt").read_text(encoding="utf-8")
    (work / "text.txt").write_text(text[: asked.windows * asked.window * LONGEST])
    ways = names if "all" in asked.ways else asked.ways
    rows = [_row(asked, work, way, share) for share in asked.shares for way in ways]
    dense = _dense(asked, work)
    promised = figures(*_promised(rows))
    return {"model": asked.model, "dense": dense, "rows": rows, "figures": promised}


def _row(asked: Any, work: Path, way: str, share: int) -> Document:
    """One model, made and evaluated, or what was kept of it."""
    shape = (asked.samples, asked.length, asked.windows, asked.window)
    shape += (asked.steps,) if way in TRAINED else ()
    name = "-".join(map(str, (source_hash(), Path(asked.model).name, way, share, *shape)))
    kept = work / f"{name}.json"
    if kept.is_file():
        found: Document = json.loads(kept.read_text())
        return found
    out = work / "out"
    verb, *given = WAYS[way] if way in WAYS else (*TRAINED[way], "--steps", str(asked.steps))
    call = (
        *(verb, model(asked.model), "-o", out, "--overwrite", "--target", f"blocks={share}%"),
        *given,
        *("--calibration", data_file(asked.data_dir, "wikitext2-valid.txt")),
        *("--calibration-samples", str(asked.samples)),
        *("--calibration-length", str(asked.length), "--format", "onnx", "--json"),
    )
    finished = measured(prunec(*call)).expect(0)
    evaluated = _evaluated(asked, work, out / "onnx" / "model.onnx")
    row = {
        "way": way,
        "share": share,
        "params": evaluated["params"],
        **_quality(evaluated),
        "seconds": round(finished.seconds, 1),
        **_training(finished.json()),
    }
    say(str(row))
    kept.write_text(json.dumps(row))
    shutil.rmtree(out)
    return row


def _dense(asked: Any, work: Path) -> Document:
    row = _evaluated(asked, work, model(asked.model))
    return {"params": row["params"], **_quality(row)}


def _quality(row: Document) -> Document:
    return {"perplexity": row["perplexity"], "similarity": row["similarity"]}


def _training(report: Document) -> Document:
    """The size that was expected of gates, over the one that was wanted."""
    training = report["notes"].get("training", {})
    if "expected" not in training:
        return {}
    return {"expected_over_target": round(training["expected"] / training["target"], 4)}


def _evaluated(asked: Any, work: Path, place: Path) -> Document:
    call = (
        *("eval", place, "--tokenizer", model(asked.model), "--data", work / "text.txt"),
        *("--max-windows", str(asked.windows), "--window", str(asked.window), "--json"),
        *(() if speaks(model(asked.model)) else ("--against", model(asked.model))),
    )
    row: Document = measured(prunec(*call)).expect(0).json()["rows"][-1]
    return row


def _promised(rows: Sequence[Document]) -> Iterator[Figure]:
    found = {(row["way"], row["share"]): row for row in rows}
    for (way, share), row in found.items():
        plain = found.get(("svd", share))
        if way == "svd-llm" and plain is not None:
            what = f"{share} %: how many times worse svd is than svd-llm"
            yield Figure(what, round(_loss(plain) / _loss(row), 3), least=1.0)
        if "expected_over_target" in row:
            what = f"{share} %: how far from the target the gates end"
            yield Figure(what, round(abs(row["expected_over_target"] - 1), 4), most=0.02)


def _loss(row: Document) -> float:
    """What is better when it is less."""
    found = row["perplexity"] or 1 / max(row["similarity"], 1e-9)
    return float(found)


if __name__ == "__main__":
    main(run)
