"""Commands of an integration: run, told as they were typed, and with the end of what they said."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Steps", "far", "feeds", "size"]

SHOWN = 12
"""Lines of a command's output that are kept."""


class Steps:
    """What was run with the programs of this environment, in the folder `work`."""

    def __init__(self, model: str, work: str) -> None:
        self.model, self.work = Path(model), Path(work)
        self.done: list[dict[str, Any]] = []

    def run(self, *words: object, env: dict[str, str] | None = None, code: int = 0) -> str:
        """Run a command; raises SystemExit with what it said when it ends otherwise."""
        name, *rest = map(str, words)
        here = Path(sys.executable).parent
        path = f"{here}{os.pathsep}{os.environ['PATH']}"
        start = time.perf_counter()
        ended = subprocess.run(
            [str(here / name) if (here / name).exists() else name, *rest],
            cwd=self.work,
            env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        typed = " ".join([name, *rest]).replace(str(self.model), f"./{self.model.name}")
        lines = [re.sub(r"\s+$", "", line) for line in ended.stdout.splitlines() if line.strip()]
        step = {
            "command": typed.replace(f"{self.work}/", ""),
            "seconds": round(time.perf_counter() - start, 1),
            "output": lines[-SHOWN:],
        }
        self.done.append(step)
        if ended.returncode != code:
            raise SystemExit(f"{typed}: exit code {ended.returncode}\n{ended.stdout[-2500:]}")
        return ended.stdout

    def prune(self, *options: object, out: str = "small") -> Path:
        """`prunec prune` of the model by magnitude, which reads no data."""
        quick = ("--method", "magnitude", "--calibration", "none")
        self.run("prunec", "prune", self.model, "-o", out, *options, *quick)
        return self.work / out

    def tell(self, packages: Iterable[str], **findings: Any) -> None:
        """Print the one JSON document."""
        versions = {name: importlib.metadata.version(name) for name in ("prunec", *packages)}
        versions["python"] = sys.version.split()[0]
        print(json.dumps({"steps": self.done, "versions": versions, **findings}, default=float))


def feeds(names: Iterable[str], batch: int, length: int) -> dict[str, np.ndarray]:
    """Token ids and masks for inputs of these names."""
    ids = np.random.default_rng(0).integers(5, 1000, (batch, length))
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    made["token_type_ids"] = np.zeros_like(ids)
    return {name: made[name] for name in names}


def far(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def size(folder: Path) -> int:
    """Bytes of the files in a folder, or of a file."""
    files = [folder] if folder.is_file() else folder.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())
