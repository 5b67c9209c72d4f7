"""`prunec recover` from saved checkpoints to files that other tools load."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from counting import LENGTH, SIZES, loss, pruned_counter, refused, run
from safetensors.numpy import load_file
from worded import WORDS, text, tokenizer

from prunec.frontends.hf import load_model
from prunec.frontends.source import resolve

SHORT = (
    "--steps", "40", "--batch", "4", "--length", str(LENGTH), "--save-every", "20",
    "--rank", "4", "--lr", "1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that has learned to count, pruned in both layouts, and the text it learned."""
    root = tmp_path_factory.mktemp("recover")
    pruned_counter(root)
    return root


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_quality_comes_back(layout: str, train: str, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, report = run(
        "recover", home / layout, "-o", out, "--teacher", home / "dense", "--data",
        home / "count.txt", "--train", train, *SHORT,
    )  # fmt: skip
    assert code == 0
    (gain,) = report["gains"]
    assert gain["held_out"]
    assert report["after"] < report["before"]
    assert gain["closed"] > 0.5, "of the distance to the dense model"
    dense, before, after = (loss(p) for p in (home / "dense", home / layout / "hf", out / "hf"))
    assert (before - after) / (before - dense) > 0.5, "and by the files alone"
    assert not list(tmp_path.glob(".*")), "no checkpoints stay behind"


@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_only_values_change(layout: str, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("recover", home / layout, "-o", out, "--data", home / "count.txt", *SHORT)
    old, new = home / layout / "hf", out / "hf"
    names = {p.name for p in old.iterdir()}
    assert {p.name for p in new.iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (new / name).read_bytes() == (old / name).read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (old, new))
    described = {n: (a.shape, a.dtype) for n, a in before.items()}
    assert {n: (a.shape, a.dtype) for n, a in after.items()} == described
    changed = {n for n, array in before.items() if not np.array_equal(array, after[n])}
    assert changed == {n for n in before if "proj" in n}


def test_the_dtype_stays(home: Path, tmp_path: Path) -> None:
    half = transformers.AutoModelForCausalLM.from_pretrained(
        home / "uniform" / "hf", dtype=torch.bfloat16
    )
    half.save_pretrained(tmp_path / "half")
    shutil.copyfile(home / "dense" / "tokenizer.json", tmp_path / "half" / "tokenizer.json")
    run("recover", tmp_path / "half", "-o", tmp_path / "out", "--data", home / "count.txt",
        "--loss", "ce", *SHORT)  # fmt: skip
    found = load_model(resolve(str(tmp_path / "out" / "hf")), dtype="auto")
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}


def test_the_teacher_writes_the_text(home: Path, tmp_path: Path) -> None:
    code, report = run(
        "recover", home / "per-layer", "-o", tmp_path / "out", "--teacher", home / "dense",
        "--data", f"self:0.2,{home / 'count.txt'}:0.8", "--samples", 40, "--loss", "kl,ce=0.1",
        "--store-logits", *SHORT,
    )  # fmt: skip
    assert code == 0
    assert [gain["name"] for gain in report["gains"]] == ["self", "count.txt"]
    assert report["after"] < report["before"]


def test_an_interrupted_run_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("recover", home / "uniform", "--teacher", home / "dense", "--data",
                 home / "count.txt", *SHORT)  # fmt: skip
    run(*arguments, "-o", tmp_path / "whole")
    from prunec.recovery import run as module

    fit, steps = module.fit, []

    def interrupted(*given: Any) -> Any:
        *others, advance = given

        def stop(done: int) -> None:
            steps.append(done)
            if len(steps) == 30:
                raise KeyboardInterrupt
            advance(done)

        return fit(*others, stop)

    monkeypatch.setattr(module, "fit", interrupted)
    code, document = run(*arguments, "-o", tmp_path / "out")
    assert (code, document["error"]["diagnostics"][0]["code"]) == (130, "P998")
    assert not (tmp_path / "out").exists()
    code, _ = run(*arguments, "-o", tmp_path / "out", "--resume")
    assert code == 0
    assert len(steps) == 30 + 20, "the last checkpoint was at step 20 of 40"
    ours, theirs = (
        (tmp_path / name / "hf" / "model.safetensors").read_bytes() for name in ("whole", "out")
    )
    assert ours == theirs


# -- bad input --------------------------------------------------------------------------------


def test_a_teacher_of_another_vocabulary(home: Path, tmp_path: Path) -> None:
    larger = transformers.LlamaConfig(**SIZES | {"vocab_size": WORDS + 10})
    transformers.LlamaForCausalLM(larger).save_pretrained(tmp_path / "larger")
    said = refused("recover", home / "uniform", "-o", tmp_path / "out", "--teacher",
                   tmp_path / "larger", "--data", home / "count.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P873")
    assert "70 tokens, the student 63" in said[2]


def test_a_teacher_that_numbers_words_otherwise(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "dense", tmp_path / "dense")
    file = tmp_path / "dense" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"other"'))
    said = refused("recover", home / "uniform", "-o", tmp_path / "out", "--teacher",
                   tmp_path / "dense", "--data", home / "count.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P873")
    assert "'other' as token 10, the student as token None" in said[2]


def test_data_shorter_than_a_batch(home: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(text(3 * LENGTH))
    said = refused("recover", home / "uniform", "-o", tmp_path / "out", "--data",
                   tmp_path / "short.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P875")
    assert "3 windows of 16 tokens, fewer than a batch of 4" in said[2]


def test_a_rank_above_the_width_of_a_layer(home: Path, tmp_path: Path) -> None:
    said = refused("recover", home / "per-layer", "-o", tmp_path / "out", "--data",
                   home / "count.txt", *SHORT, "--rank", 33)  # fmt: skip
    assert said[:2] == (2, "P871")
    assert "rank 33 is above the width of a layer: model.layers." in said[2]


def test_a_loss_that_is_not_finite(home: Path, tmp_path: Path) -> None:
    code, name, message = refused(
        "recover", home / "uniform", "-o", tmp_path / "out", "--data", home / "count.txt",
        *SHORT, "--train", "full", "--save-every", 1, "--lr", 1e18,
    )  # fmt: skip
    assert (code, name) == (1, "P874")
    kept = message.rpartition("is ")[2]
    assert "checkpoint-" in kept
    assert (Path(kept) / "trained.safetensors").is_file()
    assert not (tmp_path / "out").exists()


def test_four_bits_need_their_package(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    said = refused("recover", home / "uniform", "-o", tmp_path / "out", "--data",
                   home / "count.txt", *SHORT, "--train", "qlora")  # fmt: skip
    assert said[:2] == (2, "P877")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--loss", "kl"), "P870"),
        (("--loss", "nonsense"), "P810"),
        (("--loss", "ce=-1"), "P811"),
        (("--loss", "ce,ce"), "P811"),
        (("--train", "some"), "P810"),
        (("--train", "last:none"), "P811"),
        (("--train", "last:9"), "P871"),
        (("--steps", "0"), "P811"),
        (("--lr", "nan"), "P811"),
        (("--precision", "int3"), "P810"),
        (("--store-logits",), "P870"),
        (("--data", "missing.txt"), "P130"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_wrong_usage(options: tuple[str, ...], code: str, home: Path, tmp_path: Path) -> None:
    given = ("--data", home / "count.txt") if "--data" not in options else ()
    found = refused("recover", home / "uniform", "-o", tmp_path / "out", *given, *SHORT, *options)
    assert found[:2] == (2, code)


def test_nothing_to_train(home: Path, tmp_path: Path) -> None:
    (tmp_path / "only" / "onnx").mkdir(parents=True)
    (tmp_path / "only" / "onnx" / "model.onnx").write_bytes(b"")
    said = refused("recover", tmp_path / "only", "-o", tmp_path / "out", "--data",
                   home / "count.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P876")


def test_an_encoder_learns_its_output(home: Path, tmp_path: Path) -> None:
    fields = {k: v for k, v in SIZES.items() if not k.endswith("_id") and "key" not in k}
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        model = transformers.BertModel(transformers.BertConfig(**fields))
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    given = ("recover", tmp_path / "student", "-o", tmp_path / "out", "--data", home / "count.txt")
    code, report = run(*given, "--teacher", tmp_path / "teacher", *SHORT)
    assert (code, report["losses"]) == (0, {"output": 1.0})
    assert report["after"] < 0.9 * report["before"]
    assert refused(*given, "--overwrite", "--loss", "ce", *SHORT)[1] == "P872"
