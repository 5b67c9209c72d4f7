"""Targets: what the user wants the pruned model to measure, as in `params=75%`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail

__all__ = ["METRICS", "TIMED", "Target", "parse_target", "parse_targets"]

Unit = Literal["fraction", "count", "bytes", "seconds", "factor"]

METRICS: dict[str, tuple[Unit, ...]] = {
    "params": ("fraction", "count"),
    "blocks": ("fraction", "count"),
    "flops": ("fraction", "count"),
    "memory": ("fraction", "bytes"),
    "latency": ("fraction", "seconds"),
    "speedup": ("factor",),
}
"""What can be asked for, and in which units."""

TIMED = ("latency", "speedup")
"""Metrics that are measured in a runtime; the others are counted."""

EXAMPLES: dict[Unit, tuple[str, ...]] = {
    "fraction": ("75%",),
    "count": ("113.3M", "1.2B"),
    "bytes": ("2GB", "500MiB"),
    "seconds": ("80ms", "0.5s"),
    "factor": ("1.5x",),
}

SCALES: dict[Unit, dict[str, float]] = {
    "fraction": {"%": 0.01},
    "count": {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12},
    "bytes": {
        "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
        "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40,
    },
    "seconds": {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0},
    "factor": {"x": 1.0},
}  # fmt: skip

NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*([^\s\d]*)", re.IGNORECASE)

TOLERANCE, TIMED_TOLERANCE = 0.005, 0.05
"""A target is met when what is left exceeds it by at most this share of it; one that is measured
anew each time may differ by more."""

GENERAL_HELP = (
    "a percentage says what remains: --target params=75%; "
    "other forms: blocks=60%, flops=70%, params=113.3M, memory=2GB, speedup=1.5x, latency=80ms"
)


@dataclass(frozen=True)
class Target:
    """At most `value` of `metric` is to remain.

    `value` is a share of the dense model in (0, 1) when `unit` is `fraction`; otherwise an
    absolute number of parameters, bytes or seconds; a `factor` is a gain over the dense model.
    """

    metric: str
    unit: Unit
    value: float
    text: str

    @property
    def timed(self) -> bool:
        """Whether it is about the time that a runtime takes."""
        return self.metric in TIMED

    @property
    def measure(self) -> str:
        """What is counted, in words."""
        if self.timed:
            return "of time"
        return "bytes of memory" if self.metric == "memory" else self.metric

    def show(self, amount: float) -> str:
        """An amount of what is counted."""
        return f"{1e3 * amount:,.1f} ms" if self.timed else f"{amount:,.0f}"

    def limit(self, dense: float) -> float:
        """The most that may remain of a model that measures `dense`."""
        match self.unit:
            case "fraction":
                return self.value * dense
            case "factor":
                return dense / self.value
            case _:
                return self.value

    def needless(self, dense: float) -> Diagnostic:
        """What to say of a model that is within the target as it stands."""
        return Diagnostic(
            "P805",
            f"target {self.text} leaves nothing to do: the model has {self.show(dense)}"
            f" {self.measure}",
            "--target",
            help=f"ask for less than {self.show(dense)}, or for a percentage: --target"
            f" {self.metric}=75%",
        )

    def met(self, dense: float, left: float) -> bool:
        """Whether `left` is within the target, give or take what is tolerated."""
        return left <= self.limit(dense) * (1 + (TIMED_TOLERANCE if self.timed else TOLERANCE))

    def __str__(self) -> str:
        return self.text


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """Parse every target, report all mistakes at once, and allow each metric only once."""
    targets: list[Target] = []
    problems: list[Diagnostic] = []
    for text in texts:
        try:
            target = parse_target(text)
        except PrunecError as error:
            problems += error.diagnostics
            continue
        if any(target.metric == other.metric for other in targets):
            problems.append(
                Diagnostic(
                    "P804",
                    f"two targets for {target.metric}",
                    "--target",
                    help="give each metric once; different metrics may be combined",
                )
            )
        targets.append(target)
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    return tuple(targets)


def parse_target(text: str) -> Target:
    """Read one `METRIC=VALUE`; raises PrunecError (exit 2) with an example that works."""
    metric, equals, written = (part.strip() for part in text.partition("="))
    metric = metric.lower()
    if not equals:
        raise _bad("P801", f"target {text!r} is not of the form METRIC=VALUE", GENERAL_HELP)
    if metric not in METRICS:
        raise _bad(
            "P801",
            f"unknown metric {metric!r} in target {text!r}",
            f"one of {', '.join(METRICS)}; for example --target params=75%",
        )
    unit, value = _quantity(metric, written, text)
    _check_range(metric, unit, value, text)
    return Target(metric, unit, value, f"{metric}={written}")


def _quantity(metric: str, written: str, text: str) -> tuple[Unit, float]:
    """The value in base units, and what kind of unit it was written with."""
    match = NUMBER.fullmatch(written)
    if match is None:
        raise _bad("P801", f"target {text!r}: {written!r} is not a quantity", _examples(metric))
    number, suffix = float(match[1]), match[2].lower()
    if not suffix:
        raise _bad("P801", f"target {text!r} has no unit", _examples(metric))
    for unit in METRICS[metric]:
        if suffix in SCALES[unit]:
            return unit, number * SCALES[unit][suffix]
    raise _bad("P801", f"target {text!r}: {metric} has no unit {match[2]!r}", _examples(metric))


def _check_range(metric: str, unit: Unit, value: float, text: str) -> None:
    if value < 0:
        raise _bad("P802", f"target {text!r} is negative", _examples(metric))
    if value == 0:
        raise _bad("P802", f"target {text!r} would leave nothing of the model", _examples(metric))
    if unit == "fraction" and value > 1:
        problem = "is more than the whole model; a percentage says what remains"
        raise _bad("P802", f"target {text!r} {problem}", _examples(metric))
    if (unit == "fraction" and value == 1) or (unit == "factor" and value <= 1):
        raise _bad("P805", f"target {text!r} leaves nothing to do", _examples(metric))


def _examples(metric: str) -> str:
    written = [f"{metric}={e}" for unit in METRICS[metric] for e in EXAMPLES[unit]]
    return "for example --target " + " or ".join(written)


def _bad(code: str, message: str, remedy: str) -> PrunecError:
    return fail(code, message, where="--target", help=remedy, exit_code=Exit.USAGE)
