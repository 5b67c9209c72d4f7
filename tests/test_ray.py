"""Work shared out over Ray: the results of one process, also where workers die."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from counting import LENGTH, counter, refused, run

from prunec.engines.workers import workers
from prunec.ir.diagnostics import PrunecError
from prunec.verbs import sensitivity

CALIBRATED = ("--calibration-samples", "8", "--calibration-length", str(LENGTH))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ray")
    counter(root)
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local cluster of two workers, which every run within it uses."""
    ray = pytest.importorskip("ray")
    with workers("ray", 2) as found:
        yield found
    assert not ray.is_initialized()


def kill_a_worker() -> None:
    """One of those that this process has started."""
    for place in Path("/proc").iterdir():
        try:
            title = (place / "cmdline").read_bytes()
            if title.startswith(b"ray::_Worker") and os.getpid() in ancestors(int(place.name)):
                os.kill(int(place.name), signal.SIGKILL)
                return
        except (OSError, ValueError):
            continue
    raise AssertionError("no worker was found")


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
        yield pid


def measured(home: Path, *options: object) -> Any:
    code, report = run("sensitivity", home / "dense", "--calibration", home / "count.txt",
                       *CALIBRATED, *options)  # fmt: skip
    assert code == 0
    return {name: part for name, part in report.items() if name != "seconds"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_the_table_is_that_of_one_process_though_a_worker_is_killed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first piece that is done is the sign to kill; others are still to be measured."""
    pytest.importorskip("ray")
    alone = measured(home)
    killed: list[int] = []
    save = sensitivity._Kept.save

    def saved(self: Any, at_once: bool = False) -> None:
        if not killed:
            killed.append(len(self.score.sums))
            kill_a_worker()
        save(self, at_once)

    monkeypatch.setattr(sensitivity._Kept, "save", saved)
    shared = measured(home, "--engine", "ray", "--workers", "2")
    assert killed[0] * 8 == 8 + len(alone["rows"]) * 8, "one window of eight was done"
    assert shared == alone


def test_what_was_measured_is_not_measured_again(
    home: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that one process began is ended by workers."""
    save, saves = sensitivity._Kept.save, []

    def interrupted(self: Any, at_once: bool = False) -> None:
        save(self, at_once=True)
        saves.append(len(self.score.sums))
        if len(saves) == 20:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(sensitivity._Kept, "save", interrupted)
        code, _ = run("sensitivity", home / "dense", "--calibration", home / "count.txt",
                      *CALIBRATED, "-o", out)  # fmt: skip
    assert code == 130
    done: list[int] = []
    pieces = sensitivity.pieces

    def told(*given: Any) -> Any:
        found = pieces(*given)
        done.append(sum(len(chosen) for _, chosen in found))
        return found

    monkeypatch.setattr(sensitivity, "pieces", told)
    found = measured(home, "-o", out, "--engine", "ray", "--workers", "2")
    assert found == measured(home)
    assert done == [len(found["rows"]) * 8 - 20]


@pytest.mark.parametrize(
    "search",
    [
        ("--target", "blocks=60%", "--layout", "per-layer", "--allocate", "evolutionary"),
        ("--target", "blocks=60%", "--groups", "layer", "--depth", "evopress"),
    ],
    ids=["widths", "depth"],
)
def test_a_search_finds_the_plan_of_one_process(
    search: tuple[str, ...], home: Path, tmp_path: Path, cluster: Any
) -> None:
    plans = []
    for name, engine in (("one", ()), ("two", ("--engine", "ray", "--workers", "2"))):
        code, _ = run("prune", home / "dense", "-o", tmp_path / name, "--calibration",
                      home / "count.txt", *CALIBRATED, *search, *engine)  # fmt: skip
        assert code == 0
        plans.append(json.loads((tmp_path / name / "plan.json").read_text()))
    assert plans[0] == plans[1]
    ours, theirs = (
        (tmp_path / n / "hf" / "model.safetensors").read_bytes() for n in ("one", "two")
    )
    assert ours == theirs


def test_a_piece_that_kills_its_worker_each_time(cluster: Any) -> None:
    class Deadly:
        def open(self) -> Callable[[int], int]:
            def work(piece: int) -> int:
                if piece == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return piece

            return work

    with pytest.raises(PrunecError) as raised:
        cluster.pool(Deadly())(range(6))
    assert raised.value.diagnostics[0].code == "P886"


def test_what_a_piece_raises_comes_back(cluster: Any) -> None:
    class Wrong:
        def open(self) -> Callable[[int], float]:
            return lambda piece: 1 / piece

    with pytest.raises(ZeroDivisionError):
        cluster.pool(Wrong())([1, 0])
    assert cluster.pool(Wrong())([2, 4]) == [0.5, 0.25]


# -- bad input --------------------------------------------------------------------------------


def test_ray_is_not_installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "prunec.engines.ray_workers", raising=False)
    code, document = run("sensitivity", home / "dense", "--engine", "ray")
    (said,) = document["error"]["diagnostics"]
    assert (code, said["code"]) == (1, "P994")
    assert said["help"] == 'pip install "prunec[ray]"'


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere.invalid:6379", "x"]
)
def test_a_cluster_that_cannot_be_reached(address: str, home: Path) -> None:
    pytest.importorskip("ray")
    said = refused("sensitivity", home / "dense", "--engine", f"ray={address}")
    assert said[:2] == (1, "P885")
    assert address in said[2]


def test_the_environment_names_the_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert refused("sensitivity", home / "dense", "--engine", "ray")[:2] == (1, "P885")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--engine", "dask"), "P810"),
        (("--engine", "ray="), "P810"),
        (("--workers", "2"), "P815"),
        (("--engine", "ray", "--workers", "0"), "P811"),
    ],
    ids=" ".join,
)
def test_wrong_usage(options: tuple[str, ...], code: str, home: Path, tmp_path: Path) -> None:
    assert refused("sensitivity", home / "dense", *options)[:2] == (2, code)
    searched = ("--layout", "per-layer", "--allocate", "evolutionary")
    said = refused("prune", home / "dense", "-o", tmp_path / "out", "--target", "blocks=60%",
                   *searched, *options)  # fmt: skip
    assert said[:2] == (2, code)


def test_there_is_no_search_to_share_out(home: Path, tmp_path: Path) -> None:
    said = refused("prune", home / "dense", "-o", tmp_path / "out", "--target", "blocks=60%",
                   "--engine", "ray")  # fmt: skip
    assert said[:2] == (2, "P815")
