"""Times on disk, so that no block is measured twice on one machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec import __version__

if TYPE_CHECKING:
    from prunec.timing.stopwatch import Stopwatch

__all__ = ["TimeTable", "machine", "table_for", "times_folder"]


@dataclass
class TimeTable:
    """Lists of numbers by key, in a JSON file that other runs may write too."""

    path: Path
    known: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = self._read()

    def get(self, key: str) -> list[float] | None:
        return self.known.get(key)

    def put(self, key: str, numbers: list[float]) -> None:
        """Keep numbers, beside what other runs have kept meanwhile."""
        self.known = self._read() | self.known | {key: numbers}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        partial.write_text(json.dumps(self.known, indent=0), encoding="utf-8")
        partial.replace(self.path)

    def _read(self) -> dict[str, list[float]]:
        """What is there; nothing when it is damaged, since it can be measured again."""
        try:
            found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {str(key): item for key, item in found.items() if _numbers(item)}


def _numbers(item: object) -> bool:
    return isinstance(item, list) and all(isinstance(x, int | float) and x > 0 for x in item)


def table_for(stopwatch: Stopwatch) -> TimeTable:
    """The table of this machine, of a runtime in its version, and of a number of threads."""
    threads = stopwatch.threads or "all"
    name = f"{stopwatch.runtime}-{stopwatch.version}-{threads}-{machine()}.json"
    return TimeTable(times_folder() / name)


def times_folder() -> Path:
    """In `PRUNEC_CACHE`, or in `prunec` in `XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PRUNEC_CACHE") or Path(base) / "prunec") / "times"


@cache
def machine() -> str:
    """Stands for the processor, the cores that this process may use, and who emits programs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = (platform.machine(), platform.system(), _processor(), cores, __version__)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.processor())
