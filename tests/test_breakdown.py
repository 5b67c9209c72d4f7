"""The loss by source: against a forward pass in transformers, and as the reports show it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo
from worded import Make, maker

from prunec.backends import forward
from prunec.backends.forward import Forward
from prunec.backends.interpreter import execute
from prunec.cli.app import main
from prunec.frontends.calibration import Share
from prunec.measuring.breakdown import source_rows
from prunec.options.prune import PruneOptions
from prunec.progress import Silent
from prunec.resume.hashes import hash_data
from prunec.resume.journal import load_calibration, save_calibration
from prunec.resume.state import State, state_key
from prunec.runs.calibrating import Calibrated, Sample
from prunec.runs.loading import Loaded, load


def loaded(path: Path) -> Loaded:
    return load(str(path), trust_remote_code=False, need_weights=True, progress=Silent())


def tokens(rows: int, length: int = 11, most: int = 60) -> dict[str, Any]:
    ids = np.random.default_rng(rows).integers(3, most, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# Running in pieces


@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "gpt2", "bert", "t5"])
def test_running_in_stretches_and_pieces_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "SEGMENT", 20_000)
    monkeypatch.setattr(forward, "PIECE", 4 * 131 * 3)
    zoo.build(name).save_pretrained(tmp_path)
    model = loaded(tmp_path)
    names = [value.name[1:] for value in model.graph.inputs]
    rng = np.random.default_rng(0)
    windows = [
        {n: np.ones((1, 11), int) if "mask" in n else rng.integers(0, 99, (1, 11)) for n in names}
        for _ in range(3)
    ]
    run = Forward(model.graph, model.weights, windows)
    for i, wanted in enumerate(execute(model.graph, model.weights, windows)):
        pieces = list(run.pieces(i))
        assert len(pieces) == (1 if name == "bert" else 4)
        for output, value in wanted.items():
            found = torch.cat([piece[output] for piece in pieces], 1) if pieces[1:] else None
            found = pieces[0][output] if found is None else found
            # Sums of a few hundred products in another order.
            torch.testing.assert_close(found, value, rtol=0, atol=2e-6)


# Figures


def measured(dense: Loaded, small: Loaded, *samples: Sample) -> list[Any]:
    """Rows as if `small` had been pruned from `dense`."""
    sources = tuple(Share(f"s{s.source}", "text", 0.5, 8, 4) for s in samples)
    pruned: Any = SimpleNamespace(
        loaded=dense,
        rewritten=SimpleNamespace(graph=small.graph),
        weights=small.weights,
        calibrated=Calibrated((), {}, sources, (), samples),
    )
    return list(source_rows(pruned, Silent()))


def models_of(kind: str, tmp_path: Path, count: int = 2) -> tuple[list[Any], list[Loaded]]:
    """A model, and one with other weights."""
    models, opened = [], []
    for i in range(count):
        model = zoo.build(kind)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(i * 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        model.save_pretrained(tmp_path / str(i))
        models.append(model.eval())
        opened.append(loaded(tmp_path / str(i)))
    return models, opened


def test_cross_entropy_is_that_of_transformers(tmp_path: Path) -> None:
    models, opened = models_of("llama", tmp_path)
    samples = [Sample(0, tokens(3)), Sample(1, tokens(2), held_out=False)]
    rows = measured(opened[0], opened[1], *samples)
    assert [(r.metric, r.measured, r.tokens, r.held_out) for r in rows] == [
        ("cross_entropy", 3, 30, True),
        ("cross_entropy", 2, 20, False),
    ]
    for row, sample in zip(rows, samples, strict=True):
        ids = torch.from_numpy(sample.inputs["input_ids"])
        with torch.no_grad():
            wanted = [model(input_ids=ids, labels=ids).loss.item() for model in models]
        assert [row.dense, row.pruned] == pytest.approx(wanted, rel=1e-5)
        assert row.dense != row.pruned


def test_tokens_that_are_not_read_do_not_count(tmp_path: Path) -> None:
    """The window with padding has the loss of the same window without."""
    _, opened = models_of("llama", tmp_path, 1)
    short, long = tokens(1, 7), tokens(1, 11)
    long["input_ids"][:, :7] = short["input_ids"]
    long["attention_mask"][:, 7:] = 0
    rows = measured(*opened * 2, Sample(0, short), Sample(1, long))
    assert [row.tokens for row in rows] == [6, 6]
    assert rows[0].dense == pytest.approx(rows[1].dense, rel=1e-5)


def test_encoders_have_the_error_of_their_outputs(tmp_path: Path) -> None:
    models, opened = models_of("bert", tmp_path)
    inputs = tokens(3)
    (row,) = measured(opened[0], opened[1], Sample(0, inputs))
    with torch.no_grad():
        fed = {name: torch.from_numpy(array) for name, array in inputs.items()}
        dense, small = (list(model(**fed).values()) for model in models)
    difference = sum((a - b).square().sum() for a, b in zip(dense, small, strict=True))
    norm = sum(a.square().sum() for a in dense)
    assert row.metric == "output_error"
    assert (row.dense, row.tokens) == (0.0, 33)
    assert row.pruned == pytest.approx(float((difference / norm).sqrt()), rel=1e-5)


def test_an_encoder_decoder_is_measured_on_what_it_writes(tmp_path: Path) -> None:
    models, opened = models_of("t5", tmp_path, 1)
    inputs = tokens(2)
    inputs["decoder_input_ids"] = tokens(5)["input_ids"][:2]
    (row,) = measured(*opened * 2, Sample(0, inputs))
    fed = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        logits = models[0](**fed).logits[:, :-1].flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(logits, fed["decoder_input_ids"][:, 1:].flatten())
    assert (row.metric, row.tokens) == ("cross_entropy", 20)
    assert row.dense == pytest.approx(wanted.item(), rel=1e-5)


# Kept for a later run


def test_calibration_data_survive_an_interrupted_run(tmp_path: Path) -> None:
    batches = (tokens(3), tokens(2))
    share = Share("a=b\n.txt", "text of a", 0.1, 4, 2)
    sample = Sample(0, {"pixel_values": np.float32([[1.5]])}, held_out=False)
    found = Calibrated(batches, {"notes": ["x=1"], "windows": 5}, (share,), (0,) * 5, (sample,))
    state = State(tmp_path)
    assert load_calibration(state) is None
    save_calibration(state, found)
    again = load_calibration(state)
    assert again is not None
    assert (again.description, again.sources) == (found.description, found.sources)
    assert (again.labels, again.samples[0].held_out) == (found.labels, False)
    pairs = zip([*again.batches, again.samples[0].inputs], [*batches, sample.inputs], strict=True)
    for a, b in pairs:
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


# Reports


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def prune(model: Path, out: Path, *options: str) -> dict[str, Any]:
    printed, said = io.StringIO(), io.StringIO()
    arguments = ["prune", str(model), "-o", str(out), "--target", "blocks=80%", "--json", *options]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = main(arguments)
    assert code == 0, said.getvalue()
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "en|.txt").write_text(" ".join(f"w{i % 20}" for i in range(900)))
    records = [json.dumps({"text": f"w{30 + i % 30} w{31 + i % 29}"}) for i in range(400)]
    (tmp_path / "sw.jsonl").write_text("\n".join(records))
    return f"{tmp_path}/en|.txt:0.75,{tmp_path}/sw.jsonl:0.25"


SMALL = ("--calibration-samples", "12", "--calibration-length", "20")


def test_the_report_breaks_the_loss_down(
    make: Make, spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make("decoder")[0].folder
    out = tmp_path / "out"
    found = prune(model, out, "--calibration", spec, *SMALL)
    rows = found["sources"]
    assert json.loads((out / "report.json").read_text())["sources"] == rows
    assert [(r["name"], r["weight"], r["windows"], r["measured"], r["held_out"]) for r in rows] == [
        ("en|.txt", 0.75, 9, 4, True),
        ("sw.jsonl", 0.25, 3, 4, True),
    ]
    dense = transformers.AutoModelForCausalLM.from_pretrained(model)
    small = transformers.AutoModelForCausalLM.from_pretrained(out / "hf")
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    assert all(r["tokens"] == 4 * 19 and r["dense"] > 0 and r["pruned"] > 0 for r in rows)
    card = (out / "README.md").read_text()
    assert "## What it does to each source" in card
    assert "| en\\|.txt | 75 % |" in card
    assert str(tmp_path) not in card
    main(
        ["prune", str(model), "--target", "blocks=80%", "--dry-run", "--calibration", spec, *SMALL]
    )
    shown = capsys.readouterr().out
    assert "loss by source (nats per token)" in shown
    assert "4 windows held out" in shown


def test_a_recipe_repeats_the_mixture(make: Make, spec: str, tmp_path: Path) -> None:
    """Weights included; a changed source is told."""
    model = make("decoder")[0].folder
    first = prune(model, tmp_path / "one", "--calibration", f"{spec},self:0.2", *SMALL)
    recipe = str(tmp_path / "one" / "recipe.yaml")
    again = prune(model, tmp_path / "two", "--recipe", recipe)
    assert again["sources"] == first["sources"]
    plans = [(tmp_path / name / "plan.json").read_text() for name in ("one", "two")]
    assert json.loads(plans[0])["parameters"] == json.loads(plans[1])["parameters"]
    (tmp_path / "sw.jsonl").write_text('{"text": "w1"}\n' * 500)
    arguments = ["prune", str(model), "-o", str(tmp_path / "three"), "--recipe", recipe]
    assert main(arguments) == 2
    assert not (tmp_path / "three").exists()


def test_a_folder_is_known_by_all_its_files(tmp_path: Path) -> None:
    """To recipes by content, to an interrupted run by size and time."""
    folder = tmp_path / "data"
    (folder / "pixel_values").mkdir(parents=True)
    file = folder / "pixel_values" / "0.npy"
    np.save(file, np.zeros(3))
    options = PruneOptions("m", calibration=f"{folder}:2,self")
    before = hash_data(folder), state_key(options, "")
    assert (hash_data(folder), state_key(options, "")) == before
    np.save(file, np.ones(4))
    assert hash_data(folder) != before[0]
    assert state_key(options, "") != before[1]


def test_without_calibration_there_is_no_breakdown(make: Make, tmp_path: Path) -> None:
    model = make("decoder")[0].folder
    options = ("--method", "magnitude", "--calibration", "none")
    assert prune(model, tmp_path / "out", *options)["sources"] == []
    assert "each source" not in (tmp_path / "out" / "README.md").read_text()


def test_encoders_and_images(make: Make, spec: str, tmp_path: Path) -> None:
    model = make("encoder")[0].folder
    (row, _) = prune(model, tmp_path / "e", "--calibration", spec, *SMALL)["sources"]
    assert (row["metric"], row["dense"], 0 < row["pruned"] < 2) == ("output_error", 0, True)
    assert "Norm of the change of the outputs" in (tmp_path / "e" / "README.md").read_text()
