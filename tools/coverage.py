"""Try prunec on every model type that transformers registers, and write down what was found.

    python tools/coverage.py                      all types, one after the other
    python tools/coverage.py llama t5 swin        some of them, printed
    python tools/coverage.py --write docs         the pages, from the rows that there are, any time

Each type is examined in a process of its own with a limit of time and memory. Rows are kept in a
file, one a line, and a run goes on where the last one stopped: first the types that were never
tried, then those whose row was found with other sources of prunec (`--keep` leaves these). Types
from whose code transformers makes many others come before the rest, and all kinds of tasks take
turns, so that a run that is stopped early has met most of what there is to meet.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coverage_page import mark, write_pages

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("ir", "passes", "frontends", "backends", "tools")
STATE = Path(os.environ.get("PRUNEC_ZOO", ROOT / "build" / "zoo.jsonl"))
RIVAL = "torch_pruning.jsonl"
"""Beside the rows: what `benchmarks/torch_pruning_zoo.py` found."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("models", nargs="*", metavar="MODEL", help="model types [all]")
    options.add_argument("--state", type=Path, default=STATE, metavar="FILE", help=f"[{STATE}]")
    options.add_argument("--seconds", type=int, default=300, help="of processor for a type [300]")
    options.add_argument("--gigabytes", type=float, default=8, help="for one type [8]")
    options.add_argument("--task", nargs="+", default=(), help="types of these tasks alone")
    options.add_argument("--keep", action="store_true", help="rows found with other sources too")
    options.add_argument("--write", type=Path, metavar="FOLDER", help="render the pages")
    asked = options.parse_args(arguments)
    if asked.write:
        from specimen import model_types

        rows = beside(read(asked.state), read(asked.state.with_name(RIVAL)))
        write_pages(rows, asked.write, len(model_types()))
        return
    _run(asked)


def _run(asked: argparse.Namespace) -> None:
    from coverage_row import coverage_of, quietly, warm_up
    from specimen import model_types

    quietly()
    sources = source_hash()
    known = read(asked.state)
    types = model_types()
    tasks = set(asked.task) or {task for task, _ in types.values()}
    wanted = asked.models or [
        kind
        for kind in in_order({kind: task for kind, (task, _) in types.items() if task in tasks})
        if kind not in known or not (asked.keep or known[kind].get("sources") == sources)
    ]
    if wanted:
        warm_up()
        gc.freeze()  # what is shared with the processes to come stays untouched in them
    for kind in sorted(wanted, key=lambda kind: kind in known and not asked.models):
        start = time.perf_counter()
        found = apart(coverage_of, kind, asked.seconds, asked.gigabytes)
        seconds = round(time.perf_counter() - start, 2)
        row = {"model": kind, **found, "seconds": seconds, "sources": sources}
        append(asked.state, row)
        print(told(row), file=sys.stderr, flush=True)


def in_order(types: Mapping[str, str]) -> list[str]:
    """Types (with their tasks) from whose code most others are made first, then in turns one of
    each task."""
    made = _descendants()
    turns: Counter[str] = Counter()
    order = []
    for kind, task in types.items():
        order.append((-made[kind.replace("-", "_")], turns[task], kind))
        turns[task] += 1
    return [kind for *_, kind in sorted(order, key=lambda entry: entry[:2])]


def _descendants() -> Counter[str]:
    """Of how many types the code of each model was taken over, as transformers' sources say."""
    from transformers import models

    found: Counter[str] = Counter()
    for path in Path(models.__path__[0]).glob("*/modular_*.py"):
        text = path.read_text(encoding="utf-8")
        found.update(set(re.findall(r"^from \.\.(\w+)\.modeling", text, re.MULTILINE)))
    return found


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
    found = {}
    for line in state.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off when a run was killed
            continue
        found[row["model"]] = row
    return found


def beside(rows: Mapping[str, Row], rival: Mapping[str, Row]) -> list[Row]:
    """The rows, with what the rival did to the same models."""
    return [
        row | ({"rival": rival[kind]["roles"]} if "roles" in rival.get(kind, {}) else {})
        for kind, row in rows.items()
    ]


def append(state: Path, row: Row) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


PATIENCE = 8
"""Times the seconds of processor that a process may take by the clock, on a busy machine."""


def apart(work: Any, kind: str, seconds: int, gigabytes: float) -> Row:
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
