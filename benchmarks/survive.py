"""Runs of `prunec prune` that are killed, starved and crowded: what they leave, what they say.

    python benchmarks/survive.py                 50 kills, then every fault
    python benchmarks/survive.py --kills 5 --seed 3

A random Llama of three layers is pruned with calibration and `--resume`. Each kill is a SIGKILL at
a random moment of that run. Afterwards the output must be absent or complete. The same command is
then killed again, five times in all, and let go at last: it must finish with the very bytes of a
run that nobody killed, and leave nothing else behind. These runs start with their libraries
loaded, so that the moments fall into the work. The faults: a full disk (a small tmpfs), a read-only
one, a folder that may not be written, two runs with one output, Ctrl-C, SIGTERM and too little
memory at several limits. Each must end with the right exit code, one message and no traceback, and
leave no half of an output. Needs Linux, and a root that may mount.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from common import Document, Figure, cache, command_line, figures, main, parser, prunec, say
from random_llama import random_llama
from survivors import Ended, forked, launch, line, ran, wait

RESULT = ("hf/model.safetensors", "hf/config.json", "plan.json")
"""What must be the same bytes in every run."""
WHOLE = (*RESULT, "recipe.yaml", "report.json", "report.html", "README.md")
LIMITS = (300, 500, 700, 900, 1100, 1500, 2500)
"""Megabytes of address space: from too little for the interpreter's libraries to nearly enough."""
IN_A_ROW = 5
"""Kills before a run is let go."""
HUMBLE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Before a command of root: it heeds the rights of files like anybody."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=50, metavar="N", help="[%(default)s]")
    options.add_argument("--seed", type=int, default=0, help="of the moments [%(default)s]")
    options.add_argument("--faults", nargs="*", metavar="FAULT", help="some of them [all]")
    options.add_argument("--cache-dir", type=Path, help="where the model is kept")
    asked = options.parse_args(arguments)
    model = random_llama(cache(asked.cache_dir), "tiny", "float32")
    with tempfile.TemporaryDirectory(prefix="prunec-survive-") as scratch:
        wanted, seconds = _reference(model, Path(scratch) / "reference")
        say(f"an undisturbed run takes {seconds:.1f} s")
        rng = random.Random(asked.seed)
        kills: list[Document] = []
        while len(kills) < asked.kills:
            count = min(IN_A_ROW, asked.kills - len(kills))
            moments = [rng.uniform(0, seconds) for _ in range(count)]
            kills += _chain(model, Path(scratch) / f"chain-{len(kills)}", moments, wanted)
        chosen = [(n, f) for n, f in FAULTS if asked.faults is None or n in asked.faults]
        faults = {name: _judged(name, fault(model, Path(scratch))) for name, fault in chosen}
    survived = sum(kill["survived"] for kill in kills)
    handled = sum(fault["handled"] for fault in faults.values())
    return {
        "command": command_line(prunec(*line("MODEL", "OUT"))),
        "seconds_undisturbed": round(seconds, 1),
        "kills": kills,
        "stages": _counted(kill["found"] for kill in kills),
        "faults": faults,
        "figures": figures(
            Figure("kills survived", survived, least=asked.kills),
            Figure("faults handled", handled, least=len(chosen)),
        ),
    }


# -- kills ------------------------------------------------------------------------------------


def _reference(model: Path, folder: Path) -> tuple[dict[str, str], float]:
    """The hashes of an undisturbed run, and how long one takes with its libraries loaded."""
    for name, start in (("first", ran), ("second", forked)):
        found = start(model, folder / name / "out")
        if found.code != 0:
            raise SystemExit(f"the undisturbed run ended with {found.code}:\n{found.stderr}")
    first, second = (_hashes(folder / name / "out") for name in ("first", "second"))
    assert first == second, "two undisturbed runs differ"
    return first, found.seconds


def _chain(
    model: Path, folder: Path, moments: Sequence[float], wanted: Mapping[str, str]
) -> list[Document]:
    """Runs that are killed one after the other, and one that finishes what they began. When that
    one does not, none of the kills before it was survived."""
    out = folder / "out"
    rows: list[Document] = []
    for moment in moments:
        shutil.rmtree(out, ignore_errors=True)  # of a run that was faster than its end
        killed = forked(model, out, (moment, signal.SIGKILL))
        sound = not out.exists() or (_hashes(out) == wanted and _complete(out))
        told = {"moment": round(moment, 3), "found": _state(folder, killed), "left": killed.left}
        rows.append({**told, "survived": sound})
        say(f"killed after {moment:5.2f} s, {told['found']}: {'sound' if sound else 'BROKEN'}")
    shutil.rmtree(out, ignore_errors=True)
    last = forked(model, out)
    whole = last.code == 0 and _hashes(out) == wanted and _complete(out) and last.left == ("out",)
    say(f"resumed: {'the same bytes' if whole else f'NOT AS IT SHOULD BE: {last}'}")
    return [{**row, "survived": row["survived"] and whole} for row in rows]


def _state(folder: Path, killed: Ended) -> str:
    """What the kill met, from what it left."""
    if killed.code != -signal.SIGKILL:
        return "finished before"
    steps = sorted(p.stem for p in folder.glob(".out.prunec-state/*.npz"))
    stage = any(name.startswith(".out.prunec-") and name[-1].isdigit() for name in killed.left)
    if steps:
        return f"{len(steps)} steps saved"
    return "nothing saved" if stage else "nothing written"


def _hashes(out: Path) -> dict[str, str]:
    files = [out / name for name in RESULT if (out / name).is_file()]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _complete(out: Path) -> bool:
    if not all((out / name).is_file() for name in WHOLE):
        return False
    json.loads((out / "report.json").read_text(encoding="utf-8"))
    return True


# -- faults -----------------------------------------------------------------------------------


def _full_disk(model: Path, scratch: Path) -> list[tuple[Ended, set[int]]]:
    """The model's weights alone are larger than the disk."""
    with _mounted(scratch / "small", "size=200k") as disk:
        return [(ran(model, disk / "out"), {1})]


def _read_only_disk(model: Path, scratch: Path) -> list[tuple[Ended, set[int]]]:
    with _mounted(scratch / "frozen", "size=1m,ro") as disk:
        return [(ran(model, disk / "out"), {1, 2})]


def _forbidden_folder(model: Path, scratch: Path) -> list[tuple[Ended, set[int]]]:
    """Root may write everywhere, unless it gives up that right."""
    folder = scratch / "forbidden"
    folder.mkdir()
    folder.chmod(0o555)
    return [(ran(model, folder / "out", before=HUMBLE if os.geteuid() == 0 else ()), {2})]


def _two_at_once(model: Path, scratch: Path) -> list[tuple[Ended, set[int]]]:
    """The second is turned away while the first goes on and finishes."""
    folder = scratch / "crowded"
    first = launch(model, folder / "out")
    lock = folder / ".out.prunec-lock"
    until = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < until:
        time.sleep(0.05)
    second = ran(model, folder / "out")
    ended = wait(first, folder)
    if ended.code != 0 or not _complete(folder / "out") or ended.left != ("out",):
        raise SystemExit(f"the run that was first did not finish:\n{ended.stderr}")
    return [(Ended(second.code, second.seconds, second.stderr, ()), {2})]


def _interrupted(number: signal.Signals, code: int) -> Fault:
    def fault(model: Path, scratch: Path) -> list[tuple[Ended, set[int]]]:
        """At several moments, from while libraries are loaded to while files are written. A run
        may be faster than the last ones."""
        found = []
        for part in (0.15, 0.4, 0.6, 0.8, 0.9):
            folder = scratch / f"signal-{number}-{part}"
            moment = part * _duration(model, scratch)
            codes = {code, 0} if part >= 0.8 else {code}
            found.append((ran(model, folder / "out", interrupt=(moment, number)), codes))
        return found

    return fault


def _little_memory(model: Path, scratch: Path) -> list[tuple[Ended, set[int]]]:
    return [
        (ran(model, scratch / f"memory-{limit}" / "out", megabytes=limit), {1, 0})
        for limit in LIMITS
    ]


Fault = Callable[[Path, Path], list[tuple[Ended, set[int]]]]
FAULTS: Sequence[tuple[str, Fault]] = (
    ("disk full", _full_disk),
    ("disk read-only", _read_only_disk),
    ("folder that may not be written", _forbidden_folder),
    ("two runs with one output", _two_at_once),
    ("Ctrl-C", _interrupted(signal.SIGINT, 130)),
    ("SIGTERM", _interrupted(signal.SIGTERM, 143)),
    ("too little memory", _little_memory),
)


def _judged(name: str, found: list[tuple[Ended, set[int]]]) -> Document:
    """Whether every run ended as it must: one message for each that failed, and no half output."""
    rows = []
    for ended, codes in found:
        said = ended.errors == (0 if ended.code == 0 else 1) and not ended.unhandled
        # `--resume` keeps its state where it is named; all else must be gone
        clean = set(ended.left) <= {".out.prunec-state"} or (ended.code == 0)
        handled = ended.code in codes and said and clean
        message = next((s for s in ended.stderr.splitlines() if s.startswith("error[")), "")
        rows.append(
            {"code": ended.code, "message": message, "left": ended.left, "handled": handled}
        )
        if not handled:
            say(f"{name}: code {ended.code}, left {ended.left}\n{ended.stderr}")
    done = all(row["handled"] for row in rows)
    say(f"{name}: {'handled' if done else 'NOT HANDLED'}")
    return {"handled": done, "runs": rows}


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False
    )
    if made.returncode != 0:
        raise SystemExit(
            "a tmpfs cannot be mounted here: run this as root, in a container of its own"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _duration(model: Path, scratch: Path) -> float:
    """Of an undisturbed run, measured once."""
    note = scratch / "duration"
    if not note.exists():
        note.write_text(str(ran(model, scratch / "timed" / "out").seconds), encoding="utf-8")
    return float(note.read_text(encoding="utf-8"))


def _counted(found: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in found:
        counts[name] = counts.get(name, 0) + 1
    return counts


if __name__ == "__main__":
    main(run)
