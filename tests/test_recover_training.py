"""Training of recovery on tiny modules: what learns, what is merged, and runs that are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file
from torch import nn

from prunec.ir.diagnostics import PrunecError
from prunec.recovery.objective import Objective
from prunec.recovery.options import Scope
from prunec.recovery.rows import Inputs, Rows, as_batch, batches
from prunec.recovery.student import Student, blocks, linear_layers, student
from prunec.recovery.teacher import Live, run_model, store
from prunec.recovery.training import Course, Lesson, fit, held_out_loss
from prunec.resume.state import State

WINDOWS, BATCH, STEPS, EVERY = 20, 2, 15, 4
LESSON = Lesson(STEPS, BATCH, lr=1e-2, save_every=EVERY)
LORA, FULL = Scope("lora"), Scope("full")


def inputs(vocabulary: int = 131) -> Inputs:
    tokens = np.random.default_rng(0).integers(0, vocabulary, (WINDOWS + 4, 9))
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


def objective(weights: dict[str, float] | None = None, top: int = 16) -> Objective:
    teacher = zoo.build("llama")
    return Objective(weights or {"kl": 1.0}, Live(teacher, top, "hidden" in (weights or {})))


def taught(scope: Scope, rank: int = 4, **fields: Any) -> Student:
    """A student with other weights than the teacher, and dropout where training must repeat."""
    return student(zoo.build("llama", seed=1, attention_dropout=0.2, **fields), scope, rank, seed=0)


def train(
    pupil: Student,
    folder: Path,
    lesson: Lesson = LESSON,
    goal: Objective | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> Course:
    data = inputs()
    rows = Rows(data, WINDOWS, lesson.steps * lesson.batch, lesson.seed)
    held = batches(data, range(WINDOWS, WINDOWS + 4), BATCH, torch.device("cpu"))
    return fit(pupil, goal or objective(), rows, held, lesson, folder, advance)


# -- runs that are killed ---------------------------------------------------------------------


def killed_at(scope: Scope, folder: Path, step: int, *, saving: bool) -> None:
    """Train in a process of its own that ends, as by the system, after so many steps or in the
    midst of the first checkpoint that it writes from there on."""

    def body() -> None:
        pupil, done = taught(scope), 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if done < step:
                return
            if not saving:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

        train(pupil, folder, advance=advance)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("scope", [LORA, FULL], ids=lambda scope: scope.kind)
def test_a_run_that_was_killed_ends_like_one_that_was_not(scope: Scope, tmp_path: Path) -> None:
    """Bit for bit: weights, optimiser, schedule, random numbers and losses."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    course = train(first := taught(scope), whole)
    deaths = [(2, False), (5, False), (3, True), (6, True), (9, False), (14, False), (14, True)]
    for step, saving in deaths:
        killed_at(scope, broken, step, saving=saving)
    again = train(second := taught(scope), broken)
    assert again == course
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    last = f"checkpoint-{STEPS}"
    ours, theirs = (
        {n: torch.load(f / last / n, weights_only=False) for n in ("optimizer.pt", "rng_state.pth")}
        for f in (whole, broken)
    )
    assert flat(ours) == flat(theirs)


def flat(value: Any) -> Any:
    """Nested values with tensors and arrays as lists."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [flat(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def test_a_run_that_had_ended_trains_no_more(tmp_path: Path) -> None:
    course = train(taught(LORA), tmp_path)
    steps: list[int] = []
    again = train(pupil := taught(LORA), tmp_path, advance=steps.append)
    assert again == course
    assert steps == []
    saved = load_file(tmp_path / f"checkpoint-{course.best}" / "trained.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in pupil.state().items())


def test_only_the_last_and_the_best_checkpoint_are_kept(tmp_path: Path) -> None:
    course = train(taught(LORA), tmp_path)
    kept = {p.name for p in tmp_path.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{STEPS}", f"checkpoint-{course.best}"}


# -- how training ends ------------------------------------------------------------------------


def test_weights_that_are_not_finite_stop_it(tmp_path: Path) -> None:
    with pytest.raises(PrunecError) as raised:
        train(taught(FULL), tmp_path, Lesson(40, BATCH, lr=1e18, save_every=1))
    (said,) = raised.value.diagnostics
    assert said.code == "P874"
    kept = sorted(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert str(kept[-1]) in said.message
    for tensor in load_file(kept[-1] / "trained.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_patience_ends_it_and_the_best_weights_stay(tmp_path: Path) -> None:
    """At such a rate the held-out loss rises from the first look on."""
    lesson = Lesson(STEPS, BATCH, lr=0.5, save_every=2, patience=2)
    course = train(pupil := taught(FULL), tmp_path, lesson)
    looks = dict(course.held_out)
    assert course.best == min(looks, key=looks.__getitem__)
    assert course.steps == course.best + 2 * 2 < STEPS
    held = batches(inputs(), range(WINDOWS, WINDOWS + 4), BATCH, torch.device("cpu"))
    assert held_out_loss(objective(), pupil.module, held) == looks[course.best]
    assert train(taught(FULL), tmp_path, lesson) == course, "and a run that is resumed knows it"


# -- what learns ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "bert", "t5"])
def test_updates_are_what_the_trained_model_computes_with(name: str) -> None:
    """The plain model with the updates gives what the one with adapters gives."""
    model = zoo.build(name, seed=1)
    feeds = zoo.inputs(name)
    plain = {n: p.detach().clone() for n, p in model.named_parameters()}
    pupil = student(model, LORA, 4, seed=0)
    for parameter in pupil.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    pupil.module.eval()
    adapted = run_model(pupil.module, feeds).first
    updates = pupil.updates()
    assert updates.keys() <= plain.keys()
    assert set(updates) == {f"{path}.weight" for path in linear_layers(zoo.build(name))}
    again = zoo.build(name, seed=1)
    for parameter, update in updates.items():
        assert update.added
        again.get_parameter(parameter).data += update.value
    found = run_model(again, feeds).first
    assert adapted is not None
    assert found is not None
    torch.testing.assert_close(found, adapted, rtol=1e-4, atol=1e-5)  # another order of products


def test_linear_layers_are_neither_head_nor_embedding() -> None:
    found = linear_layers(zoo.build("llama_tied"))
    assert len(found) == 2 * 7
    assert not any("head" in path or "embed" in path for path in found)
    plain = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    plain[2].weight = plain[0].weight
    assert list(linear_layers(plain)) == ["1"]


def test_the_last_layers_alone_learn(tmp_path: Path) -> None:
    pupil = taught(Scope("last", 1))
    before = {n: p.detach().clone() for n, p in pupil.base.named_parameters()}
    train(pupil, tmp_path)
    changed = {n for n, p in pupil.base.named_parameters() if not torch.equal(p, before[n])}
    layers = blocks(pupil.base)
    assert changed == {
        f"model.layers.{len(layers) - 1}.{n}" for n, _ in layers[-1].named_parameters()
    }
    assert set(pupil.updates()) == changed


@pytest.mark.parametrize(
    ("weights", "scope"),
    [({"ce": 1.0}, FULL), ({"hidden": 1.0}, LORA), ({"kl": 1.0, "ce": 0.1, "hidden": 0.5}, FULL),
     ({"output": 1.0}, LORA)],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value.kind,
)  # fmt: skip
def test_every_loss_falls(weights: dict[str, float], scope: Scope, tmp_path: Path) -> None:
    course = train(taught(scope), tmp_path, Lesson(30, BATCH, 1e-2, 10), objective(weights))
    assert course.losses[-1][1] < 0.98 * course.losses[0][1]


def test_hidden_states_of_fewer_layers_pair_by_depth() -> None:
    goal = Objective({"hidden": 1.0}, Live(zoo.build("llama", num_hidden_layers=4), 0, True))
    batch = as_batch(inputs(), [0, 1])
    shallow = zoo.build("llama", num_hidden_layers=2)
    own = run_model(shallow, batch, hidden=True).hidden
    wanted = goal.teacher(batch).hidden if goal.teacher else ()
    pairs = [(own[1], wanted[2]), (own[2], wanted[4])]
    parts = [((s - t).square().sum(-1) / t.square().sum(-1)).mean() for s, t in pairs]
    found = goal(shallow, batch)
    torch.testing.assert_close(found, torch.stack(parts).mean())


def test_stored_logits_teach_the_same(tmp_path: Path) -> None:
    live = Live(zoo.build("llama"), 16)
    (tmp_path / "state").mkdir()
    advanced: list[int] = []
    stored = store(live, inputs(), State(tmp_path / "state"), torch.device("cpu"), advanced.append)
    assert sum(advanced) == WINDOWS + 4
    batch = as_batch(inputs(), [3, 17])
    for ours, theirs in zip(
        vars(live(batch).top).values(), vars(stored(batch).top).values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_plain_module_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    small = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = {"input": np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)}
    rows = Rows(data, 56, 60 * 8, 0)
    held = batches(data, range(56, 64), 8, torch.device("cpu"))
    goal = Objective({"output": 1.0}, Live(dense, 0))
    before = held_out_loss(goal, small, held)
    fit(student(small, FULL, 0, 0), goal, rows, held, Lesson(60, 8, 1e-2, 20), tmp_path)
    assert held_out_loss(goal, small, held) < 0.5 * before


def test_the_order_of_data_is_the_seed_s() -> None:
    rows = Rows(inputs(), WINDOWS, 50, seed=3)
    assert sorted(rows.order[:WINDOWS]) == sorted(rows.order[WINDOWS : 2 * WINDOWS])
    assert list(rows.order[:WINDOWS]) != list(rows.order[WINDOWS : 2 * WINDOWS])
    np.testing.assert_array_equal(rows.order, Rows(inputs(), WINDOWS, 50, seed=3).order)
