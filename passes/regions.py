"""Find what can go as a whole: residual branches (sublayers) and the layers that they make up.

A region has one entry and one exit of the same type. Whatever the program computes from the entry
reaches an output through the exit alone, so that the exit may be replaced by the entry. Residual
additions show where such regions are: a value is read both by a branch and by the addition that
ends it. What follows each addition of a stream alike, such as the norm of a post-norm model,
belongs to the region. A stream that is reshaped goes on. Caches that may change belong to the
region that reads them: what came before, and the output that this grows to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from prunec.ir.graph import Graph, Op
from prunec.passes.coupling import Coupling
from prunec.passes.residual import ADDITIONS, RESHAPES

__all__ = ["DEPTH_ROLES", "Region", "find_regions"]

DEPTH_ROLES = ("sublayer", "layer")

NUMBERED = re.compile(r"(?:^|\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Region:
    """Goes when `exit` is replaced by `entry`. Of several branches that are added at once (parallel
    attention and feed-forward part), `branch` is the one that goes: the additions that read it
    pass on what else they read, and `entry` and `exit` are those of all branches.

    `branches` are the values that it adds to the stream; `parts` names the sublayers of a layer.
    `caches` are the inputs, each with its output, that go with it.
    """

    name: str
    role: str
    entry: str
    exit: str
    branch: str | None = None
    branches: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    caches: tuple[tuple[str, str], ...] = ()

    def is_a(self, role: str) -> bool:
        """Whether it has a role. A layer of one branch, or with one left, is a sublayer as well."""
        return role == self.role or (role == "sublayer" and self.role == "layer" and not self.parts)


@dataclass(frozen=True, slots=True)
class _Step:
    """From a value of a residual stream to the next: `join` adds the branches, `exit` is the value
    from which the stream goes on."""

    entry: str
    join: str
    exit: str
    branches: tuple[str, ...]
    path: str
    kinds: tuple[str, ...]


def find_regions(coupling: Coupling) -> tuple[Region, ...]:
    """All regions of a program, in its order; each layer after its sublayers.

    Names are module paths with the role, unique among the regions.
    """
    flow = _Flow(coupling)
    steps = _settled(flow, list(flow.steps()))
    found: list[Region] = []
    for path, run in _runs(flow, steps):
        inside = [part for step in run for part in _sublayers(flow, step)]
        layer = _layer(flow, path, run, inside)
        if layer is None or len(inside) > 1:
            found += inside
        if layer is not None:
            found.append(layer)
    return _named([replace(region, caches=flow.caches_of(region)) for region in found])


class _Flow:
    """What reads what, and through which value everything must go (its post-dominator).

    Sizes are not followed: what reads no more than a shape does not depend on the values. Neither
    are outputs that are caches.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.graph: Graph = coupling.graph
        self.contractions = {self.graph.producers[c.op] for c in coupling.contractions}
        self.sink = len(self.graph.ops)
        self.caches = coupling.caches

    @cached_property
    def readers(self) -> list[list[int]]:
        """By operation, the later ones that read its results; the sink reads outputs."""
        ops, producers = self.graph.ops, self.graph.producers
        found: list[dict[int, None]] = [{} for _ in ops]
        for i, op in enumerate(ops):
            if self._measures(i):
                continue
            for name in op.operands:
                if name in producers:
                    found[producers[name]][i] = None
        grown = {after for _, after in self.caches}
        for _, value in self.graph.outputs:
            if value in producers and value not in grown:
                found[producers[value]][self.sink] = None
        return [list(r) for r in found]

    @cached_property
    def stored(self) -> set[str]:
        """Parameters, and what is computed from them alone, such as a transposed weight."""
        found = {parameter.ref for parameter in self.graph.parameters.values()}
        for op in self.graph.ops:
            if op.operands and found.issuperset(op.operands):
                found.update(op.results)
        return found

    @cached_property
    def through(self) -> list[int | None]:
        """By operation, the next one that everything computed from it goes through."""
        found: list[int | None] = [None] * self.sink
        self._depth = {self.sink: 0}
        for i in reversed(range(self.sink)):
            found[i] = meet = self._meet(self.readers[i], found)
            if meet is not None:
                self._depth[i] = self._depth[meet] + 1
        return found

    def _meet(self, readers: Sequence[int], through: Sequence[int | None]) -> int | None:
        """The next operation that everything from these goes through, or one of them."""
        live = [reader for reader in readers if reader in self._depth]
        for other in live[1:]:
            while live[0] != other:
                deeper = max(live[0], other, key=self._depth.__getitem__)
                above = through[deeper]
                assert above is not None
                live[0], other = (above, other) if deeper == live[0] else (live[0], above)
        return live[0] if live else None

    def of(self, value: str) -> list[int]:
        """What reads a value; of an operation with several results, this one."""
        at = self.graph.producers[value]
        if len(self.graph.ops[at].results) == 1:
            return self.readers[at]
        uses = {*self.graph.uses.get(value, ())}
        if any(value == out for _, out in self.graph.outputs):
            uses.add(self.sink)
        return [i for i in self.readers[at] if i in uses]

    def inside(self, entry: str, exit_: str) -> list[int]:
        """The operations computed from `entry`, up to and with the one that makes `exit_`."""
        first, last = self.graph.producers[entry], self.graph.producers[exit_]
        reached = {*self.of(entry)}
        for i in range(first + 1, last):
            if i in reached:
                reached.update(self.readers[i])
        return sorted(i for i in reached if first < i <= last)

    def steps(self) -> Iterator[_Step]:
        """Values that are read by branches and by the addition at which these end."""
        through = self.through
        for i, op in enumerate(self.graph.ops):
            readers = self.of(op.result)
            join = self._meet(readers, through)
            if join is None or join == self.sink or len(readers) < 2:
                continue
            if not self.alike(op.result, self.graph.ops[join].result):
                continue
            inside = self.inside(op.result, self.graph.ops[join].result)
            added = list(self._added(join, {i, *inside}))
            branches = tuple(name for name in added if name != op.result)
            if added.count(op.result) != 1 or not branches:
                continue
            if not all(self._learned(op.result, branch) for branch in branches):
                continue
            ops = [self.graph.ops[k] for k in inside]
            yield _Step(
                op.result, self.graph.ops[join].result, "", branches, self.path(ops),
                tuple(o.name for o in ops),
            )  # fmt: skip

    def alike(self, one: str, other: str) -> bool:
        """Whether one value may stand for the other."""
        a, b = self.graph.types[one], self.graph.types[other]
        return (a.dtype, a.shape, a.axes) == (b.dtype, b.shape, b.axes) and "f" in a.dtype

    def seen_as(self, value: str) -> list[str]:
        """The value, and what it is called in other shapes when nothing reads it but in these."""
        found = [value]
        while True:
            readers = self.of(found[-1])
            if len(readers) != 1 or readers[0] == self.sink:
                return found
            op = self.graph.ops[readers[0]]
            if op.name not in RESHAPES:
                return found
            found.append(op.result)

    def _added(self, at: int, derived: Collection[int]) -> Iterator[str]:
        """What additions that nothing else reads add up, of what is computed from the entry: a
        bias is none of it."""
        for name in self.graph.ops[at].operands if self._adds(self.graph.ops[at]) else ():
            producer = self.graph.producers.get(name, -1)
            if self._private_sum(producer, derived):
                yield from self._added(producer, derived)
            else:
                yield name

    def _private_sum(self, at: int, derived: Collection[int]) -> bool:
        """Whether an operation adds two values that are computed from the entry, for one reader."""
        if at < 0 or len(self.readers[at]) != 1 or not self._adds(self.graph.ops[at]):
            return False
        operands = self.graph.ops[at].operands
        return all(self.graph.producers.get(name, -1) in derived for name in operands)

    def _adds(self, op: Op) -> bool:
        operands = list(op.operands)
        return op.name in ADDITIONS and not op.kwargs and len(operands) == 2

    def _learned(self, entry: str, branch: str) -> bool:
        """Whether a branch comes from the entry by way of a layer with weights."""
        if branch not in self.graph.producers:
            return False
        first, last = self.graph.producers[entry], self.graph.producers[branch]
        behind = self._behind(last, first)
        between = set(self.inside(entry, branch)) & behind
        return first in behind and any(i in self.contractions for i in between)

    def caches_of(self, region: Region) -> tuple[tuple[str, str], ...]:
        """The caches that a region reads and lets grow, before its entry and exit meet them."""
        if not self.caches:
            return ()
        producers = self.graph.producers
        last = producers[region.branch or region.exit]
        between = self._behind(last, producers[region.entry])
        between &= set(self.inside(region.entry, region.branch or region.exit))
        stops = {producers[region.entry], producers[region.exit], last}
        found = []
        for before, after in self.caches:
            reached = self._reached(before, stops)
            if reached & between and producers[after] in reached:
                found.append((before, after))
        return tuple(found)

    def _reached(self, value: str, stops: Collection[int]) -> set[int]:
        """The operations computed from a value, none of them from what is made at `stops`."""
        found: set[int] = set()
        todo = [i for i in self.graph.uses.get(value, ()) if not self._measures(i)]
        while todo:
            i = todo.pop()
            if i in found or i == self.sink:
                continue
            found.add(i)
            todo += self.readers[i] if i not in stops else ()
        return found

    def _measures(self, at: int) -> bool:
        """Whether an operation reads no more than sizes."""
        return self.graph.ops[at].measures

    def _behind(self, last: int, first: int) -> set[int]:
        """The operations from `first` on that another one is computed from, and that one."""
        behind, producers = {last}, self.graph.producers
        for i in range(last, first, -1):
            if i in behind:
                behind |= {producers[n] for n in self.graph.ops[i].operands if n in producers}
        return behind

    def path(self, ops: Iterable[Op]) -> str:
        """The module that the layers with weights among the operations have in common; where not
        all of these tell theirs, that of whatever has no weights too."""
        ops = list(ops)
        learned = [op for op in ops if not self.stored.isdisjoint(op.operands)]
        layers = [op for op in learned if self.graph.producers[op.result] in self.contractions]
        modules = [op.loc.module for op in layers]
        if not all(modules):
            modules += [op.loc.module for op in ops if op not in learned]
        shared = []
        for parts in zip(*(module.split(".") for module in modules if module), strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return ".".join(shared)


def _settled(flow: _Flow, steps: Sequence[_Step]) -> list[_Step]:
    """The steps with their exits: the entry of the next step of the stream. The last one ends as
    the one before it did, or where the stream is next read more than once."""
    entries = {step.entry for step in steps}
    found: list[_Step] = []
    tails: dict[str, tuple[str, ...]] = {}
    for step in steps:
        before = tails.get(step.entry)
        after = list(_after(flow, step))
        exit_ = next((v for v in after if v in entries), None)
        if exit_ is None and before is not None:
            exit_ = next((v for v in after if _tail(flow, step.join, v) == before), None)
        elif exit_ is None:
            producers, readers = flow.graph.producers, flow.readers
            exit_ = next((v for v in after if len(readers[producers[v]]) > 1), None)
        exit_ = exit_ or step.join
        tails[exit_] = _tail(flow, step.join, exit_)
        found.append(replace(step, exit=exit_))
    return found


def _after(flow: _Flow, step: _Step) -> Iterator[str]:
    """The addition and what everything from it goes through without a further layer."""
    at: int | None = flow.graph.producers[step.join]
    while at is not None and at != flow.sink:
        value = flow.graph.ops[at].result
        between = flow.inside(step.join, value)
        if any(i in flow.contractions for i in between):
            return
        if flow.alike(step.entry, value):
            yield value
        at = flow.through[at]


def _tail(flow: _Flow, join: str, exit_: str) -> tuple[str, ...]:
    return tuple(flow.graph.ops[i].name for i in flow.inside(join, exit_))


def _runs(flow: _Flow, steps: Sequence[_Step]) -> Iterator[tuple[str, list[_Step]]]:
    """Steps that follow one another in one numbered module, all of different kinds, with its
    path; steps outside of any such module stand alone, with no path."""
    run: list[_Step] = []
    at = ""
    for step in steps:
        path = _numbered(step, steps)
        if run and not (path and path == at and step.entry in flow.seen_as(run[-1].exit)):
            yield at, run
            run = []
        at = path
        run.append(step)
    if run:
        yield at, run


def _numbered(step: _Step, steps: Sequence[_Step]) -> str:
    """The longest path that ends in a number and holds as much as the shortest one which holds no
    two steps of one kind."""
    chosen, most = "", 0
    for match in NUMBERED.finditer(step.path):
        path = step.path[: match.end()]
        kinds = [s.kinds for s in steps if (s.path + ".").startswith(path + ".")]
        if len(kinds) == len(set(kinds)) and len(kinds) >= most:
            chosen, most = path, len(kinds)
    return chosen


def _sublayers(flow: _Flow, step: _Step) -> list[Region]:
    if len(step.branches) == 1:
        return [Region(step.path, "sublayer", step.entry, step.exit, branches=step.branches)]
    found = []
    for branch in step.branches:
        ops = [flow.graph.ops[i] for i in flow.inside(step.entry, branch)]
        own = [op for op in ops if _leads(flow, op, branch)]
        found.append(Region(flow.path(own), "sublayer", step.entry, step.exit, branch, (branch,)))
    return found


def _leads(flow: _Flow, op: Op, branch: str) -> bool:
    """Whether a branch is computed from an operation."""
    first, last = flow.graph.producers[op.result], flow.graph.producers[branch]
    reached = {first}
    for i in range(first, last):
        if i in reached:
            reached.update(flow.readers[i])
    return last in reached


def _layer(flow: _Flow, path: str, run: Sequence[_Step], inside: Sequence[Region]) -> Region | None:
    """The steps of one numbered module as a whole."""
    ends = flow.seen_as(run[-1].exit)
    exit_ = next((value for value in ends if flow.alike(run[0].entry, value)), None)
    if not path or exit_ is None:
        return None
    parts = tuple(part.name for part in inside) if len(inside) > 1 else ()
    branches = tuple(branch for step in run for branch in step.branches)
    return Region(path, "layer", run[0].entry, exit_, branches=branches, parts=parts)


def _named(found: Sequence[Region]) -> tuple[Region, ...]:
    """Names of path and role; a path that stands several times is numbered."""
    taken: set[str] = set()
    result: list[Region] = []
    for region in found:
        base = f"{region.name}/{region.role}".removeprefix("/")
        name, copy = base, 2
        while name in taken:
            name, copy = f"{base}#{copy}", copy + 1
        taken.add(name)
        parts = tuple(r.name for r in result[-len(region.parts) :]) if region.parts else ()
        result.append(replace(region, name=name, parts=parts))
    return tuple(result)
