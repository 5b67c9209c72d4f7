"""Layers against widths: SmolLM2-135M with as many parameters less as 6 of its 30 layers have.

ShortGPT's and SLEB's orders take whole layers, `width` neurons and heads by the default method, and
`joint` lets both compete for one budget. All are calibrated on the same windows of WikiText-2
valid; perplexity is that of `prunec eval` on WikiText-2 test. With --runtime the second table asks
all of them for the speed that SLEB's model is measured to have, in that runtime. Promised: the
joint plan has the lowest perplexity.

The texts are not part of the project; they are looked for in `../shared/data` beside the checkout,
or in --data-dir.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Document, Figure, data_file, figures, main, model, parser, prunec, say
from common import run as measured

ROWS: dict[str, tuple[str, ...]] = {
    "shortgpt": ("--groups", "layer", "--depth", "shortgpt"),
    "sleb": ("--groups", "layer", "--depth", "sleb"),
    "width": ("--groups", "neuron,query_head,kv_head", "--layout", "per-layer"),
    "joint": ("--groups", "layer,neuron,query_head,kv_head", "--layout", "per-layer"),
}
LAYERS = 6


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or model folder [smollm2]")
    add("--data-dir", type=Path, help="folder of the two texts [../shared/data]")
    add("--samples", type=int, default=64, metavar="N", help="windows to calibrate on [64]")
    add("--length", type=int, default=512, metavar="N", help="tokens in each [512]")
    add("--windows", type=int, default=10, metavar="N", help="of the test text [10]")
    add("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    add("--runtime", help="compare at the same measured latency too, in this runtime")
    asked = options.parse_args(arguments)
    dense = model(asked.model)
    text = data_file(asked.data_dir, "wikitext2-test.txt")
    evaluated = ("--data", text, "--max-windows", str(asked.windows), "--json")
    how = (
        *(
            "--calibration",
            data_file(asked.data_dir, "wikitext2-valid.txt"),
            "--calibration-samples",
        ),
        *(str(asked.samples), "--calibration-length", str(asked.length)),
    )
    tables = {"parameters": _table(asked.rows, dense, _worth(dense), (), how, evaluated)}
    if asked.runtime:
        timed = ("--runtime", asked.runtime, "--length", "512")
        target = _speed(dense, tables["parameters"], timed, how)
        tables["latency"] = _table(asked.rows, dense, target, timed, how, evaluated)
    promised = [
        Figure(f"perplexity, joint, same {name}", rows[-1]["perplexity"], most=_best(rows[:-1]))
        for name, rows in tables.items()
        if rows[-1]["row"] == "joint" and len(rows) > 1
    ]
    return {
        "model": asked.model,
        "calibration": {"windows": asked.samples, "tokens": asked.length},
        "dense": _perplexity(dense, evaluated),
        "tables": tables,
        "figures": figures(*promised),
    }


def _worth(dense: Path) -> str:
    """The parameters without so many layers."""
    report = measured(prunec("inspect", dense, "--json")).expect(0).json()
    layers = [region["params"] for region in report["regions"] if region["role"] == "layer"]
    return f"params={(report['sizes']['params'] - LAYERS * layers[0]) / 1e6:.4f}M"


def _table(
    rows: Sequence[str],
    dense: Path,
    target: str,
    more: Sequence[str],
    how: Sequence[object],
    evaluated: Sequence[object],
) -> list[Document]:
    return [_row(name, dense, ("--target", target, *more, *how), evaluated) for name in rows]


def _row(name: str, dense: Path, how: Sequence[object], evaluated: Sequence[object]) -> Document:
    folder = Path(tempfile.mkdtemp(prefix="prunec-depth-"))
    try:
        say(f"{name}: {how[1]}")
        command = prunec("prune", dense, "-o", folder / "out", *ROWS[name], *how, "--json")
        finished = measured(command).expect(0)
        report = finished.json()
        return {
            "row": name,
            "perplexity": _perplexity(folder / "out" / "hf", evaluated),
            "params": report["pruned"]["params"],
            "removed": report["removed"],
            "time": report["notes"].get("time"),
            "targets": report["targets"],
            "seconds": round(finished.seconds, 1),
        }
    finally:
        shutil.rmtree(folder)


def _speed(
    dense: Path, rows: Sequence[Document], timed: Sequence[str], how: Sequence[object]
) -> str:
    """As fast as the model of SLEB's order is, by its plan measured in the runtime."""
    gone = next((len(row["removed"]) for row in rows if row["row"] == "sleb"), LAYERS)
    command = prunec(
        "prune", dense, "--dry-run", "--target", f"speedup={30 / (30 - gone):.3f}x",
        *ROWS["sleb"], *timed, *how, "--json",
    )  # fmt: skip
    report = measured(command).json()
    return f"speedup={report['notes']['time']['speedup']:.3f}x"


def _perplexity(folder: Path, evaluated: Sequence[object]) -> float:
    report = measured(prunec("eval", folder, *evaluated)).expect(0).json()
    return float(report["rows"][0]["perplexity"])


def _best(rows: Sequence[Document]) -> float:
    return min(float(row["perplexity"]) for row in rows)


if __name__ == "__main__":
    main(run)
