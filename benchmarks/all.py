"""Every benchmark, one after the other, each as a process of its own.

    python benchmarks/all.py --out build/benchmarks

OUT gets NAME.json, what a benchmark printed, and NAME.log, what it told meanwhile. One that was
measured by the same sources before is not run again, unless it is named or --fresh is given. One
that fails does not stop the rest. Prints a summary: which figures were found and met. Nothing
else should run on the machine. Those that take long are run only when they are named: quality,
calibration_memory, survive and fuzz.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import Document, main, parser, say, source_hash

NAMES = (
    "startup",
    "typing_time",
    "inspect_7b",
    "large_magnitude",
    "calibrated_time",
    "prefill",
    "law",
    "perplexity",
    "matrix",
)
"""Those that measure time come first."""

LONG = (
    "quality", "calibration_memory", "survive", "fuzz", "recovery", "disk_7b", "onnx_stack",
    "onnx_fuzz", "torch_pruning_zoo", "onnx_nodes", "onnx_files", "onnx_exports", "onnx_rival",
    "quantised", "toolchain", "depth", "speedup", "footprint", "sensitivity", "compose",
    "lowrank", "sparse", "processes",
)  # fmt: skip
"""Run only when they are named: they take long."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    known = (*NAMES, *LONG)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}")
    options.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="[%(default)s]")
    options.add_argument("--fresh", action="store_true", help="measure all again")
    asked = options.parse_args(arguments)
    if unknown := set(asked.names) - set(known):
        options.error(f"no benchmark {', '.join(sorted(unknown))}")
    asked.out.mkdir(parents=True, exist_ok=True)
    sources = source_hash()
    rows = []
    for name in asked.names or NAMES:
        path = asked.out / f"{name}.json"
        kept = None if asked.fresh or asked.names else _kept(path, sources)
        rows.append(_row(name, kept or _measured(name, path)))
    found = [figure for row in rows for figure in row.get("figures", ())]
    failed = sum("error" in row for row in rows)
    return {"rows": rows, "failed": failed, "figures": found}


def _kept(path: Path, sources: str) -> Document | None:
    try:
        found: Document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found["environment"]["sources"] != sources:
        return None
    say(f"{path.stem}: measured before")
    return found


def _measured(name: str, path: Path) -> Document:
    say(f"{name} ...")
    start = time.perf_counter()
    log = path.with_suffix(".log")
    with log.open("wb") as stream:
        finished = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(f"{name}.py"))],
            stdout=subprocess.PIPE,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    say(f"{name}: {time.perf_counter() - start:.0f} s, exit code {finished.returncode}")
    if finished.returncode:
        return {"error": f"exit code {finished.returncode}", "log": str(log)}
    path.write_bytes(finished.stdout)
    found: Document = json.loads(finished.stdout)
    return found


def _row(name: str, found: Document) -> Document:
    kept = ("met", "figures", "seconds", "error", "log")
    return {"name": name, **{key: found[key] for key in kept if key in found}}


if __name__ == "__main__":
    main(run)
