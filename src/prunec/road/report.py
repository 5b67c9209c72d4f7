"""What a run of several stages did, as plain data that prints as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prunec.ir.diagnostics import Exit
from prunec.reports.data import plain

__all__ = ["RoadReport", "StageRow"]


@dataclass(frozen=True)
class StageRow:
    """One stage. `key` stands for all that decided its result; `bytes` of each format that it
    wrote; `told` is its report; `kept` says that an earlier run had finished it. An empty `key` is
    that of a stage that a dry run would do."""

    name: str
    verb: str
    key: str
    seconds: float
    exit_code: int
    bytes: Mapping[str, int]
    told: Mapping[str, Any]
    kept: bool = False


@dataclass(frozen=True)
class RoadReport:
    """All stages of a run, in order."""

    model: str
    out: str
    recipe: str
    stages: tuple[StageRow, ...]

    @property
    def exit_code(self) -> Exit:
        """NOT_MET when a stage missed its target or a check."""
        missed = any(stage.exit_code != Exit.DONE for stage in self.stages)
        return Exit.NOT_MET if missed else Exit.DONE

    def to_json(self) -> dict[str, Any]:
        found = plain(asdict(self))
        assert isinstance(found, dict)
        return found | {"exit_code": int(self.exit_code)}
