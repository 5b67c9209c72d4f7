"""Reports: what a run found and did, as plain data that prints as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunec.ir.diagnostics import Diagnostic, Exit

__all__ = [
    "Check",
    "CurveRow",
    "FrontRow",
    "GroupRow",
    "InspectReport",
    "InterfaceRow",
    "LatencyRow",
    "PinRow",
    "PruneReport",
    "RegionRow",
    "RunReport",
    "SampleRow",
    "Sizes",
    "SourceRow",
    "TargetRow",
    "WrittenFormat",
    "plain",
]


@dataclass(frozen=True)
class Sizes:
    """How big a model is. `params` counts tied ones once; `blocks` leaves out embeddings and
    head; `flops`, activations and the cache of keys and values are for `batch` x `length` tokens;
    `bytes` are of all that the program holds, in `dtype`."""

    params: int
    blocks: int
    bytes: int
    flops: int = 0
    activation_bytes: int = 0
    kv_cache_bytes: int = 0
    batch: int = 1
    length: int = 128
    dtype: str = "stored"


@dataclass(frozen=True)
class GroupRow:
    """One prunable or pinned axis found in parameters.

    `places` are (parameter, dimension) pairs; `params_per_index` is what one index costs;
    `kept` is None before pruning; `pinned` is the reason why the group must stay, or empty.
    """

    name: str
    role: str
    size: int
    places: tuple[tuple[str, int], ...]
    params_per_index: int = 0
    layer: str = ""
    kept: int | None = None
    pinned: str = ""


@dataclass(frozen=True)
class PinRow:
    """A dimension that cannot be pruned, where it is, and why."""

    axis: str
    where: str
    reason: str


@dataclass(frozen=True)
class RegionRow:
    """What can go as a whole (see `prunec.passes.regions`), and the parameters that go with it."""

    name: str
    role: str
    params: int


@dataclass(frozen=True)
class InspectReport:
    """What `prunec inspect` shows."""

    model: str
    source: str
    sizes: Sizes
    groups: tuple[GroupRow, ...]
    pinned: tuple[PinRow, ...]
    unknown_ops: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()
    regions: tuple[RegionRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return document(self)


@dataclass(frozen=True)
class TargetRow:
    """What was asked, what it came to, and whether that is within the target."""

    text: str
    dense: float
    limit: float
    left: float
    met: bool


@dataclass(frozen=True)
class Check:
    """One verification: the largest relative difference seen and the most allowed."""

    name: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


@dataclass(frozen=True)
class SampleRow:
    """What both models give for the same input. For models that write text `given` ends where the
    next token is asked for, which is `actual` in the data, and `dense` and `pruned` are the
    likeliest ones; for others these are the first numbers of an output, and `given` its name."""

    given: str
    actual: str
    dense: str
    pruned: str


@dataclass(frozen=True)
class CurveRow:
    """What is lost of a group when `kept` of its indices stay, as shares of what is lost when none
    does: of the error of what its readers compute once they are refitted (`error`), or of the
    criterion's scores (`score`)."""

    group: str
    kind: str
    kept: tuple[int, ...]
    lost: tuple[float, ...]


@dataclass(frozen=True)
class FrontRow:
    """A size that the model could have: shares of parameters and FLOPs that are left, and of the
    curves that is lost, each group with the weight of its parameters. `seconds` are measured, or
    None; `chosen` is the model that was written."""

    params: float
    flops: float
    lost: float
    seconds: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class LatencyRow:
    """Median seconds of the dense and of the pruned model, measured in turns; `threads` None is as
    many as the runtime takes, `length` the tokens of each sequence, None where none are read. They
    are not `steady`, and not to be trusted, when the machine was busy with other things."""

    runtime: str
    version: str
    threads: int | None
    phase: str
    batch: int
    length: int | None
    dense: float
    pruned: float
    steady: bool = True


@dataclass(frozen=True)
class SourceRow:
    """What pruning does to one source of calibration data.

    `weight` is its share of the mixture, `windows` what it gave to calibrate on. `metric` is
    `cross_entropy` (mean negative log-likelihood of the next token, in nats) for models that
    write text, and `output_error` (the norm of the difference to the dense outputs over the norm
    of these; `dense` is then 0) for others. It is measured on `measured` windows with `tokens`
    tokens that count; `held_out` says that the model was not calibrated on them.
    """

    name: str
    origin: str
    weight: float
    windows: int
    measured: int
    held_out: bool
    tokens: int
    metric: str
    dense: float
    pruned: float
    samples: tuple[SampleRow, ...] = ()


@dataclass(frozen=True)
class InterfaceRow:
    """An input or output (`kind`) whose shape pruning changes, or that is gone (None); texts are
    sizes of run time."""

    kind: str
    name: str
    dense: tuple[int | str, ...]
    pruned: tuple[int | str, ...] | None


@dataclass(frozen=True)
class WrittenFormat:
    """A format in OUT: its folder or file relative to OUT, and its bytes on disk."""

    name: str
    path: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What every verb that changes weights tells of its run; with `--dry-run`, what it would do."""

    model: str
    out: str | None
    calibration: str
    formats: tuple[WrittenFormat, ...] = ()
    checks: tuple[Check, ...] = ()
    sources: tuple[SourceRow, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether all that was asked for holds."""
        return all(check.passed for check in self.checks)

    @property
    def exit_code(self) -> Exit:
        return Exit.DONE if self.met else Exit.NOT_MET

    def to_json(self) -> dict[str, Any]:
        checks = [{**plain(asdict(check)), "passed": check.passed} for check in self.checks]
        return {**document(self), "checks": checks, "exit_code": int(self.exit_code)}


@dataclass(frozen=True, kw_only=True)
class PruneReport(RunReport):
    """What `prunec prune` did.

    `remote_code` says that Python code of the model was allowed to run; `removed` names the
    regions that went as a whole, in their order.
    """

    method: str
    restore: str
    layout: str
    dense: Sizes
    pruned: Sizes
    targets: tuple[TargetRow, ...]
    groups: tuple[GroupRow, ...]
    pinned: tuple[PinRow, ...] = ()
    interface: tuple[InterfaceRow, ...] = ()
    seed: int = 0
    remote_code: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    curves: tuple[CurveRow, ...] = ()
    front: tuple[FrontRow, ...] = ()
    latency: tuple[LatencyRow, ...] = ()

    @property
    def met(self) -> bool:
        """Whether targets and verifications hold."""
        return super().met and all(target.met for target in self.targets)


def document(report: Any) -> dict[str, Any]:
    """A report as JSON values, warnings in their own form."""
    found = plain(asdict(report))
    assert isinstance(found, dict)
    return {**found, "warnings": [warning.to_json() for warning in report.warnings]}


def plain(value: Any) -> Any:
    """Nested tuples, paths, arrays and numbers as JSON values; not-a-number as null."""
    match value:
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float():
            return value if abs(value) < float("inf") else None
        case Path():
            return str(value)
        case bool() | int() | str() | None:
            return value
        case _ if hasattr(value, "tolist"):
            return plain(value.tolist())
    raise TypeError(f"a report cannot hold {type(value).__name__}")
