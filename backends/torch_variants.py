"""What a program would give if one thing in it were different, for many such things at once.

A variant agrees with the program up to some operation: there its values are changed, and only what
follows is run again. Windows go through one after the other, so that no more is held than the live
values of one window, twice, and the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch

from prunec.backends.forward import Result, Tail
from prunec.backends.interpreter import Arrays, Env, Flow, Program
from prunec.ir.axes import Selection
from prunec.ir.graph import Graph
from prunec.passes.coupling import Coupling
from prunec.passes.regions import Region
from prunec.passes.rewrite import Rewritten, rewrite

__all__ = [
    "Change",
    "Copied",
    "Masked",
    "Runner",
    "Score",
    "Silenced",
    "Smaller",
    "Variant",
    "bypass",
    "run_variants",
]


class Change(Protocol):
    """A change of the live values; `sources` are values that it reads, from wherever they were."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    def apply(self, env: Env, kept: Mapping[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class Copied:
    """One value stands for another."""

    value: str
    source: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def apply(self, env: Env, kept: Mapping[str, torch.Tensor]) -> None:
        env[self.value] = kept[self.source]


@dataclass(frozen=True)
class Silenced:
    """A value is zero."""

    value: str
    sources: tuple[str, ...] = ()

    def apply(self, env: Env, kept: Mapping[str, torch.Tensor]) -> None:
        env[self.value] = torch.zeros_like(env[self.value])


@dataclass(frozen=True)
class Masked:
    """Some indices of one dimension of a value are zero."""

    value: str
    dim: int
    gone: npt.NDArray[Any]
    sources: tuple[str, ...] = ()

    def apply(self, env: Env, kept: Mapping[str, torch.Tensor]) -> None:
        indices = torch.from_numpy(self.gone)
        env[self.value] = env[self.value].index_fill(self.dim, indices, 0.0)


@dataclass(frozen=True)
class Variant:
    """The program with `changes` made just before operation `start`; from there on without the
    indices that `smaller` leaves out, where it is given."""

    name: str
    start: int
    changes: tuple[Change, ...] = ()
    smaller: Smaller | None = None


@dataclass(frozen=True)
class Smaller:
    """What stays of a program, of groups that no operation before a variant's start knows."""

    coupling: Coupling
    selections: Mapping[str, Selection]

    def flow(self, dense: Flow) -> Flow:
        """The rewritten program; parameters that lose nothing are those of the dense one."""
        rewritten = rewrite(self.coupling, self.selections)
        program = _Sliced(rewritten, dense.program.weights)
        known = dense.parameters.items()
        return Flow(program, {ref: x for ref, x in known if ref[1:] not in rewritten.kept})


class _Sliced(Program):
    """A rewritten program over the dense weights."""

    def __init__(self, rewritten: Rewritten, weights: Arrays) -> None:
        super().__init__(rewritten.graph, weights)
        self.kept = rewritten.kept

    def parameter(self, ref: str) -> torch.Tensor:
        value = super().parameter(ref)
        for dim, keep in self.kept.get(ref[1:], {}).items():
            value = value.index_select(dim, torch.from_numpy(keep))
        return value


class Score(Protocol):
    """Told what the program gives for each window (`name` None) when it `compares` with that, then
    what each variant does. What it knows of a window already is not run again."""

    @property
    def compares(self) -> bool: ...

    def __call__(self, name: str | None, window: int, result: Result) -> None: ...

    def knows(self, name: str, window: int) -> bool: ...


def bypass(graph: Graph, region: Region) -> Variant:
    """The program without a region; of parallel branches the one that goes adds zeros."""
    if region.branch is not None:
        start = graph.producers[region.branch] + 1
        return Variant(region.name, start, (Silenced(region.branch),))
    start = graph.producers[region.exit] + 1
    return Variant(region.name, start, (Copied(region.exit, region.entry),))


def run_variants(
    graph: Graph,
    weights: Mapping[str, npt.NDArray[Any]],
    windows: Sequence[Mapping[str, Any]],
    variants: Sequence[Variant],
    score: Score,
    step: Callable[[], None] = lambda: None,
) -> None:
    """Run the program and every variant on every window (inputs by name, each with a batch
    dimension); `step` is called after each variant of each window.

    All weights are held at once, in the dtype of the program.
    """
    Runner(graph, weights).run(dict(enumerate(windows)), variants, score, step)


class Runner:
    """A program with all its weights, for windows that come one after the other."""

    @torch.no_grad()
    def __init__(self, graph: Graph, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self.program = Program(graph, weights)
        self.flow, self.tail = Flow(self.program), Tail(self.program).opened(tables=True)

    @torch.no_grad()
    def run(
        self,
        windows: Mapping[int, Mapping[str, Any]],
        variants: Sequence[Variant],
        score: Score,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the program and every variant on windows by number, as `run_variants` does."""
        ordered = sorted(variants, key=lambda v: v.start)
        for number, window in windows.items():
            open_ = [variant for variant in ordered if not score.knows(variant.name, number)]
            for _ in range(len(ordered) - len(open_)):
                step()
            if not open_:
                continue
            if score.compares:
                env = self.program.start(window)
                self.flow.run(env, 0, self.tail.start)
                score(None, number, Result(self.tail, env))
            start = self.program.start(window)
            _continued(self.flow, self.tail, start, open_, number, score, step)


def _continued(
    flow: Flow,
    tail: Tail,
    env: Env,
    variants: Sequence[Variant],
    window: int,
    score: Score,
    step: Callable[[], None],
) -> None:
    """One window: the program goes from change to change, each variant from there to the end."""
    producers = flow.program.graph.producers
    sources = {name for v in variants for c in v.changes for name in c.sources}
    stops = sorted({producers[name] + 1 for name in sources} | {v.start for v in variants})
    waiting, kept, at = list(variants), dict[str, torch.Tensor](), 0
    for stop in stops:
        flow.run(env, at, min(stop, tail.start))
        at = min(stop, tail.start)
        kept |= {name: env[name] for name in sources & env.keys() if name not in kept}
        while waiting and waiting[0].start == stop:
            variant = waiting.pop(0)
            ahead = dict(env)
            for change in variant.changes:
                change.apply(ahead, kept)
            own = flow if variant.smaller is None else variant.smaller.flow(flow)
            own.run(ahead, at, tail.start)
            score(variant.name, window, Result(tail, ahead))
            step()
