"""Distillation block by block: each learns what the dense model's block gives, one in memory.

A block reads what the student's blocks before it give, trained already, and is to give the state
that the dense model has behind its own block: what the earlier ones leave wrong it can make good.
The states of all windows lie on disk, those of the dense model, of the student, and for the
held-out windows of the student as it was. Of a shallower student each block learns the state at
the same share of the dense model's depth.

Puzzle (Bercovich et al., 2024) trains blocks alone from dense inputs (section 3); that inputs
come from the compressed blocks before follows GPTQ (Frantar et al., ICLR 2023).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunec.ir.diagnostics import Exit, fail
from prunec.output.staging import Formats
from prunec.progress import Progress
from prunec.recovery.frame import STATE, WANTED, Frame
from prunec.recovery.lessons import Texts, read_texts
from prunec.recovery.losses import relative_error
from prunec.recovery.models import check_alike, device, open_model, open_student, writes
from prunec.recovery.objective import Objective, mean_of
from prunec.recovery.options import RecoverOptions
from prunec.recovery.report import BlockRow, RecoverReport
from prunec.recovery.rows import Rows, batches
from prunec.recovery.streams import Streams
from prunec.recovery.student import Update, check_rank, student
from prunec.recovery.teacher import Batch
from prunec.recovery.training import Lesson, fit, held_out_loss
from prunec.recovery.writing import write_trained
from prunec.resume.state import State

__all__ = ["Blockwise"]

DENSE, OWN, UNTRAINED = "dense", "own", "untrained"
"""Ways through a model: the teacher's; the student's, with trained blocks; and without."""

DONE = "blocks"
"""The step of the state that tells of the blocks that are done."""


@dataclass(frozen=True)
class BlockLoss:
    """The relative squared error of what a block gives against `WANTED`."""

    frame: Frame
    number: int

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        found = self.frame.reach(self.number, batch).run(model, batch[STATE])
        return mean_of("hidden", relative_error((found,), (batch[WANTED],)), batch)


@dataclass
class Blockwise:
    """One recovery, block by block."""

    options: RecoverOptions
    progress: Progress
    state: State
    seconds: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path | None) -> RecoverReport:
        """Train, and write the student to `folder`."""
        assert folder is not None, "one process trains block by block"
        with self._timed("load"), self.progress.step("Reading the models"):
            own, dense = self._frames()
        with self._timed("data"):
            texts = read_texts(dense.opened.source, dense.model, self.options, self.progress)
        for note in texts.notes:
            self.progress.note(note)
        course = _Course(self.options, self.progress, self.state, own, dense, texts)
        with self._timed("train"):
            rows = course.run()
        before, after, gains = course.judged()
        with self._timed("write"), self.progress.step(f"Writing {Formats.HF}"):
            updates = _Stored(self.state.folder, len(own), self.options.scope.adapters)
            size = write_trained(own.opened.source, updates, folder)
        options = self.options
        assert options.lr is not None, "options are settled"
        return RecoverReport(
            model=options.model,
            teacher=options.teacher,
            data=options.data,
            train=options.train,
            rank=options.rank if options.scope.adapters else None,
            losses={"block": 1.0},
            trained=course.trained,
            params=sum(p.numel() for p in own.model.parameters()),
            lr=options.lr,
            steps=options.steps,
            best_step=max(row.best_step for row in rows),
            batch=options.batch,
            length=next(iter(texts.inputs.values())).shape[1],
            windows=texts.train,
            before=before,
            after=after,
            gains=texts.gains(*gains),
            curve=(),
            path=Formats.HF,
            bytes=size,
            notes=texts.notes,
            blocks=tuple(rows),
            seconds=self.seconds,
        )

    def _frames(self) -> tuple[Frame, Frame]:
        options = self.options
        assert options.teacher is not None, "options are settled"
        trust = options.trust_remote_code
        pruned = open_student(options.model, trust=trust, empty=True)
        dense = open_model(options.teacher, trust=trust, empty=True)
        check_alike(pruned, dense)
        if options.scope.adapters:
            check_rank(pruned.model, options.rank)
        return Frame(pruned, device()), Frame(dense, device())

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


@dataclass
class _Course:
    """The way through all blocks. What is done of it is in the state, and not done again."""

    options: RecoverOptions
    progress: Progress
    state: State
    own: Frame
    dense: Frame
    texts: Texts
    trained: int = 0

    def run(self) -> list[BlockRow]:
        """Train one block after the other."""
        self._survey()
        stored = self.state.load(DONE)
        done = [] if stored is None else [tuple(row) for row in stored["rows"].tolist()]
        self.trained = 0 if stored is None else int(stored["trained"])
        count = len(self.own)
        if not done:
            self._begin()
        steps = count * self.options.steps
        with self.progress.step("Training block by block", steps) as advance:
            advance(len(done) * self.options.steps)
            for number in range(len(done), count):
                done.append(self._block(number, advance))
                rows = np.asarray(done, np.float64)
                self.state.save(DONE, {"rows": rows, "trained": np.asarray(self.trained)})
                self._tidy(number)
        return [
            BlockRow(path, before, after, int(steps), int(best))
            for path, (before, after, steps, best) in zip(self.own.paths, done, strict=True)
        ]

    def judged(self) -> tuple[float, float, list[list[float] | None]]:
        """The error behind the last block before and after training; and the losses of the next
        token of dense model and student, before and after."""
        ends = {UNTRAINED: len(self.own), OWN: len(self.own), DENSE: len(self.dense)}
        held = list(self.texts.held)
        streams = self.streams
        states = {way: streams.open(way, number) for way, number in ends.items()}
        kept = {way: x if way == UNTRAINED else x[held] for way, x in states.items()}
        tensors = {way: torch.from_numpy(np.array(x)) for way, x in kept.items()}
        inputs = {name: array[held] for name, array in self.texts.inputs.items()}
        batch = {name: torch.from_numpy(array) for name, array in inputs.items()}
        errors = [
            float(mean_of("hidden", relative_error((tensors[w],), (tensors[DENSE],)), batch))
            for w in (UNTRAINED, OWN)
        ]
        frames = {DENSE: self.dense, UNTRAINED: self.own, OWN: self.own}
        gains = [self._spoken(frames[way], kept[way]) for way in (DENSE, UNTRAINED, OWN)]
        return errors[0], errors[1], gains

    def _spoken(self, frame: Frame, states: Any) -> list[float] | None:
        """The loss of the next token on the held-out windows of each source."""
        if not writes(frame.model):
            return None
        place = {row: at for at, row in enumerate(self.texts.held)}
        says = Objective({"ce": 1.0})
        found = []
        with frame.resident(), torch.no_grad():
            for rows in self.texts.held_by_source():
                inputs = {name: array[rows] for name, array in self.texts.inputs.items()}
                inputs[STATE] = states[[place[row] for row in rows]]
                some = batches(inputs, range(len(rows)), self.options.batch, device())
                found.append(sum(float(says(frame.finish, b)) for b in some) / len(some))
        return found

    # -- the states between blocks ----------------------------------------------------------

    @cached_property
    def streams(self) -> Streams:
        return Streams(self.state.folder)

    def _survey(self) -> None:
        """See that both models go block by block, and with states that compare."""
        (batch,) = batches(self.texts.inputs, self.texts.held[:1], 1, device())
        ours, theirs = (frame.survey(batch).shape for frame in (self.own, self.dense))
        if ours == theirs:
            return
        raise fail(
            "P873",
            f"states of teacher and student differ in shape: {list(theirs)} and {list(ours)}",
            where="--teacher",
            help="give the dense model that this one was pruned from; where the width of the"
            " states was pruned, only the logits compare: leave out --blockwise",
            exit_code=Exit.USAGE,
        )

    def _begin(self) -> None:
        """What the first blocks read."""
        for frame, way in ((self.dense, DENSE), (self.own, OWN), (self.own, UNTRAINED)):
            rows = self._rows(way)
            with frame.resident():
                parts = (frame.reach(0, batch).state for batch in self._batches(rows))
                self.streams.write(way, 0, len(rows), parts)

    def _rows(self, way: str) -> Sequence[int]:
        return list(self.texts.held) if way == UNTRAINED else range(len(self.texts))

    def _batches(self, rows: Sequence[int], states: Any = None) -> Iterator[Batch]:
        """Windows in batches; `states` has one row for each."""
        size = self.options.batch
        for start in range(0, len(rows), size):
            (batch,) = batches(self.texts.inputs, rows[start : start + size], size, device())
            if states is not None:
                part = torch.from_numpy(np.array(states[start : start + size]))
                batch[STATE] = part.to(device())
            yield batch

    def _through(self, frame: Frame, way: str, number: int) -> None:
        """Take the states on their way through a block, which is in memory."""
        rows, states = self._rows(way), self.streams.open(way, number)
        block = frame.blocks[number]

        def parts() -> Iterator[Tensor]:
            with torch.no_grad():
                for batch in self._batches(rows, states):
                    yield frame.reach(number, batch).run(block, batch[STATE])

        self.streams.write(way, number + 1, len(rows), parts())

    def _tidy(self, number: int) -> None:
        """Let go of what no further block reads."""
        for way in (OWN, UNTRAINED):
            self.streams.forget(way, number + 1)
        self.streams.forget(DENSE, self._depth(number))
        shutil.rmtree(self._checkpoints(number), ignore_errors=True)

    # -- one block --------------------------------------------------------------------------

    def _depth(self, number: int) -> int:
        """How many dense blocks lie before the state that a block is to give."""
        return round((number + 1) * len(self.dense) / len(self.own))

    def _checkpoints(self, number: int) -> Path:
        return self.state.folder / f"checkpoints-{number}"

    def _block(self, number: int, advance: Any) -> tuple[float, float, float, float]:
        """Train one: its error before and after, the steps done and the best of them."""
        goal = self._depth(number)
        for at in range(self._depth(number - 1) if number else 0, goal):
            if not self.streams.path(DENSE, at + 1).exists():
                with self.dense.resident(at):
                    self._through(self.dense, DENSE, at)
        with self.own.resident(number):
            self._through(self.own, UNTRAINED, number)
            row, taught, updates = self._taught(number, goal, advance)
            self.trained += taught
            prefix = f"{self.own.paths[number]}."
            named = {prefix + n: u.value.contiguous().clone() for n, u in updates.items()}
            partial = self.state.folder / "updates.partial"
            save_file(named, partial)
            partial.replace(_updates(self.state.folder, number))
            self._through(self.own, OWN, number)
        return row

    def _taught(
        self, number: int, goal: int, advance: Any
    ) -> tuple[tuple[float, float, float, float], int, dict[str, Update]]:
        """Train the block that is in memory: its row, parameters that learned, and the updates,
        which are in it and none where it got no better."""
        options, texts = self.options, self.texts
        assert options.lr is not None, "options are settled"
        lesson = Lesson(
            options.steps, options.batch, options.lr, options.save_every, options.patience,
            options.precision, options.seed,
        )  # fmt: skip
        inputs = dict(texts.inputs)
        inputs |= {STATE: self.streams.open(OWN, number), WANTED: self.streams.open(DENSE, goal)}
        rows = Rows(inputs, texts.train, options.steps * options.batch, options.seed)
        held = batches(inputs, texts.held, options.batch, device())
        loss = BlockLoss(self.own, number)
        block = self.own.blocks[number]
        before = held_out_loss(loss, block, held)
        pupil = student(block, options.scope, options.rank, options.seed)
        count = sum(p.numel() for p in pupil.module.parameters() if p.requires_grad)
        course = fit(pupil, loss, rows, held, lesson, self._checkpoints(number), advance)
        updates = pupil.apply()
        after = held_out_loss(loss, block, held)
        if not after < before:
            self.own.reload(number)
            return (before, before, course.steps, 0), count, {}
        return (before, after, course.steps, course.best), count, updates


def _updates(folder: Path, number: int) -> Path:
    return folder / f"block-{number}.safetensors"


class _Stored(Mapping[str, Update]):
    """The updates of all blocks, each read when it is asked for."""

    def __init__(self, folder: Path, blocks: int, added: bool) -> None:
        self.added = added
        self.files: dict[str, Path] = {}
        for number in range(blocks):
            file = _updates(folder, number)
            with safe_open(file, "pt") as stored:
                self.files |= dict.fromkeys(stored.keys(), file)

    def __getitem__(self, name: str) -> Update:
        with safe_open(self.files[name], "pt") as stored:
            return Update(stored.get_tensor(name), self.added)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
