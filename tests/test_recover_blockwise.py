"""Distillation block by block: what it brings, what is in memory, and models it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from counting import LENGTH, SIZES, loss, pruned_counter, refused, run
from worded import tokenizer

from prunec.ir.diagnostics import PrunecError
from prunec.recovery import blockwise
from prunec.recovery.frame import STATE, Frame
from prunec.recovery.models import open_model
from prunec.recovery.rows import as_batch

SHORT = (
    "--blockwise", "--steps", "40", "--batch", "4", "--length", str(LENGTH), "--save-every", "20",
    "--rank", "4", "--lr", "1e-2",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that has learned to count, pruned in both layouts, and the text it learned."""
    root = tmp_path_factory.mktemp("blockwise")
    pruned_counter(root)
    return root


def recover(home: Path, out: Path, *options: object, student: str = "per-layer") -> Any:
    code, report = run(
        "recover", home / student, "-o", out, "--teacher", home / "dense", "--data",
        home / "count.txt", *SHORT, *options,
    )  # fmt: skip
    assert code == 0
    return report


@pytest.mark.parametrize(("student", "train"), [("uniform", "lora"), ("per-layer", "full")])
def test_every_block_comes_closer_and_so_does_the_model(
    student: str, train: str, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = recover(home, out, "--train", train, student=student)
    assert [row["name"] for row in report["blocks"]] == ["model.layers.0", "model.layers.1"]
    for row in report["blocks"]:
        assert row["after"] < 0.75 * row["before"]
    assert report["blocks"][-1]["after"] == pytest.approx(report["after"], rel=1e-4)
    (gain,) = report["gains"]
    assert gain["held_out"]
    assert gain["closed"] > 0.4, "of the distance to the dense model"
    dense, before, after = (loss(p) for p in (home / "dense", home / student / "hf", out / "hf"))
    assert (before - after) / (before - dense) > 0.4, "and by the files alone"
    assert not list(tmp_path.glob(".*")), "no states stay behind"


def test_the_losses_told_are_those_of_the_files(home: Path, tmp_path: Path) -> None:
    """The same windows are held out, whichever way the model is trained."""
    whole = run(
        "recover", home / "uniform", "-o", tmp_path / "whole", "--teacher", home / "dense",
        "--data", home / "count.txt", *SHORT[1:],
    )[1]  # fmt: skip
    blocks = recover(home, tmp_path / "blocks", student="uniform")
    for side in ("dense", "before"):
        ours, theirs = (found["gains"][0][side] for found in (blocks, whole))
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_one_block_is_in_memory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[Frame] = []
    make, fit = Frame.__init__, blockwise.fit
    seen: list[set[str]] = []

    def made(self: Frame, *given: Any) -> None:
        make(self, *given)
        frames.append(self)

    def fitted(*given: Any) -> Any:
        own, dense = frames
        seen.append({n for n, p in own.model.named_parameters() if not p.is_meta})
        assert all(p.is_meta for p in dense.model.parameters())
        return fit(*given)

    monkeypatch.setattr(Frame, "__init__", made)
    monkeypatch.setattr(blockwise, "fit", fitted)
    recover(home, tmp_path / "out", "--train", "full")
    layers = [{n for n in names if "layers." in n} for names in seen]
    assert [{n.split(".")[2] for n in names} for names in layers] == [{"0"}, {"1"}]
    assert all(parameter.is_meta for frame in frames for parameter in frame.model.parameters())


def test_an_interrupted_run_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recover(home, tmp_path / "whole", "--train", "full")
    fit, steps = blockwise.fit, []

    def interrupted(*given: Any) -> Any:
        *others, advance = given

        def stop(done: int) -> None:
            steps.append(done)
            if len(steps) in (30, 75):  # in the first block, then in the second
                raise KeyboardInterrupt
            advance(done)

        return fit(*others, stop)

    monkeypatch.setattr(blockwise, "fit", interrupted)
    given = ("recover", home / "per-layer", "-o", tmp_path / "out", "--teacher", home / "dense",
             "--data", home / "count.txt", *SHORT, "--train", "full", "--resume")  # fmt: skip
    assert [run(*given)[0] for _ in range(3)] == [130, 130, 0]
    assert len(steps) == 30 + 20 + 25 + 20, "each time from the last checkpoint, at step 20 of 40"
    ours, theirs = (
        (tmp_path / name / "hf" / "model.safetensors").read_bytes() for name in ("whole", "out")
    )
    assert ours == theirs
    assert recover(home, tmp_path / "again", "--train", "full")["blocks"] == whole["blocks"]


def test_a_block_that_gets_no_better_stays(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = recover(home, out, "--train", "full", "--lr", "3", "--save-every", "40")
    assert [row["best_step"] for row in report["blocks"]] == [0, 0]
    assert report["after"] == report["before"]
    old, new = (p / "hf" / "model.safetensors" for p in (home / "per-layer", out))
    assert old.read_bytes() == new.read_bytes()


def test_a_shallower_student_learns_by_depth(home: Path, tmp_path: Path) -> None:
    """Of four layers the first and the third are left: they learn the second state and the last."""
    torch.manual_seed(0)
    deep = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES | {"num_hidden_layers": 4})
    )
    deep.save_pretrained(tmp_path / "deep")
    del deep.model.layers[3], deep.model.layers[1]
    deep.config.num_hidden_layers = 2
    deep.save_pretrained(tmp_path / "shallow")
    for name in ("deep", "shallow"):
        tokenizer().save_pretrained(tmp_path / name)
    code, report = run(
        "recover", tmp_path / "shallow", "-o", tmp_path / "out", "--teacher", tmp_path / "deep",
        "--data", home / "count.txt", "--train", "full", *SHORT,
    )  # fmt: skip
    assert code == 0
    assert all(row["after"] < 0.75 * row["before"] for row in report["blocks"])
    assert report["after"] < 0.75 * report["before"]


# -- models as frames -------------------------------------------------------------------------


def saved(name: str, folder: Path) -> Path:
    zoo.build(name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gemma3", "bert"])
def test_block_by_block_is_the_model(name: str, tmp_path: Path) -> None:
    """Bit for bit, masks and all."""
    folder = saved(name, tmp_path)
    whole = open_model(str(folder), trust=False).model
    frame = Frame(open_model(str(folder), trust=False, empty=True), CPU)
    feeds = {n: torch.as_tensor(x) for n, x in zoo.inputs(name).items()}
    with torch.no_grad():
        said = whole(**feeds)
        frame.survey({n: x[:1] for n, x in feeds.items()})
        with frame.resident():
            state = frame.reach(0, feeds).state
        for number, block in enumerate(frame.blocks):
            with frame.resident(number):
                state = frame.reach(number, feeds).run(block, state)
        with frame.resident():
            found = frame.finish(**feeds, **{STATE: state})
    assert torch.equal(found[0], said[0])
    assert all(parameter.is_meta for parameter in frame.model.parameters())


def test_layers_that_read_more_than_the_state_are_refused(tmp_path: Path) -> None:
    """The position bias of T5 goes from the first layer to all others."""
    frame = Frame(open_model(str(saved("t5", tmp_path)), trust=False, empty=True), CPU)
    feeds = {n: torch.as_tensor(x)[:1] for n, x in zoo.inputs("t5").items()}
    with pytest.raises(PrunecError) as raised:
        frame.survey(as_batch({n: x.numpy() for n, x in feeds.items()}, [0]))
    assert raised.value.diagnostics[0].code == "P872"


def test_a_model_without_a_list_of_layers_is_refused(home: Path, tmp_path: Path) -> None:
    fields = {k: v for k, v in SIZES.items() if not k.endswith("_id") and "key" not in k}
    fields["num_hidden_layers"] = 1
    transformers.BertModel(transformers.BertConfig(**fields)).save_pretrained(tmp_path / "one")
    tokenizer().save_pretrained(tmp_path / "one")
    said = refused("recover", tmp_path / "one", "-o", tmp_path / "out", "--teacher",
                   tmp_path / "one", "--data", home / "count.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P871")


def test_states_of_another_width(home: Path, tmp_path: Path) -> None:
    wide = transformers.LlamaConfig(**SIZES | {"hidden_size": 48})
    transformers.LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    tokenizer().save_pretrained(tmp_path / "wide")
    said = refused("recover", home / "uniform", "-o", tmp_path / "out", "--teacher",
                   tmp_path / "wide", "--data", home / "count.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P873")
    assert "[1, 16, 48] and [1, 16, 32]" in said[2]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--loss", "kl"), "P870"),
        (("--store-logits",), "P870"),
        (("--train", "last:1"), "P870"),
        (("--data", "self"), "P870"),
        (("--rank", "33"), "P871"),
    ],
    ids=" ".join,
)
def test_wrong_usage(options: tuple[str, ...], code: str, home: Path, tmp_path: Path) -> None:
    given = ("--data", home / "count.txt") if "--data" not in options else ()
    found = refused("recover", home / "uniform", "-o", tmp_path / "out", "--teacher",
                    home / "dense", *given, *SHORT, *options)  # fmt: skip
    assert found[:2] == (2, code)


def test_it_needs_a_teacher(home: Path, tmp_path: Path) -> None:
    said = refused("recover", home / "uniform", "-o", tmp_path / "out", "--data",
                   home / "count.txt", *SHORT)  # fmt: skip
    assert said[:2] == (2, "P870")
