"""transformers' Trainer with our loss, and checkpoints that are there wholly or not at all.

A checkpoint holds what learns, the optimiser, the schedule and the state of the random numbers; the
order of the data is known beforehand (`rows`). A run that was killed therefore goes on to the same
result, bit for bit on one thread.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from prunec.ir.diagnostics import PrunecError, fail
from prunec.ranks import is_first, meet, world_size
from prunec.recovery.rows import Rows
from prunec.recovery.student import Student
from prunec.recovery.teacher import Batch

__all__ = ["Course", "Lesson", "fit", "held_out_loss"]

CHECKPOINT = "checkpoint-"
PARTIAL = "partial"
WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"
HELD_LOSS = "eval_loss"
Loss = Callable[[Any, Batch], Tensor]
"""What training makes small: the loss of a model on a batch."""

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class Lesson:
    """How to train: `steps` of `batch` windows at the rate `lr` (falling along a cosine), a
    checkpoint and a look at the held-out windows every `save_every` steps; after `patience` looks
    without a better one the training ends. What it leads to is the checkpoint with the least
    held-out loss, or the `last`."""

    steps: int
    batch: int
    lr: float
    save_every: int = 50
    patience: int | None = None
    precision: str = "float32"
    seed: int = 0
    last: bool = False


@dataclass(frozen=True)
class Course:
    """What came of it: `steps` done, the step whose weights the student has now, and (step, loss)
    pairs of the training and of the held-out windows."""

    steps: int
    best: int
    losses: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...]


def fit(
    student: Student,
    objective: Loss,
    rows: Rows,
    held: Sequence[Batch],
    lesson: Lesson,
    folder: Path,
    advance: Callable[[int], None] = lambda steps: None,
) -> Course:
    """Train `student` in place, going on from the last checkpoint in `folder` if there is one.

    Raises P874 when a loss or a weight is not finite, naming the last good checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_first():
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    meet()
    trainer = _Trainer(student, objective, rows, held, lesson, folder, advance)
    last = _last(folder)
    if last is None or not _finished(last, lesson):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        last = _last(folder)
    assert last is not None, "training ends with a checkpoint"
    state = json.loads((last / STATE).read_text(encoding="utf-8"))
    best = (None if lesson.last else state["best_global_step"]) or state["global_step"]
    student.restore(load_file(folder / f"{CHECKPOINT}{best}" / WEIGHTS))
    logs = state["log_history"]
    return Course(
        int(state["global_step"]), int(best), _curve(logs, "loss"), _curve(logs, HELD_LOSS)
    )


@torch.no_grad()
def held_out_loss(objective: Loss, model: nn.Module, held: Sequence[Batch]) -> float:
    """The mean loss over batches, without dropout."""
    training = model.training
    model.eval()
    total = sum(float(objective(model, batch)) for batch in held)
    model.train(training)
    return total / len(held)


class _Trainer(Trainer):
    student: Student
    objective: Loss
    rows: Rows

    def __init__(
        self,
        student: Student,
        objective: Loss,
        rows: Rows,
        held: Sequence[Batch],
        lesson: Lesson,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        self.student, self.objective, self.rows = student, objective, rows
        self.held, self.folder = held, folder
        callbacks: list[TrainerCallback] = [_Advance(advance)]
        if lesson.patience is not None:
            callbacks.append(EarlyStoppingCallback(lesson.patience))
        super().__init__(
            student.module,
            _arguments(lesson, folder),
            train_dataset=rows,
            eval_dataset=list(held),
            callbacks=callbacks,
            optimizers=(_optimizer(student, lesson.lr), None),
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = False

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.rows)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        return self.objective(model, inputs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise self._diverged("the loss")
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {HELD_LOSS: held_out_loss(self.objective, self.student.module, self.held)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # -- checkpoints ------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / PARTIAL)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write aside, move into place, and forget what is neither the last nor the best."""
        for name, tensor in self.student.state().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise self._diverged(name)
        super()._save_checkpoint(model, trial)
        meet()
        if self.args.should_save:
            self._put_in_place()
        meet()

    def _put_in_place(self) -> None:
        made = self.folder / PARTIAL / f"{CHECKPOINT}{self.state.global_step}"
        made.rename(self.folder / made.name)
        needed = {self.state.global_step, self.state.best_global_step}
        for step, path in _checkpoints(self.folder).items():
            if step not in needed:
                shutil.rmtree(path)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        tensors = {n: t.contiguous().clone() for n, t in self.student.state().items()}
        save_file(tensors, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.student.restore(load_file(Path(resume_from_checkpoint) / WEIGHTS))

    def _diverged(self, what: str) -> PrunecError:
        last = _last(self.folder)
        kept = "there is no checkpoint yet" if last is None else f"the last good one is {last}"
        return fail(
            "P874",
            f"{what} is not finite at step {self.state.global_step + 1}; {kept}",
            where=str(last or self.folder),
            help="train again with a lower --lr or in --precision float32",
        )


class _Advance(TrainerCallback):
    """Tells how many steps are done."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.done = advance, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step - self.done)
        self.done = state.global_step


def _optimizer(student: Student, lr: float) -> torch.optim.Optimizer | None:
    """AdamW with a rate for each pace, or None for that of transformers with one for all."""
    if not student.paces:
        return None
    apart = {id(p) for pace in student.paces for p in pace.parameters}
    others = [p for p in student.module.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
    for pace in student.paces:
        groups.append({"params": [*pace.parameters], "lr": pace.lr, "maximize": pace.climbs})
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _arguments(lesson: Lesson, folder: Path) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=lesson.steps,
        per_device_train_batch_size=lesson.batch,
        learning_rate=lesson.lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(WARM_UP * lesson.steps)),
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=lesson.precision == "bfloat16",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and world_size() > 1 else None,
        seed=lesson.seed,
        eval_strategy="steps",
        eval_steps=lesson.save_every,
        save_strategy="steps",
        save_steps=lesson.save_every,
        logging_steps=min(10, lesson.save_every),
        metric_for_best_model=HELD_LOSS,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        report_to=[],
    )


def _checkpoints(folder: Path) -> dict[int, Path]:
    found = (p for p in folder.glob(f"{CHECKPOINT}*") if p.is_dir())
    return {int(path.name.removeprefix(CHECKPOINT)): path for path in found}


def _last(folder: Path) -> Path | None:
    found = _checkpoints(folder)
    return found[max(found)] if found else None


def _finished(checkpoint: Path, lesson: Lesson) -> bool:
    """Whether training ended with this checkpoint, at the last step or before."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["global_step"] >= lesson.steps:
        return True
    control = state["stateful_callbacks"]["TrainerControl"]
    return bool(control["args"]["should_training_stop"])


def _curve(logs: Sequence[dict[str, float]], name: str) -> tuple[tuple[int, float], ...]:
    return tuple((int(entry["step"]), float(entry[name])) for entry in logs if name in entry)
