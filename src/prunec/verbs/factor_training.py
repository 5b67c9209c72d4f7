"""Train the factors of a model, taught by the model itself; gates may choose their ranks meanwhile.

With gates all ranks start, in the order of their worth, under a budget that falls to the target
(Wang, Wohlwend, Lei: FLOP, EMNLP 2020); then the ranks are settled, and what remains learns on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from prunec.options.factorize import FactorizeOptions
from prunec.progress import Progress
from prunec.recovery.budget import Budget, Budgeted
from prunec.recovery.gates import OPEN
from prunec.recovery.lessons import Texts, read_texts
from prunec.recovery.models import Opened, open_model, writes
from prunec.recovery.objective import Objective, settle_losses
from prunec.recovery.options import RecoverOptions
from prunec.recovery.pairs import Pair, layer_of, put, splittable
from prunec.recovery.rows import Rows, batches
from prunec.recovery.student import Pace, Student
from prunec.recovery.teacher import Live, run_model
from prunec.recovery.training import Lesson, fit, held_out_loss
from prunec.resume.state import State

__all__ = ["FactorTraining", "Worths"]

Array = npt.NDArray[Any]
Factors = Mapping[str, tuple[Array, Array]]
Worths = Mapping[str, Array]
"""How much each rank is worth to keep, by weight."""

WAY = 40.0
"""How far gates and multipliers may go in all steps: their rate is this over the steps. Between a
gate that is rarely closed and one that is rarely open lie about 10."""
GATED = 0.75
"""Share of the steps with gates, which fall to the target in the first half of these."""
SPREAD = 3.0
"""How much further open than the worst rank the best one starts."""
GATES = "prunec_budget"


@dataclass
class FactorTraining:
    """A model whose weights become two of `factors` each, and learn. `notes` tell what happened."""

    options: FactorizeOptions
    progress: Progress
    state: State | None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.options.out is None or self.options.steps, "options are settled"
        trust = self.options.trust_remote_code
        self.opened = open_model(self.options.model, trust=trust)
        self.model: nn.Module = self.opened.model
        self.told = _told(self.options)
        self.texts: Texts = read_texts(self.opened.source, self.model, self.told, self.progress)
        self.objective = _objective(self.opened, self.told, self.texts)

    def without_module(self, weights: Iterable[str]) -> tuple[str, ...]:
        """Weights that no linear layer or convolution of the module multiplies with."""
        return tuple(weight for weight in weights if not splittable(self.model, weight))

    def gated(
        self,
        factors: Factors,
        worths: Worths,
        dense: int,
        target: float,
        choose: Callable[[Worths], Mapping[str, Array]],
    ) -> dict[str, tuple[Array, Array]]:
        """Train with gates until the size expected of them is `target` of `dense` numbers, then
        keep of each weight the ranks that `choose` takes by how far their gates are open. A weight
        that it leaves out is one matrix again."""
        starts = _opened(worths)
        pairs = {
            weight: Pair(layer_of(self.model, weight), *factors[weight], starts[weight])
            for weight in factors
        }
        layers = {weight: layer_of(self.model, weight) for weight in factors}
        steps = max(1, round(GATED * self.told.steps))
        budget = Budget([*pairs.values()], dense, target, max(1, steps // 2))
        put(self.model, pairs)
        self.model.add_module(GATES, budget)
        gates = tuple(pair.log_alpha for pair in pairs.values() if pair.log_alpha is not None)
        paces = (Pace(gates, WAY / steps), Pace((budget.multipliers,), WAY / steps, climbs=True))
        self._fit("gates", Budgeted(self.objective, budget), steps, paces, last=True)
        self.notes["expected"] = float(budget.expected().detach())
        self.notes["target"] = target
        kept = choose({w: _array(pair.log_alpha) for w, pair in pairs.items()})
        delattr(self.model, GATES)
        found = {w: pair.factors() for w, pair in pairs.items()}
        for weight in found.keys() - kept.keys():
            first, second = (part.reshape(part.shape[:2]) for part in found[weight])
            layer = layers[weight]
            whole = torch.from_numpy(second @ first).reshape(layer.weight.shape)
            layer.weight.data = whole.to(layer.weight)
            put(self.model, {weight: layer})
        left = self.told.steps - steps
        taken = {w: (found[w][0][kept[w]], found[w][1][:, kept[w]]) for w in kept}
        return self._trained(taken, layers, left)

    def trained(self, factors: Factors) -> dict[str, tuple[Array, Array]]:
        """The factors after all steps."""
        layers = {weight: layer_of(self.model, weight) for weight in factors}
        return self._trained(factors, layers, self.told.steps)

    def others(self, names: Mapping[str, Any]) -> dict[str, Array]:
        """What else training changed, under the names of the dense model's parameters."""
        found = {}
        for name, tensor in self.model.state_dict().items():
            path, _, last = name.rpartition(".")
            own = f"{path.rpartition('.')[0]}.bias" if self._second(path) else name
            if own in names and not (self._second(path) and last == "weight"):
                found[own] = _array(tensor)
        return found

    def _second(self, path: str) -> bool:
        """Whether a module is the second layer of a pair."""
        above, _, last = path.rpartition(".")
        return last == "second" and isinstance(self.model.get_submodule(above), Pair)

    def _trained(
        self, factors: Factors, layers: Mapping[str, Any], steps: int
    ) -> dict[str, tuple[Array, Array]]:
        pairs = {w: Pair(layers[w], *factors[w]) for w in factors}
        put(self.model, pairs)
        if steps:
            self._fit("factors", self.objective, steps, (), last=False)
        return {w: pair.factors() for w, pair in pairs.items()}

    def _fit(
        self, name: str, objective: Any, steps: int, paces: tuple[Pace, ...], *, last: bool
    ) -> None:
        told, texts = self.told, self.texts
        assert told.lr is not None, "options are settled"
        for parameter in self.model.parameters():
            parameter.requires_grad = parameter.is_floating_point()
        student = Student(self.model, self.model, told.scope, paces)
        lesson = Lesson(
            steps, told.batch, told.lr, min(told.save_every, steps), seed=told.seed, last=last
        )
        device = next(self.model.parameters()).device
        rows = Rows(texts.inputs, texts.train, steps * told.batch, told.seed)
        held = batches(texts.inputs, texts.held, told.batch, device)
        before = held_out_loss(objective, self.model.eval(), held)
        start = {} if last else {n: t.clone() for n, t in student.state().items()}
        with self._folder() as folder, self.progress.step(f"Training {name}", steps) as advance:
            course = fit(student, objective, rows, held, lesson, folder / name, advance)
        self.model.eval()
        after, best = held_out_loss(objective, self.model, held), course.best
        if start and after > before:
            student.restore(start)
            after, best = before, 0
        self.notes[name] = {"steps": course.steps, "best_step": best, "loss": [before, after]}

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where checkpoints go."""
        if self.state is not None:
            yield self.state.folder
            return
        with tempfile.TemporaryDirectory(prefix="prunec-") as folder:
            yield Path(folder)


def _told(options: FactorizeOptions) -> RecoverOptions:
    """The same run in the words of `prunec recover`."""
    return RecoverOptions(
        model=options.model,
        out=options.out or Path(),
        data=options.calibration,
        teacher=options.model,
        train="full",
        steps=options.steps or 0,
        batch=options.batch,
        length=options.calibration_length or 0,
        lr=options.lr,
        seed=options.seed,
        trust_remote_code=options.trust_remote_code,
    ).settle()


def _objective(opened: Opened, told: RecoverOptions, texts: Texts) -> Objective:
    """What fits the model, with a copy of itself as the teacher."""
    teacher = open_model(told.model, trust=told.trust_remote_code).model
    (batch,) = batches(texts.inputs, texts.held[:1], 1, next(teacher.parameters()).device)
    with torch.no_grad():
        own = run_model(teacher, batch)
    losses = settle_losses({}, own, own, writes=writes(opened.model))
    return Objective(losses, Live(teacher, told.top_k if "kl" in losses else 0))


def _opened(worths: Worths) -> dict[str, Array]:
    """Where gates start: the better a rank, the further open, evenly spread."""
    values = np.sort(np.concatenate([*worths.values()]))
    return {
        weight: OPEN + SPREAD * np.searchsorted(values, worth) / len(values)
        for weight, worth in worths.items()
    }


def _array(tensor: Any) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found
