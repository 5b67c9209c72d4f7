"""Repeat the last kept block of a run for the blocks that were not exported.

The two kept blocks of the run are compared once more, operation by operation, in the
exported graph; where they differ there is no expansion and the whole module has to be exported.
`tests/test_repeat.py` compares expanded graphs with whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from prunec.frontends.torch_import import first_names
from prunec.frontends.torch_repeat import Run, rebased
from prunec.ir.graph import Graph, Op, Parameter, renamed

__all__ = ["expanded"]


def expanded(graph: Graph, module: nn.Module, runs: Sequence[Run]) -> Graph | None:
    """The graph of the whole module from that of the shortened one; None when the kept blocks
    turn out to differ."""
    names = list(first_names(module).values())
    for run in runs:
        found = _Expansion(graph, run).expand(names)
        if found is None:
            return None
        graph = found
    return graph


class _Expansion:
    """One run in a graph that holds its first blocks only."""

    def __init__(self, graph: Graph, run: Run) -> None:
        self.graph, self.run = graph, run
        self.template = run.kept - 1
        self.blocks: dict[int, list[Op]] = {}
        for op in graph.ops:
            block = run.block(op.loc.module)
            if block is not None:
                self.blocks.setdefault(block, []).append(op)
        self.place = {
            result: (block, f"{k}:{j}")
            for block, ops in self.blocks.items()
            for k, op in enumerate(ops)
            for j, result in enumerate(op.results)
        }

    def expand(self, names: Sequence[str]) -> Graph | None:
        last = self.blocks.get(self.template)
        if last is None or not self._alike() or not self._closed():
            return None
        end = self.graph.ops.index(last[-1]) + 1
        blocks = range(self.template + 1, self.run.stop)
        clones = [op for block in blocks for op in self._clones(block)]
        rest = [renamed(op, self._final) for op in self.graph.ops[end:]]
        ops = (*self.graph.ops[:end], *clones, *rest)
        results = [result for op in ops for result in op.results]
        if len(set(results)) != len(results):
            return None
        return replace(
            self.graph,
            ops=ops,
            parameters=self._parameters(names),
            outputs=tuple((name, self._final(value)) for name, value in self.graph.outputs),
        )

    def _alike(self) -> bool:
        """Whether the last two kept blocks do the same, each to what the one before gives."""
        one, two = self.blocks.get(self.template - 1, []), self.blocks[self.template]
        return [renamed(op, self._seen_from(self.template - 1)) for op in map(_bare, one)] == [
            renamed(op, self._seen_from(self.template)) for op in map(_bare, two)
        ]

    def _seen_from(self, block: int) -> Callable[[str], str]:
        """Names of values by where they come from, relative to a block."""

        def seen(name: str) -> str:
            if name.startswith("@"):
                return "@" + rebased(name[1:], self.run.path, block, 0)
            made, at = self.place.get(name, (None, ""))
            if made is None or block - made not in (0, 1):
                return name
            return f"{('own', 'previous')[block - made]} {at}"

        return seen

    def _closed(self) -> bool:
        """Whether only the last kept block is read from outside of the run."""
        inner = {name for name, (block, _) in self.place.items() if block < self.template}
        outside = [op for op in self.graph.ops if self.run.block(op.loc.module) is None]
        read = {name for op in outside for name in op.operands}
        read |= {value for _, value in self.graph.outputs}
        return read.isdisjoint(inner)

    def _clones(self, block: int) -> Iterator[Op]:
        path, template = self.run.path, self.template
        at = {where: name for name, (made, where) in self.place.items() if made == template}

        def moved(name: str) -> str:
            if name.startswith("@"):
                return "@" + rebased(name[1:], path, template, block)
            made, where = self.place.get(name, (None, ""))
            if made == template:
                return _numbered(name, block)
            if made != template - 1:
                return name
            return at[where] if block - 1 == template else _numbered(at[where], block - 1)

        for op in self.blocks[template]:
            loc = replace(op.loc, module=rebased(op.loc.module + ".", path, template, block)[:-1])
            yield replace(renamed(op, moved), loc=loc)

    def _final(self, name: str) -> str:
        """What the world after the run reads: the last block's results."""
        made, _ = self.place.get(name, (None, ""))
        return _numbered(name, self.run.stop - 1) if made == self.template else name

    def _parameters(self, names: Sequence[str]) -> dict[str, Parameter]:
        known = self.graph.parameters
        found: dict[str, Parameter] = {}
        for name in names:
            block = self.run.block(name)
            if name in known:
                found[name] = known[name]
            elif block is not None and block > self.template:
                template = known.get(rebased(name, self.run.path, block, self.template))
                if template is not None:
                    found[name] = self._moved(template, block)
        return found | {name: p for name, p in known.items() if name not in found}

    def _moved(self, parameter: Parameter, block: int) -> Parameter:
        names = (parameter.name, *parameter.aliases)
        name, *aliases = (rebased(n, self.run.path, self.template, block) for n in names)
        return replace(parameter, name=name, aliases=tuple(aliases))


def _bare(op: Op) -> Op:
    """An operation without its place in the source, where blocks differ by name."""
    return replace(op, loc=type(op.loc)())


def _numbered(name: str, block: int) -> str:
    return f"{name}_b{block}"
