"""prunec beside onnxsim 0.8.1 on the same ONNX files: valid or not, removed, cosine to dense.

    python benchmarks/onnx_rival.py
    python benchmarks/onnx_rival.py --models minilm --ways legacy --without-packages

The files are the exports of MiniLM-L6 and SmolLM2 (tools/exporters.py) and those inside of PyPI's
packages (see onnx_files.py). onnxsim is installed into an environment of its own; its passes for
attention heads and for channels and neurons run one after the other with `--share` of each to be
removed. prunec then prunes the same file by magnitude to as many parameters as onnxsim left, and
the same roles (`neuron`, `channel` ...); where that is all, or its file does not load or run, all
roles to what the same share of them leaves. Calibration, refitting and verification are left out:
this compares what is found.

`cosine` is that of all outputs together with those of the dense file, the mean over seeded inputs
of two sizes and three seeds. Promised: prunec's file is valid, and its cosine at least that of
onnxsim's wherever onnxsim's is valid and removed something.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import ROOT, Document, Figure, cache, figures, main, model, parser, prunec, say
from common import run as measured
from onnx_files import PACKAGES, wheel_files
from rival_home import rival

from prunec.frontends.onnx import read_onnx
from prunec.ir.diagnostics import PrunecError, fail
from prunec.measuring.feeds import Feeds
from prunec.measuring.onnx_feeds import seeded_feeds
from prunec.measuring.runners import Runner, open_onnx

RIVAL = "onnxsim==0.8.1"
MODELS, WAYS = ("minilm", "smollm2"), ("dynamo", "legacy")
SEEDS = 3
PRUNED = ("neuron", "channel", "query_head", "kv_head", "head_dim")

SCRIPT = """
import sys, onnx
from onnxsim.pruning import apply_attention_head_pruning, apply_structured_pruning
model = onnx.load(sys.argv[1])
for apply in (apply_attention_head_pruning, apply_structured_pruning):
    model = apply(model, sparsity=float(sys.argv[3]))
large = model.ByteSize() > 1 << 30
onnx.save(model, sys.argv[2], save_as_external_data=large, location="rival.data")
"""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--models", nargs="*", default=MODELS, metavar="MODEL", help="names or folders")
    add("--ways", nargs="*", default=WAYS, metavar="WAY", help="see tools/exporters.py")
    add("--without-packages", action="store_true", help="leave the files of PyPI out")
    add("--share", type=float, default=0.3, help="of heads, channels and neurons to remove [0.3]")
    add("--cache", type=Path, help="folder for the rival and the wheels [~/.cache/prunec/...]")
    asked = options.parse_args(arguments)
    python = rival(cache(asked.cache), RIVAL, "onnxsim.pruning")
    packages = () if asked.without_packages else PACKAGES
    rows = []
    with tempfile.TemporaryDirectory(dir=cache(asked.cache)) as scratch:
        for name, file in _files(asked.models, asked.ways, packages, asked.cache, Path(scratch)):
            row = {"file": name, **_row(file, python, asked.share, Path(scratch) / "out")}
            say(f"{name}: {row}")
            rows.append(row)
    behind = [row["file"] for row in rows if not _ahead(row)]
    return {
        "rows": rows,
        "behind": behind,
        "figures": figures(Figure("files on which prunec is behind", len(behind), most=0)),
    }


def _ahead(row: Document) -> bool:
    ours, theirs = row["prunec"], row["onnxsim"]
    if not ours["valid"]:
        return bool(ours.get("nothing")) and not theirs["removed"]
    compared = theirs["valid"] and theirs["removed"]
    return not compared or bool(ours["cosine"] >= theirs["cosine"])


def _files(
    models: Iterable[str], ways: Iterable[str], packages: Iterable[str], folder: Path | None,
    scratch: Path,
) -> Iterator[tuple[str, Path]]:  # fmt: skip
    for name in models:
        for way in ways:
            out = scratch / f"{way}.onnx"
            exporter = ROOT / "tools" / "exporters.py"
            measured((sys.executable, "-P", str(exporter), str(model(name)), way, str(out))).expect(
                0
            )
            yield f"{name}, {way}", out
            for file in scratch.glob(f"{way}.onnx*"):
                file.unlink()
    for package in packages:
        for file in wheel_files(package, cache(folder) / "onnx-files"):
            yield f"{package}, {file.name}", file


def _row(file: Path, python: Path, share: float, out: Path) -> Document:
    out.mkdir()
    try:
        dense = Dense(file)
        pruned = out / "rival.onnx"
        made = measured((str(python), "-P", "-c", SCRIPT, str(file), str(pruned), str(share)))
        if made.exit_code:
            theirs: Document = {"valid": False, "removed": 0, "said": _last(made.stderr)}
        else:
            theirs = dense.beside(pruned)
        left = dense.params - theirs["removed"] if theirs["valid"] else dense.params
        roles = _roles(file, pruned) if theirs["valid"] else []
        ours = _ours(file, dense, left, share, roles, out)
    finally:
        shutil.rmtree(out)
    return {"params": dense.params, "prunec": ours, "onnxsim": theirs}


def _roles(dense: Path, pruned: Path) -> list[str]:
    """What prunec calls the groups whose weights have lost something in the other file."""
    before, after = _shapes(dense), _shapes(pruned)
    smaller = {name for name, shape in before.items() if after.get(name, shape) != shape}
    told = measured(prunec("inspect", dense, "--json")).expect(0).json()
    found = (g["role"] for g in told["groups"] if smaller & {name for name, _ in g["places"]})
    return sorted({role for role in found if role in PRUNED})


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    graph = onnx.load(file, load_external_data=False).graph
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants = [node for node in graph.node if node.op_type == "Constant"]
    return stored | {n.output[0]: tuple(a.t.dims) for n in constants for a in n.attribute}


def _ours(
    file: Path, dense: Dense, left: int, share: float, roles: Sequence[str], out: Path
) -> Document:
    """To as many parameters; the target counts more than floats in initializers, so by share."""
    percent = 100 * left / dense.params if left < dense.params else 100 * (1 - share / 2)
    groups = ("--groups", ",".join(roles)) if roles else ()
    finished = measured(
        prunec("prune", file, "-o", out / "ours", "--target", f"params={percent:.2f}%", "--method",
               "magnitude", "--calibration", "none", "--json", *groups)
    )  # fmt: skip
    if finished.exit_code not in (0, 3) or not (out / "ours").exists():
        told = _last(finished.stderr, "error[")
        return {"valid": False, "removed": 0, "said": told, "nothing": "P40" in told}
    return dense.beside(out / "ours" / "onnx" / "model.onnx")


def _last(text: str, begins: str = "") -> str:
    lines = [line for line in text.strip().splitlines() if line.startswith(begins)]
    return lines[-1][:300] if lines else ""


class Dense:
    """A file with what it gives for a few inputs."""

    def __init__(self, file: Path) -> None:
        runner, graph = open_onnx(file), read_onnx(file).graph
        self.params = runner.params
        self.feeds: list[Feeds] = []
        for seed in range(SEEDS):
            self.feeds += seeded_feeds(graph, runner.run, seed, file.name)
        self.outputs = [_flat(runner.run(feeds)) for feeds in self.feeds]

    def beside(self, file: Path) -> Document:
        try:
            found = open_onnx(file)
            cosine = float(np.mean([self._cosine(found, i) for i in range(len(self.feeds))]))
        except PrunecError as error:
            return {"valid": False, "removed": 0, "said": error.diagnostics[0].message[:300]}
        return {"valid": True, "removed": self.params - found.params, "cosine": round(cosine, 6)}

    def _cosine(self, found: Runner, i: int) -> float:
        a, b = self.outputs[i], _flat(found.run(self.feeds[i]))
        if a.shape != b.shape:
            raise fail("P855", "outputs have other shapes than those of the dense file")
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1.0))


def _flat(outputs: dict[str, Any]) -> Any:
    kept = [np.asarray(x, np.float64).ravel() for x in outputs.values() if x.dtype.kind == "f"]
    return np.concatenate(kept)


if __name__ == "__main__":
    main(run)
