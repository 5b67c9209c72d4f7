"""What was decided to go: widths, regions, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunec.ir.diagnostics import Diagnostic
from prunec.planning.widths import Choice
from prunec.runs.loading import Loaded

__all__ = ["Decided"]


@dataclass(frozen=True)
class Decided:
    """A model without the regions that go, and how many indices stay of the groups of the rest;
    `notes` are for the report."""

    loaded: Loaded
    choice: Choice
    counts: Mapping[str, int]
    warnings: tuple[Diagnostic, ...] = ()
    notes: Mapping[str, object] = field(default_factory=dict)

    def same(self, other: Decided) -> bool:
        """Whether both come to the same model."""
        gone = {region.name for region in self.loaded.removed}
        return gone == {r.name for r in other.loaded.removed} and self.counts == other.counts
