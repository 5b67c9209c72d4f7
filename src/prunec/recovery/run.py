"""`prunec recover`: read models and data, train, and write the student with its new weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prunec.frontends.source import resolve
from prunec.options.recipe import write_recipe
from prunec.output.staging import Formats, staged
from prunec.progress import Progress
from prunec.ranks import is_first, meet, world_size
from prunec.recovery.blockwise import Blockwise
from prunec.recovery.lessons import Texts, read_texts
from prunec.recovery.models import (
    Opened,
    check_alike,
    check_quantizer,
    device,
    open_model,
    open_student,
    writes,
)
from prunec.recovery.objective import Objective, settle_losses
from prunec.recovery.options import RecoverOptions
from prunec.recovery.report import RecoverReport
from prunec.recovery.rows import Rows, batches
from prunec.recovery.student import Student, student
from prunec.recovery.teacher import Live, Teacher, run_model, store
from prunec.recovery.training import Course, Lesson, fit, held_out_loss
from prunec.recovery.writing import write_trained
from prunec.resume.hashes import hash_source
from prunec.resume.state import State, forget_state, kept_state, key_of, state_of_first

__all__ = ["recover"]

CHECKPOINTS = "checkpoints"


def recover(options: RecoverOptions, progress: Progress) -> RecoverReport:
    """Train a pruned model as `options` (settled) say and write OUT, which appears when whole.

    Checkpoints lie beside OUT while it runs; `resume` goes on from the last of them.
    """
    if options.scope.kind == "qlora":
        check_quantizer()
    if not is_first():  # it learns beside the first, which writes
        with state_of_first(options.out) as state:
            return _run(options, progress, state).write(None)
    with staged(options.out, overwrite=options.overwrite, sources=_sources(options)) as stage:
        if not options.resume:
            forget_state(options.out)
        with kept_state(options.out, _key(options), resume=True) as state:
            assert state is not None
            meet()
            report = _run(options, progress, state).write(stage / Formats.HF)
            text = json.dumps(report.to_json(), indent=1)
            (stage / Formats.REPORT).write_text(text, encoding="utf-8")
            told = replace(options, model=_checkpoint(options.model))
            write_recipe(stage / Formats.RECIPE, told, _hash(options.model))
            return report


def _run(options: RecoverOptions, progress: Progress, state: State) -> _Run | Blockwise:
    return (Blockwise if options.blockwise else _Run)(options, progress, state)


@dataclass
class _Run:
    """One recovery. The teacher is let go as soon as it has said all that is needed of it."""

    options: RecoverOptions
    progress: Progress
    state: State
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path | None) -> RecoverReport:
        """Train, and write the student to `folder` if there is one."""
        options, progress = self.options, self.progress
        with self._timed("load"), progress.step("Reading the models"):
            pruned, dense = self._opened()
        with self._timed("data"):
            reader = dense or pruned
            texts = read_texts(reader.source, reader.model, options, progress)
        for note in texts.notes:
            progress.note(note)
        wanted = self._spoken(dense, texts)
        before = self._spoken(pruned, texts)
        objective = self._objective(pruned, dense, texts)
        params = sum(p.numel() for p in pruned.model.parameters())
        taught = student(pruned.model, options.scope, options.rank, options.seed)
        taught.module.to(device())
        held = batches(texts.inputs, texts.held, options.batch, device())
        losses = [held_out_loss(objective, taught.module, held)]
        course = self._trained(taught, objective, texts)
        losses.append(held_out_loss(objective, taught.module, held))
        after = self._spoken(pruned, texts)
        meet()  # nobody reads the state any more, which goes with the first process
        size = 0
        if folder is not None:
            with self._timed("write"), progress.step(f"Writing {Formats.HF}"):
                size = write_trained(pruned.source, taught.updates(), folder)
        return self._report(
            taught, objective, course, texts,
            params=params, size=size, before=losses[0], after=losses[1],
            gains=texts.gains(wanted, before, after),
        )  # fmt: skip

    def _opened(self) -> tuple[Opened, Opened | None]:
        options = self.options
        trust, quantized = options.trust_remote_code, options.scope.kind == "qlora"
        pruned = open_student(options.model, trust=trust, quantized=quantized)
        if options.teacher is None:
            return pruned, None
        dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        dense = open_model(options.teacher, trust=trust, dtype=dtype)
        check_alike(pruned, dense)
        dense.model.to(device())
        return pruned, dense

    def _spoken(self, opened: Opened | None, texts: Texts) -> list[float] | None:
        """The loss of the next token on the held-out windows of each source."""
        if opened is None or not writes(opened.model):
            return None
        found = []
        for rows in texts.held_by_source():
            some = batches(texts.inputs, rows, self.options.batch, device())
            found.append(held_out_loss(Objective({"ce": 1.0}), opened.model, some))
        return found

    def _objective(self, pruned: Opened, dense: Opened | None, texts: Texts) -> Objective:
        """The losses that fit both models, and the teacher that training listens to."""
        options = self.options
        (batch,) = batches(texts.inputs, texts.held[:1], 1, device())
        hidden = "hidden" in options.weights
        with torch.no_grad():
            own = run_model(pruned.model.to(device()), batch, hidden=hidden)
            wanted = None if dense is None else run_model(dense.model, batch, hidden=hidden)
        losses = settle_losses(options.weights, own, wanted, writes=writes(pruned.model))
        if dense is None or losses.keys() == {"ce"}:
            return Objective(losses)
        live = Live(dense.model, options.top_k if "kl" in losses else 0, hidden)
        teacher: Teacher = live
        if options.store_logits:
            with self.progress.step("Storing the teacher's logits", len(texts)) as advance:
                if not is_first():  # the others find all of them there
                    meet()
                teacher = store(live, texts.inputs, self.state, device(), advance)
                if is_first():
                    meet()
        return Objective(losses, teacher)

    def _trained(self, taught: Student, objective: Objective, texts: Texts) -> Course:
        options = self.options
        assert options.lr is not None, "options are settled"
        lesson = Lesson(
            options.steps, options.batch, options.lr, options.save_every, options.patience,
            options.precision, options.seed,
        )  # fmt: skip
        count = options.steps * options.batch * world_size()
        rows = Rows(texts.inputs, texts.train, count, options.seed)
        held = batches(texts.inputs, texts.held, options.batch, device())
        folder = self.state.folder / CHECKPOINTS
        with self._timed("train"), self.progress.step("Training", options.steps) as advance:
            return fit(taught, objective, rows, held, lesson, folder, advance)

    def _report(
        self, taught: Student, objective: Objective, course: Course, texts: Texts, **found: Any
    ) -> RecoverReport:
        options = self.options
        assert options.lr is not None, "options are settled"
        size, gains = found.pop("size"), found.pop("gains")
        return RecoverReport(
            model=options.model,
            teacher=options.teacher,
            data=options.data,
            train=options.train,
            rank=options.rank if options.scope.adapters else None,
            losses=objective.weights,
            trained=sum(p.numel() for p in taught.module.parameters() if p.requires_grad),
            lr=options.lr,
            steps=course.steps,
            best_step=course.best,
            batch=options.batch * world_size(),
            length=next(iter(texts.inputs.values())).shape[1],
            windows=texts.train,
            gains=gains,
            curve=course.held_out,
            path=Formats.HF,
            bytes=size,
            notes=texts.notes,
            seconds=self.seconds,
            **found,
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _sources(options: RecoverOptions) -> list[Path]:
    """The files and folders that a run reads and must not replace."""
    named = [options.model, *([] if options.teacher is None else [options.teacher])]
    paths = [*(Path(name).expanduser() for name in named), *options.read_files]
    return [path for path in paths if path.exists()]


def _key(options: RecoverOptions) -> str:
    """What checkpoints belong to: the models, the data, and what decides the result."""
    decides = [
        getattr(options, name)
        for name in options.__dataclass_fields__
        if name not in ("model", "teacher", "out", "resume", "overwrite")
    ]
    names = [options.model, *([] if options.teacher is None else [options.teacher])]
    hashes = [_hash(name) for name in names]
    return key_of(decides, options.read_files, *hashes)


def _hash(model: str) -> str:
    path = Path(_checkpoint(model)).expanduser()
    return hash_source(path) if path.exists() else resolve(model).name


def _checkpoint(model: str) -> str:
    """The checkpoint in a folder that prunec wrote, or what was named."""
    inner = Path(model).expanduser() / Formats.HF
    return str(inner) if inner.is_dir() else model
