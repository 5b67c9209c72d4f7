"""Try prunec on every model type that transformers registers, and write down what was found.

    python tools/coverage.py                      all types, one after the other
    python tools/coverage.py llama t5 swin        some of them, printed
    python tools/coverage.py --write docs         the pages, from the rows that there are

Each type is examined in a process of its own with a limit of time and memory. Rows are kept in a
file, one a line, and a run goes on where the last one stopped; rows found with other sources of
prunec are found anew (`--keep` keeps them).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coverage_page import mark, write_pages

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("ir", "passes", "frontends", "backends", "tools")
STATE = Path(os.environ.get("PRUNEC_ZOO", ROOT / "build" / "zoo.jsonl"))


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("models", nargs="*", metavar="MODEL", help="model types [all]")
    options.add_argument("--state", type=Path, default=STATE, metavar="FILE", help=f"[{STATE}]")
    options.add_argument("--seconds", type=int, default=90, help="of processor for a type [90]")
    options.add_argument("--gigabytes", type=float, default=8, help="for one type [8]")
    options.add_argument("--task", nargs="+", default=(), help="types of these tasks alone")
    options.add_argument("--keep", action="store_true", help="rows found with other sources too")
    options.add_argument("--write", type=Path, metavar="FOLDER", help="render the pages")
    asked = options.parse_args(arguments)
    if asked.write:
        from specimen import model_types

        write_pages(list(read(asked.state).values()), asked.write, len(model_types()))
        return
    _run(asked)


def _run(asked: argparse.Namespace) -> None:
    from coverage_row import coverage_of, quietly
    from specimen import model_types

    quietly()
    sources = source_hash()
    known = read(asked.state)
    types = model_types()
    asked_tasks = asked.task or dict.fromkeys(task for task, _ in types.values())
    wanted = asked.models or [
        kind for task in asked_tasks for kind, (of, _) in types.items() if of == task
    ]
    for kind in wanted:
        row = known.get(kind)
        if row and not asked.models and (asked.keep or row.get("sources") == sources):
            continue
        start = time.perf_counter()
        found = _apart(coverage_of, kind, asked.seconds, asked.gigabytes)
        seconds = round(time.perf_counter() - start, 2)
        row = {"model": kind, **found, "seconds": seconds, "sources": sources}
        _append(asked.state, row)
        print(told(row), file=sys.stderr, flush=True)


def source_hash() -> str:
    """What the rows depend on: every source file of the compiler and of this tool."""
    found = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def read(state: Path) -> dict[str, Row]:
    """The last row of each type."""
    if not state.exists():
        return {}
    lines = state.read_text(encoding="utf-8").splitlines()
    return {row["model"]: row for row in map(json.loads, lines)}


def _append(state: Path, row: Row) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


PATIENCE = 8
"""Times the seconds of processor that a process may take by the clock, on a busy machine."""


def _apart(work: Any, kind: str, seconds: int, gigabytes: float) -> Row:
    """The result of `work(kind)` in a process of its own, which is ended when it takes too much."""
    context = multiprocessing.get_context("fork")  # what was imported need not be imported again
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_limited, args=(work, kind, seconds, gigabytes, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds * PATIENCE):
            found: Row = ours.recv()
            return found
        return {"status": "stopped", "reason": f"not done after {seconds * PATIENCE} seconds"}
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return {"status": "stopped", "reason": f"not done after {seconds} s of processor"}
        return {"status": "stopped", "reason": f"the process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _limited(work: Any, kind: str, seconds: int, gigabytes: float, results: Connection) -> None:
    most = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    results.send(work(kind))


def told(row: Row) -> str:
    """A row as one line."""
    if "roles" not in row:
        return f"{row['model']:28} {row['status']}: {row.get('reason', '')[:120]}"
    roles = " ".join(f"{role}:{mark(held)}" for role, held in row["roles"].items())
    return f"{row['model']:28} {row['seconds']:5.1f} s {row['reachable']:.2f}  {roles}"


if __name__ == "__main__":
    main()
