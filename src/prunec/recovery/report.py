"""What a recovery did, as plain data that prints as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prunec.reports.data import plain

__all__ = ["BlockRow", "Gain", "RecoverReport"]


@dataclass(frozen=True)
class Gain:
    """One source of data, on windows that were held out of training where `held_out` says so: the
    mean negative log-likelihood of the next token (nats) of teacher, student before and after;
    None where a model is no language model or there is no teacher."""

    name: str
    windows: int
    held_out: bool
    dense: float | None = None
    before: float | None = None
    after: float | None = None

    @property
    def closed(self) -> float | None:
        """The share of the distance to the teacher that is gone."""
        if self.dense is None or self.before is None or self.after is None:
            return None
        gap = self.before - self.dense
        return (self.before - self.after) / gap if gap > 0 else None


@dataclass(frozen=True)
class BlockRow:
    """One block that was trained by itself: the relative squared error of what it gives, on
    held-out windows, before and after; `best_step` 0 where it got no better and was left."""

    name: str
    before: float
    after: float
    steps: int
    best_step: int


@dataclass(frozen=True)
class RecoverReport:
    """What `prunec recover` did. `before` and `after` are the loss (see `losses`) on held-out
    windows; `curve` gives it by step, `trained` is a number of parameters. Where blocks were
    trained one by one, the loss is the error behind the last of them, and steps are those of
    each."""

    model: str
    teacher: str | None
    data: str
    train: str
    rank: int | None
    losses: Mapping[str, float]
    trained: int
    params: int
    lr: float
    steps: int
    best_step: int
    batch: int
    length: int
    windows: int
    before: float
    after: float
    gains: tuple[Gain, ...]
    curve: tuple[tuple[int, float], ...]
    path: str
    bytes: int
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockRow, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens trained on, counted as often as they were read."""
        return self.steps * self.batch * self.length

    def to_json(self) -> dict[str, Any]:
        found = plain(asdict(self))
        assert isinstance(found, dict)
        gains = [
            row | {"closed": g.closed} for row, g in zip(found["gains"], self.gains, strict=True)
        ]
        return found | {"tokens": self.tokens, "gains": gains}
