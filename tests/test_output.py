"""Output folders: absent, as they were, or whole; and plan files that are what they claim."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Exit, PrunecError
from prunec.options.prune import PruneOptions
from prunec.options.target import parse_targets
from prunec.output.staging import check_output, staged
from prunec.passes.compress import Finished
from prunec.passes.score import Lost
from prunec.planning.planfile import check_plan, read_plan, write_plan
from prunec.resume.journal import StateJournal
from prunec.resume.state import State, kept_state, state_key


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def write_half(out: Path, error: type[BaseException], overwrite: bool = False) -> None:
    with staged(out, overwrite=overwrite) as stage:
        (stage / "file").write_text("half")
        raise error


def test_out_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as stage:
        (stage / "hf").mkdir()
        (stage / "hf" / "config.json").write_text("{}")
        assert not out.exists()
    assert listing(tmp_path) == ["out", "out/hf", "out/hf/config.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(error):
        write_half(tmp_path / "a" / "b" / "out", error)
    assert listing(tmp_path) == ["mine.txt"]


def test_existing_out_is_refused_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(PrunecError, match="exists") as caught, staged(out):
        pytest.fail("the block must not run")
    assert caught.value.exit_code is Exit.USAGE
    assert listing(tmp_path) == ["out"]


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with staged(out, overwrite=True) as stage:
        (stage / "new").write_text("new")
        assert (out / "old").exists()
    assert listing(tmp_path) == ["out", "out/new"]


def test_a_failed_overwrite_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(MemoryError):
        write_half(out, MemoryError, overwrite=True)
    assert listing(tmp_path) == ["out", "out/old"]


def test_out_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(PrunecError, match="exists"))
        stack.enter_context(staged(out))
        out.mkdir()
        (out / "theirs").write_text("theirs")
    assert listing(tmp_path) == ["out", "out/theirs"]


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(PrunecError, match="is a file"):
        check_output(tmp_path / "out", overwrite=True)
    with pytest.raises(PrunecError, match="which is a file"):
        check_output(tmp_path / "out" / "below", overwrite=True)


@pytest.mark.parametrize("out", ["model", ".", "model/.."])
def test_the_source_is_never_replaced(tmp_path: Path, out: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(PrunecError, match="must stay") as caught:
        check_output(tmp_path / out, overwrite=True, sources=[model])
    assert caught.value.exit_code is Exit.USAGE


def test_the_working_folder_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(PrunecError, match="must stay"):
        check_output(tmp_path, overwrite=True)


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged(tmp_path / "link", overwrite=True) as stage:
        (stage / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert listing(tmp_path / "real") == ["new"]


def test_two_runs_with_one_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out) as stage:
        with pytest.raises(PrunecError, match="another run") as caught, staged(out):
            pytest.fail("the block must not run")
        assert caught.value.exit_code is Exit.USAGE
        assert stage.exists()
    assert listing(tmp_path) == ["out"]


HOLD = """
    import pathlib, sys, time
    from prunec.output.staging import staged
    with staged(pathlib.Path(sys.argv[1])) as stage:
        (stage / "half").write_text("half")
        print("in", flush=True)
        time.sleep(60)
"""


def test_a_run_that_was_killed_is_swept_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(PrunecError, match="another run"), staged(out):
            pytest.fail("the block must not run")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert len(listing(tmp_path)) == 3  # its folder, its file and the lock
    with staged(out) as stage:
        (stage / "whole").write_text("whole")
    assert listing(tmp_path) == ["out", "out/whole"]


def test_a_run_that_died_between_the_renames_is_mended(tmp_path: Path) -> None:
    aside = tmp_path / ".out.prunec-old"
    aside.mkdir()
    (aside / "old").write_text("old")
    with pytest.raises(PrunecError, match="exists"), staged(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == ["out", "out/old"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PrunecError, match="may not be written"):
        check_output(tmp_path / "out", overwrite=False)
    tmp_path.chmod(0o700)


def test_waiting_for_nobody_is_quick(tmp_path: Path) -> None:
    start = time.monotonic()
    with staged(tmp_path / "out"):
        pass
    assert time.monotonic() - start < 1


# States


def interrupted(out: Path, key: str, *, resume: bool = True) -> None:
    with staged(out), kept_state(out, key, resume=resume) as state:
        if state is not None:
            state.save("one", {"a.b": np.arange(3), "c": np.ones((2, 2), np.float32)})
        raise KeyboardInterrupt


def test_a_state_outlives_an_interrupted_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, "key")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.prunec-state"]
    with staged(out), kept_state(out, "key", resume=True) as state:
        assert state is not None
        assert state.load("two") is None
        found = state.load("one")
        assert found is not None
        assert found["a.b"].tolist() == [0, 1, 2]
        assert found["c"].dtype == np.float32
    assert listing(tmp_path) == ["out"]


def test_nothing_is_kept_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out", "key", resume=False)
    assert listing(tmp_path) == []


def test_a_run_that_did_nothing_yet_keeps_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="bad input"),
        kept_state(tmp_path / "out", "key", resume=True),
    ):
        raise ValueError("bad input")
    assert listing(tmp_path) == []


def test_the_state_of_another_run_is_discarded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, "key")
    with kept_state(out, "other key", resume=True) as state:
        assert state is not None
        assert state.load("one") is None


def test_half_a_step_is_none(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.save("one", {"a": np.arange(1000)})
    whole = (tmp_path / "one.npz").read_bytes()
    (tmp_path / "one.npz").write_bytes(whole[: len(whole) // 2])
    assert state.load("one") is None


def test_a_state_is_of_what_decides_the_result(tmp_path: Path) -> None:
    options = PruneOptions("m", tmp_path / "a", parse_targets(["params=75%"])).settle()
    key = state_key(options, "sha")
    assert state_key(replace(options, out=tmp_path / "b", json=True), "sha") == key
    assert state_key(replace(options, seed=1), "sha") != key
    assert state_key(options, "other") != key


SHAPES = {"a.weight": (4, 6), "b.weight": (6,)}
PLAN: dict[str, Any] = {
    "parameters": {"a.weight": {"0": [0, 2], "1": [5]}},
    "shapes": {"a.weight": [4, 6]},
    "groups": [{"name": "ffn", "keep": [0, 2]}],
    "pinned": [{"axis": "x", "where": "input 0", "reason": "graph input"}],
}


def test_a_plan_survives_writing(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan({**PLAN, "parameters": {"a.weight": {"0": np.array([0, 2]), "1": [5]}}}, path)
    assert read_plan(path, SHAPES) == {"version": 1, **PLAN}
    assert '    "a.weight": {"0": [0, 2], "1": [5]}' in path.read_text().splitlines()


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"parameters": {}}, "P831", "touches no parameter"),
        ({"parameters": []}, "P831", "no object"),
        ({"version": 99}, "P831", "version 99"),
        ({"groups": {}}, "P831", "groups"),
        ({"pinned": [1]}, "P831", "pinned"),
        ({"shapes": {"a.weight": 4}}, "P831", "shapes"),
        ({"parameters": {"a.weight": [0]}}, "P832", "not an object"),
        ({"parameters": {"a.weight": {"x": [0]}}}, "P832", "not a dimension"),
        ({"parameters": {"a.weight": {"0": 3}}}, "P832", "not a list"),
        ({"parameters": {"a.weight": {"0": [True]}}}, "P832", "not a list"),
        ({"parameters": {"a.weight": {"0": [-1, 2]}}}, "P832", "not a list"),
        ({"parameters": {"a.weight": {"0": []}}}, "P832", "keeps nothing"),
        ({"parameters": {"a.weight": {"0": [2, 1]}}}, "P832", "comes after 2"),
        ({"parameters": {"a.weight": {"0": [2, 2]}}}, "P832", "twice"),
        ({"parameters": {"a.weight": {"0": [0, 4]}}}, "P833", "out of range"),
        ({"parameters": {"a.weight": {"2": [0]}}}, "P833", "no dimension 2"),
        ({"parameters": {"c.weight": {"0": [0]}}}, "P834", "another model"),
        ({"shapes": {"a.weight": [8, 6]}}, "P834", "another model"),
    ],
)
def test_plans_that_do_not_fit(
    tmp_path: Path, change: dict[str, Any], code: str, says: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN, **change}))
    with pytest.raises(PrunecError) as caught:
        read_plan(path, SHAPES)
    assert [d.code for d in caught.value.diagnostics] == [code]
    assert says in caught.value.diagnostics[0].message
    assert caught.value.diagnostics[0].where == str(path)
    assert caught.value.exit_code is Exit.USAGE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"parameters": {"a": {}, "a": {}}}', "'a' is there twice"),
        ("\xff", "not JSON"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PrunecError, match="P830") as caught:
        read_plan(path)
    assert says in str(caught.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PrunecError, match="does not exist"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(PrunecError, match="cannot be read"):
        read_plan(tmp_path)


def test_many_mistakes_are_cut_short() -> None:
    shapes = {f"p{i}": (1,) for i in range(100)}
    plan = {"parameters": {name: {"0": [5]} for name in shapes}}
    problems = list(check_plan(plan, shapes))
    assert len(problems) == 9
    assert problems[-1].message == "and 92 more mistakes of this kind"


def test_a_finished_site_comes_back_whole(tmp_path: Path) -> None:
    weights = {"w": np.ones((2, 3), np.float32)}
    lost = {"g/neuron": Lost("error", np.array([4.0, 1.0, 0.0]))}
    done = Finished({"g/neuron": Selection(np.array([1]), "p")}, weights, lost)
    with staged(tmp_path / "out"), kept_state(tmp_path / "out", "key", resume=True) as state:
        assert state is not None
        journal = StateJournal(state, weights)
        assert journal.load(0) is None
        journal.save(0, done)
        found = journal.load(0)
    assert found is not None
    assert found.selections["g/neuron"].keep.tolist() == [1]
    assert found.selections["g/neuron"].parent == "p"
    assert found.weights["w"].tolist() == weights["w"].tolist()
    assert found.lost["g/neuron"].kind == "error"
    assert found.lost["g/neuron"].at.tolist() == [4.0, 1.0, 0.0]
