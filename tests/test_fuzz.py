"""A sample of `benchmarks/fuzz.py`: damaged files are read or refused, and nothing else happens."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import fuzzing
import mutations
import pytest

from prunec.ir.diagnostics import PrunecError, fail

QUICK = {
    "config": 40, "safetensors": 150, "gguf": 25, "onnx": 80, "plan": 250, "recipe": 150,
    "calibration": 150, "tokenizer": 60,
}  # fmt: skip


def test_every_reader_is_in_the_sample() -> None:
    assert QUICK.keys() == fuzzing.READERS.keys()


@pytest.mark.parametrize("name", QUICK)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    found = fuzzing.fuzz(name, tmp_path, range(QUICK[name]), seed=1)
    assert found.failures == []
    assert found.cases == QUICK[name] == found.read + sum(found.refused.values())
    assert found.refused, "some damage is noticed"


def test_one_seed_gives_one_set_of_cases() -> None:
    data = bytes(range(256)) * 4
    one, again, other = (mutations.damaged(data, random.Random(s)) for s in (1, 1, 2))
    assert one == again != other


def test_damage_stays_in_its_case() -> None:
    """What is put into a document is changed with it, and is whole in the next."""
    before = repr(mutations.HOSTILE)
    for seed in range(3000):
        mutations.damaged_json(b'{"a": [1, {"b": []}], "c": {}}', random.Random(seed))
    assert repr(mutations.HOSTILE) == before


def test_what_a_reader_must_not_do_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(folder: Path) -> None:
        if (folder / "file").read_bytes() == b"sound":
            return
        raise ZeroDivisionError("not a diagnostic")

    def silent(folder: Path) -> None:
        if (folder / "file").read_bytes() != b"sound":
            raise PrunecError([*fail("P1", " ").diagnostics])

    def make(folder: Path) -> None:
        (folder / "file").write_bytes(b"sound")

    for name, read in (("bad", bad), ("silent", silent)):
        reader = fuzzing.Reader(make, {"file": mutations.damaged}, read)
        monkeypatch.setattr(fuzzing, "READERS", {name: reader})
        found = fuzzing.fuzz(name, tmp_path / name, range(20), seed=0)
        assert len(found.failures) >= 15


def test_a_confined_process_is_caught(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code = f"""
import sys, pickle, os, subprocess
sys.path[:0] = {sys.path!r}
import fuzzing
fuzzing.confine(fuzzing.Path({str(tmp_path / "in")!r}))
open({str(tmp_path / "in" / "fine")!r}, "w").close()
assert not fuzzing.FORBIDDEN
data = pickle.dumps(print)
for act in (
    lambda: open({str(tmp_path / "out")!r}, "w").close(),
    lambda: os.remove({str(tmp_path / "out")!r}),
    lambda: pickle.loads(data),
    lambda: subprocess.Popen(["true"]).wait(),
    lambda: bytearray(3 << 30),
):
    fuzzing.FORBIDDEN.clear()
    try:
        act()
        print(len(fuzzing.FORBIDDEN))
    except MemoryError:
        print("memory")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    caught = run.stdout.split()
    assert caught[-1] == "memory"
    assert len(caught) == 5
    assert all(int(n) >= 1 for n in caught[:-1])
