"""Work in several processes, and in processes that die, against the same in one that lives.

`torchrun`: SmolLM2 calibrated and pruned by two ranks of one thread and by one process of two; the
plans must be the same, how far the refitted weights differ is stated, and both times on the wall.
`ray`: `prunec sensitivity --engine ray` with two local workers, of which one is killed when it has
measured for a while; the table must be that of one process, bit for bit (all on one thread).
`kills`: a recovery by LoRA that is killed with SIGKILL again and again at random moments and
resumed; it must end with the bytes and the loss of one that nobody killed (one thread).

Which of them is said by --parts. The texts are looked for in `../shared/data`, or in --data-dir.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from common import Document, Figure, data_file, figures, main, model, parser, prunec, say
from common import run as measured
from safetensors.numpy import load_file

PARTS = ("torchrun", "ray", "kills")
ONE = {"OMP_NUM_THREADS": "1"}
WORKING = b"ray::_Worker.do"
"""The title of a worker that has a piece."""


def run(arguments: Sequence[str] | None = None) -> Document:
    options = parser(__doc__)
    add = options.add_argument
    add("--model", default="smollm2", help="a name or a folder [smollm2]")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--samples", type=int, default=64, metavar="N", help="windows to calibrate on [64]")
    add("--length", type=int, default=512, metavar="N", help="tokens in each [512]")
    add("--windows", type=int, default=4, metavar="N", help="of 256 tokens, for the sweep [4]")
    add("--kill-after", type=float, default=20, metavar="S", help="seconds of a worker [20]")
    add("--kills", type=int, default=10, metavar="N", help="of the recovery [10]")
    add("--steps", type=int, default=60, metavar="N", help="of the recovery [60]")
    add("--seed", type=int, default=0, help="of the moments to kill at [0]")
    add("--data-dir", type=Path, help="folder of wikitext2-valid.txt [../shared/data]")
    asked = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="prunec-processes-") as work:
        bench = _Bench(asked, Path(work))
        found = {part: getattr(bench, part)() for part in asked.parts}
    same = {part: float(row["same"]) for part, row in found.items()}
    return {
        "rows": found,
        "figures": figures(
            *(Figure(f"{part}: as in one", x, least=1.0) for part, x in same.items())
        ),
    }


class _Bench:
    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked, self.work, self.dense = asked, work, model(asked.model)
        self.text = data_file(asked.data_dir, "wikitext2-valid.txt")

    # -- ranks ------------------------------------------------------------------------------

    def torchrun(self) -> Document:
        launcher = (
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "prunec"),
        )
        asked, seconds = self.asked, {}
        for name, command, threads in (("one", prunec(), "2"), ("two", launcher, "1")):
            words = (
                *(*command, "prune", self.dense, "-o", self.work / name, "--target", "blocks=70%"),
                *("--method", "auto", "--layout", "per-layer", "--calibration", self.text),
                *("--calibration-samples", str(asked.samples)),
                *("--calibration-length", str(asked.length), "--json"),
            )
            finished = measured(words, environment={"OMP_NUM_THREADS": threads}).expect(0)
            seconds[name] = round(finished.seconds, 1)
            say(f"{name}: {finished.seconds:.0f} s")
        plans = [self._json(name, "plan.json") for name in ("one", "two")]
        ours, theirs = (
            load_file(self.work / name / "hf" / "model.safetensors") for name in ("one", "two")
        )
        same = plans[0] == plans[1] and ours.keys() == theirs.keys()
        apart = max((_apart(ours[n], theirs[n]) for n in ours), default=0.0) if same else None
        return {"same": same, "wall_seconds": seconds, "largest_difference_of_weights": apart}

    def _json(self, *place: str) -> Document:
        found: Document = json.loads(self.work.joinpath(*place).read_text(encoding="utf-8"))
        return found

    # -- workers ----------------------------------------------------------------------------

    def ray(self) -> Document:
        asked = self.asked
        command = prunec(
            *("sensitivity", self.dense, "--groups", "sublayer,layer", "--json"),
            *("--calibration", self.text, "--calibration-samples", str(asked.windows)),
            *("--calibration-length", "256"),
        )
        alone = measured(command, environment=ONE).expect(0)
        say(f"one process: {alone.seconds:.0f} s")
        killed: list[int] = []
        killer = threading.Thread(target=_kill, args=(asked.kill_after, killed), daemon=True)
        killer.start()
        words = (*command, "--engine", "ray", "--workers", "2")
        shared = measured(words, environment=ONE).expect(0)
        say(f"two workers, {len(killed)} killed: {shared.seconds:.0f} s")
        tables = [report.json()["rows"] for report in (alone, shared)]
        return {
            "same": tables[0] == tables[1] and len(killed) == 1,
            "rows": len(tables[0]),
            "killed": len(killed),
            "wall_seconds": {"one": round(alone.seconds, 1), "two": round(shared.seconds, 1)},
        }

    # -- kills ------------------------------------------------------------------------------

    def kills(self) -> Document:
        asked, small = self.asked, self.work / "small"
        measured(
            prunec(
                *("prune", self.dense, "-o", small, "--target", "blocks=60%", "--json"),
                *("--method", "magnitude", "--layout", "per-layer", "--calibration", "none"),
            )
        ).expect(0)
        given = (
            *("recover", small, "--teacher", self.dense, "--data", self.text, "--resume", "--json"),
            *("--steps", str(asked.steps), "--batch", "2", "--length", "128"),
            *("--save-every", str(max(1, asked.steps // 12))),
        )
        whole = measured(prunec(*given, "-o", self.work / "whole"), environment=ONE).expect(0)
        say(f"not killed: {whole.seconds:.0f} s")
        out, rng = self.work / "killed", random.Random(asked.seed)
        deaths = 0
        for _ in range(asked.kills):
            least = whole.seconds - whole.json()["seconds"]["train"]
            moment = least + rng.random() * (whole.seconds - least) / 3
            ended = measured(prunec(*given, "-o", out), environment=ONE, timeout=moment)
            deaths += ended.exit_code == -signal.SIGKILL
            say(f"killed after {moment:.0f} s" if ended.exit_code else "it had ended")
            if ended.exit_code == 0:
                break
        else:
            ended = measured(prunec(*given, "-o", out), environment=ONE).expect(0)
        ours, theirs = (
            (folder / "hf" / "model.safetensors").read_bytes()
            for folder in (self.work / "whole", out)
        )
        losses = [report.json()["after"] for report in (whole, ended)]
        return {"same": ours == theirs and losses[0] == losses[1], "kills": deaths, "loss": losses}


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


def _kill(after: float, killed: list[int]) -> None:
    """Kill a worker that this process has started, so many seconds after one has begun."""
    while not any(True for _ in _working()):
        time.sleep(0.5)
    time.sleep(after)
    for pid in _working():
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        return


def _working() -> Iterator[int]:
    for place in Path("/proc").iterdir():
        try:
            if (place / "cmdline").read_bytes().startswith(WORKING) and _ours(int(place.name)):
                yield int(place.name)
        except (OSError, ValueError):  # no process, or one that has just ended
            continue


def _ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        pid = int(stat.rpartition(")")[2].split()[1])
    return pid == os.getpid()


if __name__ == "__main__":
    main(run)
