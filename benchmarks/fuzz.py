"""Damaged files for every reader: what users hand to prunec, changed at random.

    python benchmarks/fuzz.py                          20,000 cases a reader, all readers
    python benchmarks/fuzz.py plan gguf --cases 500    some
    python benchmarks/fuzz.py plan --only 1234         one case again, alone

Real files (a configuration, safetensors in one file and in shards, GGUF, ONNX with external data,
a plan, a recipe, calibration data as text, JSON lines and arrays, a tokenizer) are damaged and read
as prunec reads them. Each case must be read or refused with a diagnostic. Failures are: any other
exception, a crash, more than 10 s of processor time or 2 GB of memory, a file touched outside of
the scratch folder, a pickle, a program that is started, a connection. One seed gives one set of
cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import ROOT, Document, Figure, figures, main, parser, say

sys.path.insert(0, str(ROOT / "tools"))

NAMES = ("plan", "safetensors", "recipe", "calibration", "tokenizer", "config", "onnx", "gguf")
AT_ONCE = 1000
"""Cases of one process: what a case leaves behind in memory does not pile up."""
STUCK = 60
"""Seconds without a new case after which a process is taken for dead."""
MOST_SHOWN = 20


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument("readers", nargs="*", metavar="READER", help=f"some of {', '.join(NAMES)}")
    options.add_argument("--cases", type=int, default=20_000, metavar="N", help="[%(default)s]")
    options.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    options.add_argument("--only", type=int, metavar="CASE", help="this case alone")
    asked = options.parse_args(arguments)
    if unknown := set(asked.readers) - set(NAMES):
        options.error(f"no reader {', '.join(sorted(unknown))}")
    first, count = (0, asked.cases) if asked.only is None else (asked.only, 1)
    rows = {name: _reader(name, first, count, asked.seed) for name in asked.readers or NAMES}
    found = []
    for name, row in rows.items():
        found.append(Figure(f"cases of {name}", row["cases"], least=count))
        found.append(Figure(f"failures of {name}", row["failed"], most=0))
    return {"seed": asked.seed, "readers": rows, "figures": figures(*found)}


def _reader(name: str, first: int, count: int, seed: int) -> Document:
    start = time.monotonic()
    totals: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    at, end = first, first + count
    while at < end:
        part = _worker(name, range(at, min(at + AT_ONCE, end)), seed)
        totals.update(cases=part["cases"], read=part["read"])
        refused.update(part["refused"])
        for number, what in part["failures"]:
            say(f"{name}: case {number}: {what}")
            failures.append((number, what))
        at = part["next"]
        seconds = time.monotonic() - start
        say(f"{name}: {totals['cases']:,} cases, {len(failures)} failures, {seconds:.0f} s")
    return {
        "cases": totals["cases"],
        "read": totals["read"],
        "refused": dict(refused.most_common()),
        "failed": len(failures),
        "failures": failures[:MOST_SHOWN],
        "seconds": round(time.monotonic() - start, 1),
    }


def _worker(name: str, cases: range, seed: int) -> Document:
    """Run cases in a process of their own; a case that kills it is a failure, and it goes on
    behind that one."""
    with tempfile.TemporaryDirectory(prefix="prunec-fuzz-") as scratch:
        result, heard = Path(scratch) / "result.json", Path(scratch) / "case"
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, str(cases.start), str(cases.stop),
             str(seed), scratch],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": scratch, "HF_HOME": scratch, "HOME": scratch},
        )  # fmt: skip
        code = _watched(process, heard)
        if result.exists():
            done: Document = json.loads(result.read_text(encoding="utf-8"))
            return {**done, "next": cases.stop}
        assert process.stderr is not None
        said = process.stderr.read().decode("utf-8", "replace")[-300:]
        if not heard.exists():
            raise SystemExit(f"{name}: the sound files are not read (exit code {code}): {said}")
        number = int(heard.read_text(encoding="utf-8"))
        # what the cases before it came to is lost with the process: they are run again without it
        before = (
            _worker(name, range(cases.start, number), seed) if number > cases.start else NOTHING
        )
        failures = [*before["failures"], (number, f"the process ended with {code}: {said}")]
        return {**before, "cases": before["cases"] + 1, "failures": failures, "next": number + 1}


NOTHING: Document = {"cases": 0, "read": 0, "refused": {}, "failures": []}


def _watched(process: subprocess.Popen[bytes], heard: Path) -> int | str:
    """The exit code; `stuck` when the process was killed because no new case came for long."""
    last, since = "", time.monotonic() + 600  # libraries are loaded first
    while True:
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            now = heard.read_text(encoding="utf-8") if heard.exists() else ""
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > STUCK:
                process.kill()
                process.wait()
                return "stuck"


def _work(name: str, start: str, stop: str, seed: str, scratch: str) -> None:
    """The worker: libraries first, then no way back out of the scratch folder."""
    from fuzzing import READERS, confine, fuzz

    from prunec.cli.console import hush

    hush()
    folder = Path(scratch)
    warm = folder / "warm"
    warm.mkdir()
    READERS[name].make(warm)
    READERS[name].read(warm)
    handle = os.open(folder / "case", os.O_CREAT | os.O_WRONLY)
    confine(folder)

    def told(number: int) -> None:
        os.pwrite(handle, f"{number:<12}".encode(), 0)

    found = fuzz(name, folder / "work", range(int(start), int(stop)), int(seed), told)
    document = {**vars(found), "refused": dict(found.refused)}
    (folder / "result.json").write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(*sys.argv[2:])
    else:
        main(run)
