"""MiniLM-L6 and SmolLM2 as ONNX files of every exporter: the groups found, and law 1.

    python benchmarks/onnx_exports.py
    python benchmarks/onnx_exports.py --models minilm --ways dynamo legacy

Each model is exported by torch (dynamo and legacy), by transformers, and after the fusions for ONNX
Runtime of transformers and of onnxruntime.transformers (tools/exporters.py). Every file is then
inspected, and pruned by magnitude with `--verify`: the smaller file against the dense one with the
removed indices zeroed, both in ONNX Runtime, at two batch sizes and lengths.

Promised: the groups and what can go as a whole (role and size, with how many there are) that the
model itself has when it is traced with torch; law 1 at 1e-5. An exporter that cannot export a model
is told as such.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import ROOT, Document, Figure, figures, main, model, parser, prunec, say
from common import run as measured

MODELS = ("minilm", "smollm2")
WAYS = ("dynamo", "legacy", "transformers", "transformers-fused", "dynamo-fused", "legacy-fused")
ALLOWED = 1e-5


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="+", default=MODELS, metavar="MODEL", help="names or folders")
    add("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    add("--target", default="params=90%", help="[params=90%%]")
    add("--folder", type=Path, help="where the files are made [the system's]")
    asked = options.parse_args(arguments)
    rows: list[Document] = []
    for name in asked.models:
        wanted = _groups(str(model(name)))
        for way in asked.ways:
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                found = _row(model(name), way, asked.target, Path(folder))
            groups = found.pop("groups", None)
            if groups is not None:
                found["same_groups"] = groups == wanted
                found["missing"] = _told(wanted - groups)
                found["beside"] = _told(groups - wanted)
            rows.append({"model": name, "way": way, **found})
            say(f"{name}, {way}: {found}")
    done = [row for row in rows if "law_1" in row]
    other = sum(not row["same_groups"] for row in done)
    return {
        "rows": rows,
        "not_exported": [f"{r['model']}, {r['way']}" for r in rows if "exporter" in r],
        "figures": figures(
            Figure("files with other groups than the traced model", other, most=0),
            Figure("law 1, largest", max((r["law_1"] for r in done), default=None), most=ALLOWED),
        ),
    }


def _groups(path: str) -> Counter[tuple[str, int]]:
    found = measured(prunec("inspect", path, "--json")).expect(0).json()
    rows = [(group["role"], group["size"]) for group in found["groups"]]
    return Counter([*rows, *((region["role"], region["params"]) for region in found["regions"])])


def _told(groups: Counter[tuple[str, int]]) -> list[str]:
    return [f"{count} {role} of {size}" for (role, size), count in groups.items()]


def _row(dense: Path, way: str, target: str, folder: Path) -> Document:
    file, out = folder / "model.onnx", folder / "out"
    exporter = ROOT / "tools" / "exporters.py"
    made = measured((sys.executable, "-P", str(exporter), str(dense), way, str(file)))
    if made.exit_code:
        return {"exporter": made.stderr.strip().splitlines()[-1:]}
    groups = _groups(str(file))
    pruned = measured(
        prunec("prune", file, "-o", out, "--target", target, "--method", "magnitude",
               "--calibration", "none", "--verify", "--json")
    ).expect(0, 3).json()  # fmt: skip
    shutil.rmtree(out, ignore_errors=True)
    (law,) = (check["difference"] for check in pruned["checks"])
    return {
        "groups": groups,
        "law_1": law,
        "left": pruned["pruned"]["params"] / pruned["dense"]["params"],
        "seconds": round(made.seconds, 1),
    }


if __name__ == "__main__":
    main(run)
