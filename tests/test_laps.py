"""Laps that the machine disturbs do not count, and what is left without any says so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from prunec.timing import laps as subject
from prunec.timing.laps import PATIENCE, Laps, waited

QUIET, BUSY = 0.0, 0.6


def play(
    monkeypatch: pytest.MonkeyPatch, *programs: Iterator[tuple[float, float]], alone: bool = False
) -> Laps:
    """Laps of programs of which each is told seconds and the share that is waited."""
    monkeypatch.setattr(subject, "_lap", lambda run: run())
    return Laps.of([(lambda p=p: next(p), 1) for p in programs], rounds=3, alone=alone)


def repeated(*laps: tuple[float, float]) -> Iterator[tuple[float, float]]:
    while True:
        yield from laps


def test_disturbed_laps_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(
        monkeypatch, repeated((24.0, BUSY), (1.0, QUIET)), repeated((2.0, QUIET), (2.1, QUIET))
    )
    assert found.steady
    assert found.seconds[0] == [1.0, 1.0, 1.0]
    assert found.medians == [1.0, pytest.approx(2.05)]


def test_it_gives_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laps that waited least stand for all, and are not called steady."""
    turns = iter([(9.0, 0.9), (3.0, 0.3), (8.0, 0.8), (4.0, 0.4), *[(9.0, 0.9)] * 7, (5.0, 0.5)])
    found = play(monkeypatch, turns)
    assert len(list(turns)) == 0
    assert 3 * PATIENCE == 12
    assert not found.steady
    assert found.seconds == [[3.0, 4.0, 5.0]]


def test_what_one_thread_waited_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(monkeypatch, repeated((2.0, 0.5), (1.0, 0.0), (24.0, 0.95)), alone=True)
    assert found.steady
    assert set(found.seconds[0]) == {1.0}


def test_laps_that_differ_too_much_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not tell who waited."""
    assert not play(monkeypatch, repeated((1.0, 0.0), (2.0, 0.0), (2.2, 0.0))).steady
    assert play(monkeypatch, repeated((1.0, 0.0), (1.2, 0.0), (9.0, 0.0))).steady


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_who_shares_a_core_waits() -> None:
    """Three programs that never rest on one core: each gets a third of it."""
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2)]
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [core])
        time.sleep(0.2)
        start, before = time.perf_counter(), waited()
        while time.perf_counter() - start < 0.6:
            pass
        assert 0.2 < waited() - before < 0.7
        shared = Laps.of([(lambda: sum(range(3_000_000)), 1)], alone=True)
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
        quiet = Laps.of([(lambda: sum(range(3_000_000)), 1)], alone=True)
        assert shared.medians == pytest.approx(quiet.medians, rel=0.4)
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.wait()
