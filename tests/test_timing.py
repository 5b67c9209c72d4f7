"""Targets in time: with a stopwatch that counts instead of measuring, so that times are known."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo

from prunec.cli.app import main
from prunec.ir.graph import Graph
from prunec.timing.laps import Laps
from prunec.timing.program import Program
from prunec.timing.stopwatch import Opened, Stopwatch
from prunec.timing.table import TimeTable

PLAIN = ("--method", "magnitude", "--format", "onnx")
OPERATION, WEIGHT = 2e-6, 1e-8
"""Seconds of the machine that is pretended."""


def counted(graph: Graph) -> float:
    """A time that adds up over blocks and grows with their widths."""
    weights = sum(math.prod(map(int, p.type.shape)) for p in graph.parameters.values())
    return OPERATION * len(graph.ops) + WEIGHT * weights


def whole(graph: Graph) -> bool:
    """Whether it is more than a block, or what is left without blocks."""
    names = graph.parameters
    return "lm_head.weight" in names and any(".mlp." in name for name in names)


class Pretended:
    """A stopwatch that counts, and how often it was asked."""

    def __init__(self, seconds: Callable[[Graph], float]) -> None:
        self.seconds, self.opened, self.steady = seconds, 0, True

    def open(self, _: Stopwatch, program: Program) -> Opened:
        self.opened += 1
        return Opened(lambda: None, program.graph)

    def race(self, programs: Sequence[Opened], laps: Sequence[int] = ()) -> Laps:
        graphs: list[Any] = [program.kept for program in programs]
        return Laps([[self.seconds(graph)] for graph in graphs], self.steady)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Pretended]:
    def install(seconds: Callable[[Graph], float] = counted) -> Pretended:
        made = Pretended(seconds)
        monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(Stopwatch, "open", lambda self, p: made.open(self, p))
        monkeypatch.setattr(Stopwatch, "race", lambda self, p, laps=(): made.race(p, laps))
        return made

    return install


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    zoo.build("llama", num_hidden_layers=3, intermediate_size=512).save_pretrained(folder)
    given = zoo.inputs("llama", batch=4, length=12)
    np.savez(folder.with_suffix(".npz"), **{k: v.numpy() for k, v in given.items()})
    return folder


def prune(model: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(["prune", str(model), *options, "--json"])
    return code, json.loads(printed.getvalue() or "{}"), told.getvalue()


def test_the_blocks_add_up_and_the_target_holds(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    pretend()
    code, report, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", "speedup=1.3x", *PLAIN
    )
    assert code == 0, told
    time, (target,) = report["notes"]["time"], report["targets"]
    assert time["predicted"] == pytest.approx(time["pruned"], rel=0.02)
    assert time["speedup"] == pytest.approx(1.3, rel=0.03)
    assert target["left"] == time["pruned"]
    assert target["limit"] == pytest.approx(time["dense"] / 1.3)
    assert target["met"]


def test_what_the_table_misses_is_learnt(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    """Two thirds of the weights' time are lost again once all layers are together."""

    def seconds(graph: Graph) -> float:
        weights = sum(math.prod(map(int, p.type.shape)) for p in graph.parameters.values())
        return counted(graph) - (WEIGHT * weights * 2 / 3 if whole(graph) else 0)

    pretend(seconds)
    code, report, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", "latency=80%", *PLAIN
    )
    assert code == 0, told
    time = report["notes"]["time"]
    assert time["plans"] > 1
    assert time["pruned"] / time["dense"] == pytest.approx(0.8, rel=0.03)


@pytest.mark.parametrize("groups", ["layer", "layer,neuron"])
def test_depth_pays_in_time(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path, groups: str
) -> None:
    pretend()
    code, report, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", "speedup=1.25x", "--groups", groups,
        "--calibration", str(llama.with_suffix(".npz")), "--format", "onnx",
    )  # fmt: skip
    assert code == 0, told
    assert report["targets"][0]["met"]
    assert bool(report["removed"]) or groups != "layer"
    assert report["notes"]["time"]["predicted"] == pytest.approx(
        report["notes"]["time"]["pruned"], rel=0.05
    )


def test_blocks_are_measured_once(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    asked = ("--target", "speedup=1.3x", "--dry-run", *PLAIN)
    first = pretend()
    prune(llama, *asked)
    (file,) = (tmp_path / "cache" / "times").iterdir()
    assert file.name.startswith("onnxruntime-")
    again = pretend()
    code, report, _ = prune(llama, *asked)
    assert code == 0
    # the dense model, the plan, and what came out
    assert again.opened == 2 + report["notes"]["time"]["plans"] < first.opened


@pytest.mark.parametrize(("counted_", "timed"), [("85%", "1.02x"), ("99%", "1.4x")])
def test_targets_in_time_and_in_size_hold_together(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path, counted_: str, timed: str
) -> None:
    """Whichever asks for more decides, and the other is met with room to spare."""
    pretend()
    code, report, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", f"params={counted_}", "--target",
        f"speedup={timed}", *PLAIN,
    )  # fmt: skip
    assert code == 0, told
    size, time = report["targets"]
    assert size["met"]
    assert time["met"]
    binding, other = (size, time) if counted_ == "85%" else (time, size)
    assert binding["left"] / binding["limit"] > other["left"] / other["limit"] + 0.05


def test_times_of_a_busy_machine_are_told_and_not_kept(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    pretend().steady = False
    code, report, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", "speedup=1.3x", *PLAIN
    )
    assert code == 0
    assert "P893" in told
    assert "P893" in [warning["code"] for warning in report["warnings"]]
    assert not report["notes"]["time"]["steady"]
    assert not report["latency"][0]["steady"]
    assert report["notes"]["time"]["doubtful"] > 0
    assert not (tmp_path / "cache" / "times").exists()


def test_a_damaged_table_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text('{"a": [1.0, 2.0], "b": "x", "c": [-1]}')
    assert TimeTable(file).known == {"a": [1.0, 2.0]}
    file.write_text("{")
    table = TimeTable(file)
    assert table.get("a") is None
    table.put("a", [3.0])
    other = TimeTable(file)
    other.put("b", [4.0])
    table.put("c", [5.0])
    assert TimeTable(file).known == {"a": [3.0], "b": [4.0], "c": [5.0]}


def test_the_multiple_that_the_runtime_likes(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    """On this machine a width that is no multiple of 8 takes a tenth longer."""

    def seconds(graph: Graph) -> float:
        odd = any(int(d) % 8 for p in graph.parameters.values() for d in p.type.shape)
        return counted(graph) * (1.1 if odd else 1.0)

    pretend(seconds)
    asked = ("--target", "speedup=1.3x", "--groups", "neuron", *PLAIN)
    _, report, told = prune(llama, "-o", str(tmp_path / "a"), *asked)
    kept = {g["kept"] for g in report["groups"] if g["role"] == "neuron"}
    assert kept, told
    assert all(count % 8 == 0 for count in kept)
    _, report, _ = prune(llama, "-o", str(tmp_path / "b"), *asked, "--round-to", "3")
    assert all(g["kept"] % 3 == 0 for g in report["groups"] if g["role"] == "neuron")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--target", "speedup=50x"), "P403", "at the least width"),
        (("--target", "latency=100s"), "P805", "nothing to do"),
        (("--target", "speedup=1.2x", "--threads", "0"), "P811", "--threads"),
        (("--target", "speedup=1.2x", "--runtime", "abacus"), "P810", "abacus"),
    ],
)
def test_refusals(
    llama: Path,
    pretend: Callable[..., Pretended],
    tmp_path: Path,
    options: tuple[str, ...],
    code: str,
    says: str,
) -> None:
    pretend()
    exit_code, _, told = prune(llama, "-o", str(tmp_path / "out"), *options, *PLAIN)
    assert exit_code == (3 if code == "P403" else 2)
    assert f"error[{code}]" in told
    assert says in told
    assert "help:" in told
    assert not (tmp_path / "out").exists()


def test_a_machine_that_is_never_faster(
    llama: Path, pretend: Callable[..., Pretended], tmp_path: Path
) -> None:
    def seconds(graph: Graph) -> float:
        return 1.0 if whole(graph) else counted(graph)

    pretend(seconds)
    code, _, told = prune(llama, "-o", str(tmp_path / "out"), "--target", "speedup=1.2x", *PLAIN)
    assert code == 3
    assert "error[P404]" in told
    assert "does not hold" in told


def test_a_runtime_that_is_not_installed(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from prunec.options import prune as options

    monkeypatch.setattr(options, "find_spec", lambda name: None)
    code, _, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", "speedup=1.2x", "--runtime", "openvino",
        *PLAIN,
    )  # fmt: skip
    assert code == 2
    assert "error[P862]" in told
    assert "pip install openvino" in told


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_measured_for_once(
    llama: Path, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No figure is asserted: it is a loaded machine and a tiny model."""
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "cache"))
    code, report, told = prune(
        llama, "-o", str(tmp_path / "out"), "--target", "speedup=1.05x", "--runtime", runtime,
        "--threads", "1", "--length", "64", *PLAIN,
    )  # fmt: skip
    if code == 3 and not report:
        assert "P40" in told  # it may not become faster, and then it says so
        return
    time = report["notes"]["time"]
    assert time["runtime"] == runtime
    assert time["dense"] > 0
    assert time["pruned"] > 0
    assert report["targets"][0]["met"] == (time["pruned"] <= report["targets"][0]["limit"] * 1.05)
