"""Run programs with ONNX Runtime alone: those that were read from an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunec.backends.ort_detour import Detours
from prunec.backends.ort_program import Array, Env, OrtProgram, Stretch, output_names
from prunec.backends.ort_stream import OrtStream
from prunec.engines.engine import Batches, Told
from prunec.engines.masking import MaskedWeights, gives_logits
from prunec.engines.ort_depth import distances, observe_ends
from prunec.engines.ort_distance import Distance
from prunec.frontends.onnx import OnnxProgram
from prunec.ir.diagnostics import Exit, fail
from prunec.measuring.samples import first_numbers
from prunec.output.staging import Formats
from prunec.passes.allocators import Divergence
from prunec.passes.compress import select
from prunec.passes.coupling import Group, Place
from prunec.passes.depth import Ends
from prunec.passes.profile import Slopes, Stream, Weights
from prunec.passes.regions import Region
from prunec.passes.routing import Routed
from prunec.passes.score import Scores
from prunec.planning.evidence import PROBED, spread
from prunec.progress import Progress
from prunec.reports.data import Check, SampleRow, SourceRow
from prunec.resume.scratch import Scratch
from prunec.runs.loading import Loaded, Overlaid

if TYPE_CHECKING:
    from prunec.runs.run import Outcome

__all__ = ["OrtEngine"]

NOISE = 0.01
"""Of the size of a value: what is added to it to see how the outputs feel it."""


class OrtEngine:
    """Implements `prunec.engines.engine.Engine`. There are no gradients, and nothing is known
    of what the model is for: losses are distances of outputs from those of the dense model. `left`
    is the file without the regions `removed`."""

    def __init__(
        self, file: OnnxProgram, left: OnnxProgram, removed: Sequence[Region] = ()
    ) -> None:
        self.file, self.left, self.removed = file, left, removed
        self.graph = file.graph

    @cached_property
    def program(self) -> OrtProgram:
        """The whole one."""
        return _program(self.file)

    @cached_property
    def smaller(self) -> OrtProgram:
        """The one without the regions."""
        return _program(self.left) if self.removed else self.program

    def stream(
        self, loaded: Loaded, batches: Batches, budget: int, *, targets: bool = False
    ) -> AbstractContextManager[Stream]:
        return OrtStream(self.smaller, loaded.weights, batches, budget, replaced=Scratch())

    def slopes(
        self, loaded: Loaded, batches: Batches, budget: int, places: Iterable[Place], told: Told
    ) -> dict[Place, Slopes]:
        raise fail(
            "P815",
            "ONNX Runtime gives no gradients, and the method needs those of the loss",
            where="--method",
            help="use magnitude, wanda-sp, flap, fasp, ziplm, osscar or slimgpt; or prune the"
            " checkpoint that the file was exported from",
            exit_code=Exit.USAGE,
        )

    def routed(
        self, loaded: Loaded, batches: Batches, groups: Sequence[Group]
    ) -> dict[str, Routed]:
        return {}  # experts of a file are pinned: no rule follows what its operations choose

    def felt(
        self, loaded: Loaded, batches: Batches, budget: int, results: Sequence[str], told: Told
    ) -> dict[str, float]:
        """Seen by adding a little noise: half its mean square times the Fisher information is how
        far it moves the outputs (the divergence of distributions, to second order)."""
        sums = dict.fromkeys(results, 0.0)
        rng = np.random.default_rng(0)
        few, windows = spread(batches, PROBED), sum(map(_rows, batches))
        for batch in few:
            forward = _Forward(self.smaller, loaded.weights, batch)
            dense = forward.outputs
            for result in results:
                told(1 / (len(few) * len(results)))
                value = forward.value(result)
                size = NOISE * float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
                if not size > 0:
                    continue
                noise = (size * rng.standard_normal(value.shape)).astype(value.dtype)
                moved = forward.ahead(result, value + noise)
                distance = Distance(gives_logits(self.graph))
                distance.add(dense, moved)
                square = float(np.square(noise, dtype=np.float64).sum())
                sums[result] += distance.mean() * _rows(batch) / square
        return {name: total / len(few) / windows for name, total in sums.items()}

    def divergence(
        self,
        loaded: Loaded,
        groups: Sequence[Group],
        scores: Mapping[str, Scores],
        windows: Batches,
    ) -> Divergence:
        dense = [_Forward(self.smaller, loaded.weights, window).outputs for window in windows]

        def measure(counts: Mapping[str, int]) -> float:
            selections = {
                g.name: select(scores[g.name], counts[g.name], g)
                for g in groups
                if counts[g.name] < g.size
            }
            masked = MaskedWeights(loaded.coupling, loaded.weights, groups, selections)
            weights = Overlaid(loaded.weights, masked)
            distance = Distance(gives_logits(self.graph))
            for window, wanted in zip(windows, dense, strict=True):
                distance.add(wanted, _Forward(self.smaller, weights, window).outputs)
            found = distance.mean()
            return found if math.isfinite(found) else math.inf

        return lambda plans: [measure(counts) for counts in plans]

    def output_error(
        self, pruned: Outcome, inputs: Mapping[str, Array]
    ) -> tuple[float, tuple[SampleRow, ...]]:
        """The norm of the difference of all outputs over the norm of the dense ones, and the first
        numbers of both. What was pruned is masked where it is read, which is the same (law 1) but
        for a statistic taken over it."""
        weights = _masked(pruned)
        distance = Distance(logits=False)
        samples: tuple[SampleRow, ...] = ()
        for window in self._windows(inputs):
            dense = _Forward(self.program, pruned.loaded.weights, window).outputs
            found = self._smaller.run(window, weights)
            distance.add({name: dense[name] for name in found}, found)
            samples = samples or first_numbers(dense, found)
        return math.sqrt(distance.mean()), samples

    def _windows(self, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """One by one, or as many as the program reads at once."""
        fixed = [v.type.shape[0] for v in self.graph.inputs if v.type.shape]
        width = min((n for n in fixed if isinstance(n, int)), default=1)
        count = len(next(iter(inputs.values())))
        return [
            {name: array[i : i + width] for name, array in inputs.items()}
            for i in range(0, count - width + 1, width)
        ]

    @cached_property
    def _smaller(self) -> Detours:
        return Detours(self.program, self.removed)

    def losses(
        self,
        loaded: Loaded,
        windows: Batches,
        gone: Sequence[Region],
        left: Sequence[Region],
        step: Callable[[], None],
    ) -> dict[str, float]:
        sets, logits = [[*gone, region] for region in left], gives_logits(self.graph)
        found = distances(self.program, loaded.weights, windows, sets, step, logits)
        return {region.name: distance for region, distance in zip(left, found, strict=True)}

    def without(
        self,
        loaded: Loaded,
        windows: Batches,
        sets: Sequence[Sequence[Region]],
        step: Callable[[], None],
    ) -> list[float]:
        for _ in sets:
            step()
        return self.distances(loaded, windows, sets)

    def distances(
        self, loaded: Loaded, windows: Batches, sets: Sequence[Sequence[Region]]
    ) -> list[float]:
        logits = gives_logits(self.graph)
        return distances(self.program, loaded.weights, windows, sets, lambda: None, logits)

    def ends(
        self,
        loaded: Loaded,
        windows: Batches,
        regions: Sequence[Region],
        features: Callable[[str], int],
        step: Callable[[], None],
    ) -> Ends:
        step()
        return observe_ends(self.program, loaded.weights, windows, regions, features, step)

    def rows(self, pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
        from prunec.output.onnx_file import output_errors

        return output_errors(pruned, progress)

    def verify(self, pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
        from prunec.output.onnx_file import unsliced, verify, verify_changed

        def around(weights: Weights) -> Callable[[Mapping[str, Array]], Env]:
            return lambda feeds: self._smaller.run(feeds, weights)

        if not pruned.selections and (self.removed or not pruned.sliced):
            whole = around(pruned.dense_weights)
            return verify_changed(pruned, stage / Formats.ONNX, whole)
        checks = verify(pruned, stage, progress)
        if self.removed:
            with unsliced(pruned, stage) as path:
                checks += verify_changed(pruned, path, around(pruned.loaded.weights))
        return checks


def _rows(batch: Mapping[str, Array]) -> int:
    return len(next(iter(batch.values())))


def _program(file: OnnxProgram) -> OrtProgram:
    return OrtProgram(file.model, file.graph, file.nodes, file.tensors)


def _masked(pruned: Outcome) -> Weights:
    """The dense weights, refitted ones among them, with zeros where they are pruned."""
    coupling, selections = pruned.loaded.coupling, pruned.selections
    groups = [g for g in coupling.groups if g.name in selections]
    masked = MaskedWeights(coupling, pruned.dense_weights, groups, selections)
    return Overlaid(pruned.dense_weights, masked)


class _Forward:
    """One pass over a batch."""

    def __init__(self, program: OrtProgram, weights: Weights, batch: Mapping[str, Array]) -> None:
        self.program, self.weights = program, weights
        self.batch = {name: np.asarray(value) for name, value in batch.items()}
        self.names = output_names(program.model)

    @cached_property
    def outputs(self) -> Env:
        return self._stretch(0, self.names, self.batch).run(self.batch, self.weights)

    def value(self, result: str) -> Array:
        """What an operation gives. Later ones are reached from where the last one stood."""
        at = self.program.position(result)
        live = [n for n in self.program.live(at + 1, self.program.end) if n not in self.batch]
        given = [n for n in self.names if self.program.makers.get(n, at + 1) <= at]
        wanted = list(dict.fromkeys([result[1:], *live, *given]))
        stretch = self.program.stretch(0, at + 1, wanted, self.batch)
        self.env = {**self.batch, **stretch.run(self.batch, self.weights)}
        return self.env[result[1:]]

    def ahead(self, result: str, value: Array) -> Env:
        """The outputs with another value in place of what the operation, asked for last, gave."""
        env = {**self.env, result[1:]: value}
        left = [name for name in self.names if name not in env]
        if left:
            env |= self._stretch(self.program.position(result) + 1, left, env).run(
                env, self.weights
            )
        return {name: env[name] for name in self.names}

    def _stretch(self, start: int, outputs: Sequence[str], env: Env) -> Stretch:
        return self.program.stretch(start, self.program.end, outputs, env)
