"""Calibration shared between processes: the same plan as in one."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import LENGTH, counter, refused
from safetensors.numpy import load_file

from prunec.cli.app import main
from prunec.engines.shared import agree_on, own_part
from prunec.ir.diagnostics import PrunecError
from prunec.runs import calibrating

WORLD = 2


def together(body: Callable[[int], Any]) -> list[Any]:
    """What `body` returns in each of two processes that can talk to each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()

    def process(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        answers.put((rank, body(rank)))

    processes = [context.Process(target=process, args=(rank,)) for rank in range(WORLD)]
    for started in processes:
        started.start()
    found = dict(answers.get(timeout=300) for _ in processes)
    for ended in processes:
        ended.join()
    return [found[rank] for rank in range(WORLD)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    counter(root)
    return root


@pytest.mark.parametrize("method", ["criterion=obs,allocate=global,restore=ls", "minitron"])
def test_two_processes_plan_as_one(
    method: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Least squares judge by batches that are held apart: 13 of them, of which two are."""
    monkeypatch.setattr(calibrating, "TOKENS_AT_ONCE", 3 * LENGTH)

    def prune(out: Path) -> tuple[int, str, str]:
        printed, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            code = main([
                "prune", str(home / "dense"), "-o", str(out), "--target", "blocks=60%", "--method",
                method, "--calibration", str(home / "count.txt"), "--calibration-samples", "38",
                "--calibration-length", str(LENGTH), "--layout", "per-layer", "--json",
            ])  # fmt: skip
        return code, printed.getvalue(), said.getvalue()

    code, printed, said = prune(tmp_path / "one")
    assert code == 0, said
    (first, second) = together(lambda rank: prune(tmp_path / "two"))
    assert first[0] == second[0] == 0, (first[2], second[2])
    assert second[1:] == ("", ""), "the first process alone talks"
    assert json.loads(first[1])["pruned"] == json.loads(printed)["pruned"]
    one, two = (
        json.loads((tmp_path / name / "plan.json").read_text())["parameters"]
        for name in ("one", "two")
    )
    assert one == two
    ours, theirs = (
        load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("one", "two")
    )
    for name, array in ours.items():
        # float64 sums in another order, then a solution rounded to float32
        np.testing.assert_allclose(theirs[name], array, rtol=1e-4, atol=1e-6)


def test_two_processes_learn_as_one(home: Path, tmp_path: Path) -> None:
    """Twice two windows are a batch of four: gradients are averaged over the processes."""

    def recover(out: Path, batch: int) -> tuple[int, str, str]:
        printed, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            code = main([
                "recover", str(home / "dense"), "-o", str(out), "--data", str(home / "count.txt"),
                "--batch", str(batch), "--length", str(LENGTH), "--steps", "8", "--save-every", "4",
                "--rank", "4", "--lr", "1e-3", "--samples", "40", "--json",
            ])  # fmt: skip
        return code, printed.getvalue(), said.getvalue()

    code, printed, said = recover(tmp_path / "one", 4)
    assert code == 0, said
    first, second = together(lambda rank: recover(tmp_path / "two", 2))
    assert first[0] == second[0] == 0, (first[2], second[2])
    one, two = (json.loads(text) for text in (printed, first[1]))
    assert (one["batch"], one["tokens"]) == (two["batch"], two["tokens"])
    assert two["after"] == pytest.approx(one["after"], rel=1e-4)
    ours, theirs = (
        load_file(tmp_path / name / "hf" / "model.safetensors") for name in ("one", "two")
    )
    for name, array in ours.items():
        # gradients are summed in another order; Adam's steps are at most lr = 1e-3 each
        np.testing.assert_allclose(theirs[name], array, rtol=0, atol=2e-4)


def test_batches_that_are_held_apart_stay_so() -> None:
    batches = [{"x": np.array([i])} for i in range(23)]
    parts = [own_part(batches, place, 2) for place in range(2)]
    order = [[int(batch["x"][0]) for batch in part] for part in parts]
    assert order == [[*range(5), *range(10, 15), *range(20, 23)], [*range(5, 10), *range(15, 20)]]
    held = [i for part in order for k, i in enumerate(part) if k % 5 == 4]
    assert sorted(held) == [4, 9, 14, 19], "as in one process"
    assert own_part(batches[:10], 0, 3) == (), "too few to share"


def test_processes_that_differ_are_told() -> None:
    def body(rank: int) -> str:
        try:
            agree_on("plan", [np.arange(3)])
            agree_on("plan", [np.arange(3) + rank])
        except PrunecError as error:
            return error.diagnostics[0].code
        return ""

    assert together(body) == ["P879", "P879"]


def test_several_processes_keep_no_state(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = ("prune", home / "dense", "-o", tmp_path / "out", "--target", "blocks=60%")
    assert refused(*given, "--resume")[:2] == (2, "P816")
    assert refused(*given, "--recover-every", "20%")[:2] == (2, "P816")
