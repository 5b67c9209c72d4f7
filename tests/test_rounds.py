"""Pruning in rounds with a recovery after each, on a tiny decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from counting import LENGTH, counter, refused, run
from safetensors.numpy import load_file
from worded import text, tokenizer

from prunec.frontends.text import windows
from prunec.options.rounds import parse_recovery, shares
from prunec.recovery.models import open_model
from prunec.verbs import rounds
from prunec.verbs.rounds import compose_plans

RECOVER = f"steps=20,length={LENGTH},batch=4,rank=4,lr=1e-2"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rounds")
    counter(root)
    return root


def arguments(home: Path, out: Path) -> tuple[object, ...]:
    return (
        "prune", home / "dense", "-o", out, "--target", "blocks=50%", "--method", "wanda-sp",
        "--calibration", home / "count.txt", "--calibration-length", LENGTH, "--recover-every",
        "25%", "--recover", RECOVER, "--resume", "--format", "hf,onnx", "--layout", "per-layer",
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(home: Path) -> tuple[dict[str, Any], Path]:
    """Half of the model, in two rounds, the second of which is interrupted before it recovers."""
    out = home / "out"
    recover, calls = rounds.recover, []

    def interrupted(options: Any, progress: Any) -> Any:
        calls.append(options.model)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return recover(options, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "recover", interrupted)
        code, _ = run(*arguments(home, out))
        assert code == 130
        assert not out.exists()
        code, report = run(*arguments(home, out))
    assert code == 0
    names = [Path(name).name for name in calls]
    assert names == ["round-0-pruned", "round-1-pruned", "round-1-pruned"], "round 0 is kept"
    assert not list(home.glob(".*")), "nothing stays behind"
    return report, out


def test_sizes_are_told_against_the_dense_model(
    done: tuple[dict[str, Any], Path], home: Path
) -> None:
    report, out = done
    dense, small = (
        load_file(folder / "model.safetensors") for folder in (home / "dense", out / "hf")
    )
    assert report["dense"]["params"] == sum(a.size for a in dense.values())
    assert report["pruned"]["params"] == sum(a.size for a in small.values())
    (target,) = report["targets"]
    assert target["dense"] == report["dense"]["blocks"]
    assert target["met"]
    lefts = [next(iter(r["left"].values())) / target["dense"] for r in report["notes"]["rounds"]]
    assert [round(left, 1) for left in lefts] == [0.7, 0.5], "one neuron a layer is 2 % of it"


def test_the_plan_is_in_indices_of_the_dense_model(
    done: tuple[dict[str, Any], Path], home: Path
) -> None:
    _, out = done
    plan = json.loads((out / "plan.json").read_text())
    dense, small = (
        load_file(folder / "model.safetensors") for folder in (home / "dense", out / "hf")
    )
    for name, array in dense.items():
        for dim, kept in plan["parameters"].get(name, {}).items():
            array = np.take(array, kept, int(dim))
        assert array.shape == small[name].shape
        if "proj" not in name:  # adapters train beside these alone
            np.testing.assert_array_equal(array, small[name])
    code, report = run("prune", home / "dense", "-o", home / "again", "--plan", out / "plan.json",
                       "--layout", "per-layer")  # fmt: skip
    assert code == 0
    assert report["pruned"]["params"] == sum(a.size for a in small.values())


def test_rounds_recover(done: tuple[dict[str, Any], Path]) -> None:
    rows = done[0]["notes"]["rounds"]
    assert all(row["after"] < row["before"] for row in rows)
    (source,) = done[0]["sources"]
    assert source["pruned"] == rows[-1]["gains"][0]["after"]


def test_all_formats_are_the_recovered_model(done: tuple[dict[str, Any], Path]) -> None:
    _, out = done
    ids = windows(text(200), tokenizer(), LENGTH)[:2]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx")
    (found, *_) = session.run(None, feeds)
    model = open_model(str(out / "hf"), trust=False).model
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(x) for name, x in feeds.items()}).logits
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)  # another runtime


def test_shares_are_even() -> None:
    assert shares(0.5, 0.25) == (0.75, 0.5)
    assert shares(0.4, 0.15) == pytest.approx((0.85, 0.7, 0.55, 0.4))
    assert shares(0.5, 0.2) == pytest.approx((1 - 1 / 6, 1 - 2 / 6, 0.5)), "steps of at most 20 %"
    assert shares(0.9, 0.5) == pytest.approx((0.9,))


def test_plans_compose() -> None:
    first = {
        "parameters": {"a": {"0": [0, 2, 5]}, "b": {"1": [1]}},
        "shapes": {"a": [6, 4], "b": [2, 3]},
        "groups": [{"name": "g", "size": 6, "kept": 3}],
        "pinned": [],
    }
    second = {
        "parameters": {"a": {"0": [1, 2], "1": [3]}, "c": {"0": [0]}},
        "shapes": {"a": [3, 4], "c": [2]},
        "groups": [{"name": "g", "size": 3, "kept": 2}],
        "pinned": [],
    }
    found = compose_plans(first, second)
    assert found["parameters"] == {
        "a": {"0": [2, 5], "1": [3]}, "b": {"1": [1]}, "c": {"0": [0]},
    }  # fmt: skip
    assert found["shapes"] == {"a": [6, 4], "b": [2, 3], "c": [2]}
    assert found["groups"] == [{"name": "g", "size": 6, "kept": 2}]


def test_options_of_the_recovery() -> None:
    found = parse_recovery("steps=90,train=last:2,lr=1e-3", model="m", out=Path("o"), data="self")
    assert (found.steps, found.train, found.lr) == (90, "last:2", 1e-3)
    assert (found.save_every, found.patience) == (9, 3)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--recover-every", "0%"), "P811"),
        (("--recover-every", "much"), "P811"),
        (("--recover", "steps=5"), "P815"),
        (("--recover-every", "10%", "--recover", "nonsense=5"), "P810"),
        (("--recover-every", "10%", "--recover", "steps=many"), "P811"),
        (("--recover-every", "10%", "--recover", "train=some"), "P810"),
        (("--recover-every", "10%", "--dry-run"), "P815"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_wrong_usage(options: tuple[str, ...], code: str, home: Path, tmp_path: Path) -> None:
    found = refused(
        "prune", home / "dense", "-o", tmp_path / "out", "--target", "blocks=50%", *options
    )
    assert found[:2] == (2, code)


def test_rounds_need_percentages(home: Path, tmp_path: Path) -> None:
    counted = ("--target", "params=9k", "--recover-every", "10%")
    assert refused("prune", home / "dense", "-o", tmp_path / "out", *counted)[:2] == (2, "P815")
