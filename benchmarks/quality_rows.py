"""What quality.py measures: settings, rows and their order, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common import ROOT, Document

__all__ = ["DENSE", "FIRST", "Kept", "Row", "Setting", "order"]

FIRST = (80, 60)
"""Shares that are measured before the others."""
DENSE = "dense"
SHORTER = 8
"""An encoder reads as many tokens as a language model, in windows shorter by this."""
SOURCES = ("ir", "passes", "frontends", "backends", "src")


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    samples: int
    length: int
    windows: int
    window: int
    layout: str

    def evaluated(self, encoder: bool) -> tuple[str, ...]:
        """Options of `prunec eval`."""
        by = min(SHORTER, self.window // 2) if encoder else 1
        windows, window = self.windows * by, self.window // by
        return ("--max-windows", str(windows), "--window", str(window), "--json")


@dataclass(frozen=True)
class Row:
    """What is to be done; `method` is a preset, or `dense` at 100 %."""

    model: str
    share: int
    method: str

    @property
    def label(self) -> str:
        name = Path(self.model).name
        return f"{name} dense" if self.method == DENSE else f"{name} {self.share} % {self.method}"


def order(models: Sequence[str], shares: Sequence[int], methods: Sequence[str]) -> list[Row]:
    """All rows, those that tell the most first."""
    tiers = ([s for s in FIRST if s in shares], [s for s in shares if s not in FIRST])
    return [
        Row(name, share, method)
        for tier in tiers
        for name in models
        for share in tier
        for method in methods
    ]


class Kept:
    """Rows that are done, one JSON document a line, with what they are of."""

    def __init__(
        self, path: Path, setting: Setting, any_sources: bool = False, fresh: bool = False
    ) -> None:
        self.path, self.setting, self.any_sources = path, setting, any_sources
        self.sources = _source_hash()
        self.done: dict[str, Document] = {}
        if fresh or not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                kept = json.loads(line)
                if any_sources or kept["sources"] == self.sources:
                    self.done[json.dumps(kept["of"], sort_keys=True)] = kept["row"]
            except (ValueError, KeyError, TypeError):
                continue  # cut off when a run was killed

    def _of(self, row: Row) -> Document:
        return {**asdict(row), **asdict(self.setting)}

    def latest(self, row: Row) -> Document | None:
        """The row as it was measured last, failed or not."""
        return self.done.get(json.dumps(self._of(row), sort_keys=True))

    def get(self, row: Row) -> Document | None:
        """A row that was measured before; one that failed is tried again."""
        found = self.latest(row)
        return None if found is None or "error" in found else found

    def put(self, row: Row, found: Document) -> Document:
        told = {**asdict(row), **found, "sources": self.sources}
        kept = {"of": self._of(row), "sources": self.sources, "row": told}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            # starts a line of its own, whatever was cut off before it
            stream.write(f"\n{json.dumps(kept)}")
        return told


def _source_hash() -> str:
    """Of prunec alone: this file may change how results are shown without a night's work lost."""
    total = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()[:16]
