"""Targets: what parses, what it means, and what each mistake says."""

from __future__ import annotations

import pytest

from prunec.ir.diagnostics import Exit, PrunecError
from prunec.options.target import METRICS, TIMED, parse_target, parse_targets


@pytest.mark.parametrize(
    ("text", "metric", "unit", "value"),
    [
        ("params=75%", "params", "fraction", 0.75),
        ("blocks=60%", "blocks", "fraction", 0.60),
        ("flops=70 %", "flops", "fraction", 0.70),
        ("params=113.3M", "params", "count", 113.3e6),
        ("params=1.2b", "params", "count", 1.2e9),
        ("PARAMS = 12.5%", "params", "fraction", 0.125),
        ("blocks=1e2k", "blocks", "count", 1e5),
        ("flops=3G", "flops", "count", 3e9),
        ("memory=2GB", "memory", "bytes", 2e9),
        ("memory=512MiB", "memory", "bytes", 512 * 2**20),
        ("memory=60%", "memory", "fraction", 0.6),
    ],
)
def test_what_parses(text: str, metric: str, unit: str, value: float) -> None:
    target = parse_target(text)
    assert (target.metric, target.unit) == (metric, unit)
    assert target.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("params=0%", "P802", "leave nothing"),
        ("params=100%", "P805", "nothing to do"),
        ("params=150%", "P802", "more than the whole"),
        ("banana", "P801", "METRIC=VALUE"),
        ("banana=3%", "P801", "unknown metric 'banana'"),
        ("params=banana", "P801", "not a quantity"),
        ("params=", "P801", "not a quantity"),
        ("params=-5%", "P802", "negative"),
        ("params=nan%", "P801", "not a quantity"),
        ("params=1_0%", "P801", "not a quantity"),
        ("params=75", "P801", "no unit"),
        ("params=2GB", "P801", "params has no unit 'GB'"),
        ("flops=3GB", "P801", "flops has no unit 'GB'"),
        ("memory=3G", "P801", "memory has no unit 'G'"),
        ("", "P801", "METRIC=VALUE"),
    ],
)
def test_mistakes(text: str, code: str, says: str) -> None:
    with pytest.raises(PrunecError) as caught:
        parse_target(text)
    (problem,) = caught.value.diagnostics
    assert problem.code == code
    assert says in problem.message
    assert "--target" in problem.help or "for example" in problem.help
    assert caught.value.exit_code is Exit.USAGE


@pytest.mark.parametrize(
    ("text", "dense", "limit"),
    [("latency=80ms", 0.5, 0.08), ("latency=60%", 0.5, 0.3), ("speedup=1.5x", 0.6, 0.4)],
)
def test_targets_in_time_are_in_seconds(text: str, dense: float, limit: float) -> None:
    target = parse_target(text)
    assert target.timed
    assert target.limit(dense) == pytest.approx(limit)
    assert target.show(limit) == f"{1000 * limit:.1f} ms"
    assert target.met(dense, 1.04 * limit)
    assert not target.met(dense, 1.06 * limit)


def test_units_of_time() -> None:
    with pytest.raises(PrunecError, match="P801"):
        parse_target("latency=2GB")
    with pytest.raises(PrunecError, match="P805"):
        parse_target("speedup=0.5x")


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(PrunecError) as caught:
        parse_targets(["params=0%", "blocks=60%", "banana", "blocks=50%"])
    assert [d.code for d in caught.value.diagnostics] == ["P802", "P801", "P804"]


def test_limits() -> None:
    assert parse_target("params=75%").limit(200.0) == 150.0
    assert parse_target("params=1.5k").limit(9999.0) == 1500.0


def test_met_within_half_a_percent() -> None:
    target = parse_target("params=50%")
    assert target.met(1000, 500)
    assert target.met(1000, 502)
    assert not target.met(1000, 503)


def test_a_count_that_the_model_is_within_already() -> None:
    told = parse_target("memory=2MB").needless(1_000_000)
    assert "nothing to do: the model has 1,000,000 bytes of memory" in told.message
    assert "--target memory=75%" in told.help


def test_timed_metrics_are_metrics() -> None:
    assert set(TIMED) <= set(METRICS)
