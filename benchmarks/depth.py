"""Layers against widths: SmolLM2-135M with as many parameters less as 6 of its 30 layers have.

ShortGPT's and SLEB's orders take whole layers, `width` neurons and heads by the default method, and
`joint` lets both compete for one budget. All are calibrated on the same windows of WikiText-2
valid; perplexity is that of `prunec eval` on WikiText-2 test. Table `parameters` asks all of them
for the parameters, table `latency` for the speed that the model without six layers has: that is
measured first, in the runtime, as one layer takes as long as another. So the first two are those of
the first table there. Promised: the joint plan has the lowest perplexity.

Rows and tables can be split over several runs (--rows, --tables, --speed).

The texts are not part of the project; they are looked for in `../shared/data` beside the checkout,
or in --data-dir.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import Document, Figure, data_file, figures, main, model, parser, prunec, say
from common import run as measured

ROWS: dict[str, tuple[str, ...]] = {
    "joint": ("--groups", "layer,neuron,query_head,kv_head", "--layout", "per-layer"),
    "width": ("--groups", "neuron,query_head,kv_head", "--layout", "per-layer"),
    "sleb": ("--groups", "layer", "--depth", "sleb"),
    "shortgpt": ("--groups", "layer", "--depth", "shortgpt"),
}
LAYERED = ("shortgpt", "sleb")
TABLES = ("parameters", "latency")
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
    add("--tables", nargs="+", default=list(TABLES), choices=list(TABLES), metavar="TABLE")
    add("--runtime", default="onnxruntime", help="[onnxruntime]")
    add("--threads", default="1", metavar="N", help="that it is timed on [1]")
    add("--speed", metavar="FACTOR", help="of the model without the layers, not to be measured")
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
    timed = ("--runtime", asked.runtime, "--threads", asked.threads, "--length", "512")
    tables: dict[str, list[Document]] = {}
    if "parameters" in asked.tables:
        target = f"params={_worth(dense)}"
        rows = tables["parameters"] = []
        for name in sorted(asked.rows, key=list(ROWS).index):
            order = _order(rows) if name == "sleb" else []
            rows.append(_row(name, dense, ("--target", target, *how), evaluated, order))
    if "latency" in asked.tables:
        speed = asked.speed or _speed(dense, timed, how)
        target = f"speedup={speed}"
        tables["latency"] = [
            _row(name, dense, ("--target", target, *timed, *how), evaluated)
            for name in sorted(asked.rows, key=list(ROWS).index)
            if name not in LAYERED
        ]
        layered = [row for row in tables.get("parameters", ()) if row["row"] in LAYERED]
        tables["latency"] += [{**row, "speed": speed} for row in layered]
    promised = [
        Figure(f"perplexity, joint, same {name}", rows[0]["perplexity"], most=_best(rows[1:]))
        for name, rows in tables.items()
        if rows[0]["row"] == "joint" and len(rows) > 1
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
    return f"{(report['sizes']['params'] - LAYERS * layers[0]) / 1e6:.6f}M"


def _order(rows: Sequence[Document]) -> list[str]:
    """The layers that the joint plan considered, which are SLEB's on the same windows."""
    found = [row["depth"] for row in rows if row["row"] == "joint"]
    names = [str(step["removed"]) for step in found[0][1:]] if found else []
    return names[:LAYERS] if len(names) >= LAYERS else []


def _row(
    name: str,
    dense: Path,
    how: Sequence[object],
    evaluated: Sequence[object],
    order: Sequence[str] = (),
) -> Document:
    """One model; where the `order` in which layers go is known it is carried out."""
    folder = Path(tempfile.mkdtemp(prefix="prunec-depth-"))
    try:
        say(f"{name}: {how[1]}")
        chosen = (*ROWS[name], *how)
        if order:
            plan = {"version": 1, "removed": order, "parameters": {}}
            (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
            chosen = ("--plan", str(folder / "plan.json"), "--method", "magnitude")
        command = prunec("prune", dense, "-o", folder / "out", *chosen, "--json")
        finished = measured(command).expect(0)
        report = finished.json()
        return {
            "row": name,
            "perplexity": _perplexity(folder / "out" / "hf", evaluated),
            "params": report["pruned"]["params"],
            "removed": report["removed"],
            "time": report["notes"].get("time"),
            "depth": report["notes"].get("depth"),
            "targets": report["targets"],
            "seconds": round(finished.seconds, 1),
        }
    finally:
        shutil.rmtree(folder)


def _speed(dense: Path, timed: Sequence[str], how: Sequence[object]) -> str:
    """As fast as the model without so many layers is measured to be."""
    command = prunec(
        "prune", dense, "--dry-run", "--target", f"params={_worth(dense)}", "--target",
        "speedup=1.01x", *ROWS["shortgpt"], *timed, *how, "--json",
    )  # fmt: skip
    time = measured(command).expect(0).json()["notes"]["time"]
    say(f"without {LAYERS} layers: {time}")
    return f"{time['speedup']:.3f}x"


def _perplexity(folder: Path, evaluated: Sequence[object]) -> float:
    report = measured(prunec("eval", folder, *evaluated)).expect(0).json()
    return float(report["rows"][0]["perplexity"])


def _best(rows: Sequence[Document]) -> float:
    return min(float(row["perplexity"]) for row in rows)


if __name__ == "__main__":
    main(run)
