"""How long a program takes with any widths and without any regions, from times of its blocks.

The program is cut into blocks, which are its regions, and what is left without them. Blocks that
do the same are one kind. Each kind is timed beside its dense self at a grid of widths, when a
width is first asked for; between the grid's nodes times are interpolated. The sum over all blocks
is scaled so that it gives what the dense program was measured to take.

What is timed may be another program of the model (see `timing.step`): it has the same groups and
regions, by their names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prunec.ir.axes import Selection
from prunec.ir.diagnostics import Diagnostic
from prunec.options.workload import PREFILL
from prunec.passes.cost import Cost
from prunec.passes.coupling import Coupling
from prunec.passes.cutouts import cut_out, fingerprint, groups_of, leaves
from prunec.passes.overlaid import Overlaid
from prunec.passes.profile import Weights
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.progress import Progress
from prunec.timing.laps import doubt
from prunec.timing.program import Programs, TracedPrograms
from prunec.timing.stopwatch import Opened, Stopwatch
from prunec.timing.table import TimeTable, table_for

if TYPE_CHECKING:
    from prunec.options.prune import PruneOptions
    from prunec.runs.loading import Loaded

__all__ = ["Clock", "Kind", "Race", "shortened", "start_clock"]

NODES = 8
"""Into how many steps the width of a wide group is cut; of a narrow one every count is a node."""

NARROW = 16
SNAP = 16
"""Nodes of wide groups are multiples of it, as runtimes like them."""

MOST_LOOSE = 2
"""So many groups of a block may lie between nodes at once; more move together, by FLOPs."""

MOST_LAPS = 8
"""How often a block runs, at most, while the whole program runs once."""


@dataclass(frozen=True)
class Race:
    """Median seconds of the dense and of a smaller program, measured in turns, and whether these
    can be trusted; `counts` are those of a plan that was tried out."""

    dense: float
    left: float
    steady: bool = True
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Kind:
    """A block, as one of those that are alike, or what is left of the `whole` model without any.
    `nodes` are the grid by group."""

    coupling: Coupling
    key: str
    groups: tuple[str, ...]
    nodes: tuple[tuple[int, ...], ...]
    whole: Loaded | None = None

    @cached_property
    def dense(self) -> tuple[int, ...]:
        return tuple(nodes[-1] for nodes in self.nodes)

    @cached_property
    def cost(self) -> Cost:
        return Cost(self.coupling)

    def rewritten(self, counts: tuple[int, ...]) -> Rewritten:
        """The block with so many indices left of each of its groups."""
        return shortened(self.coupling, dict(zip(self.groups, counts, strict=True)))


@dataclass(frozen=True)
class _Block:
    """Where a kind occurs: `layer` tells whether it is still there, None: it always is."""

    kind: Kind
    groups: tuple[str, ...]
    layer: str | None = None


@dataclass
class Clock:
    """Times programs made of one `whole` model, or of a model with the same groups and regions.
    `gain` is what corrects the time that a plan is predicted to save, `doubtful` counts entries of
    the table that the machine disturbed, `races` are the comparisons so far, the last one being of
    the result."""

    whole: Loaded
    programs: Programs
    stopwatch: Stopwatch
    table: TimeTable
    progress: Progress
    gain: float = 1.0
    doubtful: int = 0
    races: list[Race] = field(default_factory=list)
    _ratios: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    _opened: dict[str, Opened] = field(default_factory=dict)
    _shorter: dict[tuple[str, ...], Loaded] = field(default_factory=dict)

    def timed(self, loaded: Loaded) -> Loaded:
        """What is timed of a model, some of whose regions may be gone."""
        if loaded.whole.coupling is self.whole.coupling:
            return loaded
        names = tuple(region.name for region in loaded.removed)
        if names not in self._shorter:
            gone = [self.whole.regions[name] for name in names]
            self._shorter[names] = self.whole.without(gone) if gone else self.whole
        return self._shorter[names]

    def seconds(self, loaded: Loaded, counts: Mapping[str, int]) -> float:
        """The time of a program once regions and indices are gone, corrected by what was learnt."""
        return self.dense - self.gain * (self.dense - self._composed(loaded, counts))

    def _composed(self, loaded: Loaded, counts: Mapping[str, int]) -> float:
        producers = self.timed(loaded).graph.producers
        total = sum(
            self.shares[block.kind.key] * self._ratio(block.kind, self._counts(block, counts))
            for block in self.blocks
            if block.layer is None or block.layer in producers
        )
        return self.dense * total

    def _counts(self, block: _Block, counts: Mapping[str, int]) -> tuple[int, ...]:
        full = zip(block.groups, block.kind.dense, strict=True)
        return tuple(counts.get(name, size) for name, size in full)

    # -- the parts ----------------------------------------------------------------------

    @cached_property
    def blocks(self) -> tuple[_Block, ...]:
        """Every region that has no parts, and the program without them."""
        loaded = self.whole
        kinds: dict[str, Kind] = {}
        regions = leaves(loaded.regions.values())

        def block(
            coupling: Coupling, groups: tuple[str, ...], layer: str | None, rest: Loaded | None
        ) -> _Block:
            key = fingerprint(coupling.graph)
            if key not in kinds:
                nodes = tuple(_nodes(loaded.coupling.by_name[name].size) for name in groups)
                kinds[key] = Kind(coupling, key, groups, nodes, rest)
            return _Block(kinds[key], groups, layer)

        cuts = [cut_out(loaded.coupling, region) for region in regions]
        rest = loaded.without(regions)
        left = block(rest.coupling, groups_of(rest.coupling, rest.graph), None, rest)
        return (*(block(cut.coupling, cut.groups, cut.layer, None) for cut in cuts), left)

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of the dense program's time that one block of each kind takes."""
        amounts: dict[str, int] = {}
        for block in self.blocks:
            amounts[block.kind.key] = amounts.get(block.kind.key, 0) + 1
        kinds = {block.kind.key: block.kind for block in self.blocks}
        key = self._key("blocks", fingerprint(self.whole.graph))
        known = self.table.get(key)
        if known is None:
            with self.progress.step("Timing blocks"):
                programs = [self._dense(kind) for kind in kinds.values()]
                laps = [min(amounts[name], MOST_LAPS) for name in kinds]
                known = self._raced(key, [self._whole, *programs], [1, *laps])
        times = known[1:]
        total = sum(amounts[key] * t for key, t in zip(kinds, times, strict=True))
        return {key: t / total for key, t in zip(kinds, times, strict=True)}

    @cached_property
    def _whole(self) -> Opened:
        """The dense program."""
        whole = self.whole
        dense = Rewritten(whole.graph, {})
        return self.stopwatch.open(self.programs.of(whole, dense, whole.weights))

    @cached_property
    def _first(self) -> float:
        with self.progress.step("Timing the dense model"):
            return self.stopwatch.race([self._whole]).medians[0]

    @property
    def dense(self) -> float:
        """Seconds of the dense program, as last measured."""
        return self.races[-1].dense if self.races else self._first

    # -- tables -------------------------------------------------------------------------

    def _ratio(self, kind: Kind, counts: tuple[int, ...]) -> float:
        """The time of a block over that of its dense self."""
        if (kind.key, counts) in self._ratios:
            return self._ratios[kind.key, counts]
        loose = [i for i, c in enumerate(counts) if c not in kind.nodes[i]]
        if len(loose) > MOST_LOOSE:
            found = self._together(kind, counts, loose)
        elif loose:
            found = self._between(kind, counts, loose[0])
        else:
            found = min(1.0, self.ratio_at(kind, counts))
        self._ratios[kind.key, counts] = found
        return found

    def _between(self, kind: Kind, counts: tuple[int, ...], place: int) -> float:
        """Interpolate one of the groups."""
        nodes, count = kind.nodes[place], counts[place]
        above = bisect_left(nodes, count)
        if above == 0:  # narrower than the first node
            return self._ratio(kind, _put(counts, place, nodes[0]))
        low, high = nodes[above - 1], nodes[above]
        share = (count - low) / (high - low)
        ends = (self._ratio(kind, _put(counts, place, node)) for node in (low, high))
        return float(np.interp(share, [0, 1], list(ends)))

    def _together(self, kind: Kind, counts: tuple[int, ...], loose: list[int]) -> float:
        """Move the groups from node to node together, and interpolate by FLOPs."""
        steps = []
        for level in range(1, NODES + 1):
            step = list(counts)
            for place in loose:
                nodes = kind.nodes[place]
                step[place] = nodes[max(0, round(level * len(nodes) / NODES) - 1)]
            steps.append(tuple(step))
        flops = [self._flops(kind, step) for step in steps]
        wanted = self._flops(kind, counts)
        above = min(max(bisect_left(flops, wanted), 1), NODES - 1)
        ends = [self._ratio(kind, steps[i]) for i in (above - 1, above)]
        return float(np.interp(wanted, flops[above - 1 : above + 1], ends))

    def _flops(self, kind: Kind, counts: tuple[int, ...]) -> float:
        symbols = dict.fromkeys(self.whole.graph.symbols, self.stopwatch.length)
        named = dict(zip(kind.groups, counts, strict=True))
        return float(kind.cost.evaluate(kind.cost.flops, {**symbols, **named}))

    def ratio_at(self, kind: Kind, counts: tuple[int, ...]) -> float:
        """The same, measured at exactly these counts, or taken from the table on disk."""
        if counts == kind.dense:
            return 1.0
        smaller = kind.rewritten(counts)
        key = self._key(kind.key, fingerprint(smaller.graph))
        known = self.table.get(key)
        if known is None:
            variant = self._open(kind, smaller)
            known = self._raced(key, [variant, self._dense(kind)])
        return known[0] / known[1]

    def _raced(self, key: str, programs: Sequence[Opened], laps: Sequence[int] = ()) -> list[float]:
        """Times of programs; the table keeps those that can be trusted."""
        found = self.stopwatch.race(programs, laps)
        if found.steady:
            self.table.put(key, found.medians)
        else:
            self.doubtful += 1
        return found.medians

    def _dense(self, kind: Kind) -> Opened:
        if kind.key not in self._opened:
            self._opened[kind.key] = self._open(kind, Rewritten(kind.coupling.graph, {}))
        return self._opened[kind.key]

    def _open(self, kind: Kind, smaller: Rewritten) -> Opened:
        weights = self.whole.weights
        if kind.whole is not None:
            return self.stopwatch.open(self.programs.of(kind.whole, smaller, weights))
        return self.stopwatch.open(self.programs.part(kind.coupling.graph, smaller, weights))

    def _key(self, *parts: str) -> str:
        watch = self.stopwatch
        decoding = (watch.phase,) if watch.phase != PREFILL else ()
        return " ".join((*parts, f"{watch.batch}x{watch.length}", *decoding))

    # -- the result ---------------------------------------------------------------------

    def try_out(self, loaded: Loaded, counts: Mapping[str, int]) -> Race:
        """Measure a program of these sizes beside the dense one: which indices stay makes no
        difference to the time."""
        timed = self.timed(loaded)
        self._race(timed, shortened(timed.coupling, counts), timed.weights)
        self.races[-1] = replace(self.races[-1], counts=counts)
        return self.races[-1]

    def race(self, loaded: Loaded, selections: Mapping[str, Selection], replaced: Weights) -> Race:
        """Measure what was made of a model, with its changed weights, beside the dense one."""
        timed = self.timed(loaded)
        left = {name: s for name, s in selections.items() if name in timed.coupling.by_name}
        return self._race(timed, rewrite(timed.coupling, left), Overlaid(timed.weights, replaced))

    def _race(self, timed: Loaded, smaller: Rewritten, weights: Weights) -> Race:
        with self.progress.step("Timing the smaller model"):
            program = self.stopwatch.open(self.programs.of(timed, smaller, weights))
            found = self.stopwatch.race([self._whole, program])
        dense, left = found.medians
        self.races.append(Race(dense, left, found.steady))
        return self.races[-1]

    @property
    def doubt(self) -> Diagnostic | None:
        """What to say of the last comparison when it cannot be trusted."""
        return None if self.races[-1].steady else doubt(self.stopwatch.runtime)

    def describe(self, loaded: Loaded, counts: Mapping[str, int]) -> dict[str, object]:
        """What was measured, for a report: seconds, and what the first plan and the one that was
        carried out were predicted to take by the table alone."""
        last = self.races[-1]
        return {
            "runtime": self.stopwatch.runtime,
            "version": self.stopwatch.version,
            "threads": self.stopwatch.threads,
            "phase": self.stopwatch.phase,
            "batch": self.stopwatch.batch,
            "length": self.stopwatch.length,
            "dense": last.dense,
            "pruned": last.left,
            "speedup": last.dense / last.left,
            "steady": last.steady,
            "doubtful": self.doubtful,
            "predicted": self._composed(loaded, counts),
            "gain": self.gain,
            "plans": len(self.races) - 1,
        }

    def learn(self, loaded: Loaded, counts: Mapping[str, int], race: Race) -> None:
        """Correct what comes by how much the last plan has saved of what it was to save."""
        saved, hoped = race.dense - race.left, race.dense - self._composed(loaded, counts)
        if saved > 0 and hoped > 0:
            self.gain = saved / hoped


def start_clock(loaded: Loaded, options: PruneOptions, progress: Progress) -> Clock:
    """A clock for a whole model, in the runtime that `options` (settled) name.

    Raises PrunecError (exit 2) when a decoding step is asked for and the model has none.
    """
    stopwatch = Stopwatch(
        options.runtime, options.threads, options.batch, options.length, options.phase
    )
    whole, programs = loaded, _programs(loaded, stopwatch, progress)
    if options.phase != PREFILL and loaded.file is None:
        from prunec.timing.step import decoding_step

        whole = decoding_step(loaded, options, progress)
    return Clock(whole, programs, stopwatch, table_for(stopwatch), progress)


def _programs(loaded: Loaded, stopwatch: Stopwatch, progress: Progress) -> Programs:
    if loaded.file is None:
        return TracedPrograms()
    from prunec.timing.file import FilePrograms

    programs = FilePrograms(loaded, stopwatch)
    for warning in programs.check():
        progress.warn(warning)
    return programs


def shortened(coupling: Coupling, counts: Mapping[str, int]) -> Rewritten:
    """The program with the first so many indices of each group."""
    smaller = {
        name: Selection(np.arange(count))
        for name, count in counts.items()
        if name in coupling.by_name and count < coupling.by_name[name].size
    }
    return rewrite(coupling, smaller)


def _nodes(size: int) -> tuple[int, ...]:
    if size <= NARROW:
        return tuple(range(1, size + 1))
    snap = SNAP if size >= NODES * SNAP else 1
    inner = {max(1, round(size * i / NODES / snap)) * snap for i in range(1, NODES)}
    return tuple(sorted({snap, *inner, size}))


def _put(counts: tuple[int, ...], place: int, count: int) -> tuple[int, ...]:
    return (*counts[:place], count, *counts[place + 1 :])
