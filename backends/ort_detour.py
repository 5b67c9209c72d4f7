"""An ONNX model run by ONNX Runtime as if regions of it were not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.backends.ort_program import Array, Env, OrtProgram, Stretch, output_names
from prunec.passes.profile import Weights
from prunec.passes.regions import Region

__all__ = ["Detours"]


@dataclass(frozen=True)
class _Part:
    """A stretch, and what is put in the place of a value behind it: another one, or zeros."""

    stretch: Stretch | None
    value: str
    source: str | None


class Detours:
    """The model without `regions`: nodes are those of the file, and where a region ends the value
    that it began with goes on. Outputs that go with a region are not computed."""

    def __init__(self, program: OrtProgram, regions: Iterable[Region]) -> None:
        self.program = program
        regions = tuple(regions)
        gone = {after[1:] for region in regions for _, after in region.caches}
        self.names = [name for name in output_names(program.model) if name not in gone]
        turns = dict[str, str | None]()
        for region in regions:
            value = region.branch or region.exit
            turns[value[1:]] = None if region.branch else region.entry[1:]
        self.turns = sorted(turns.items(), key=lambda turn: self._stop(turn[0]))
        self._parts: list[_Part] = []
        self._last: Stretch | None = None

    def run(self, feeds: Mapping[str, Array], weights: Weights) -> Env:
        """The outputs by name; PrunecError P314 when ONNX Runtime fails."""
        env = {name: np.asarray(value) for name, value in feeds.items()}
        at = 0
        for i, (value, source) in enumerate(self.turns):
            stop = self._stop(value)
            if i == len(self._parts):
                self._parts.append(_Part(self._stretch(at, stop, i, env), value, source))
            stretch = self._parts[i].stretch
            if stretch is not None:
                env |= stretch.run(env, weights)
            env[value] = np.zeros_like(env[value]) if source is None else env[source]
            at = stop
        left = [name for name in self.names if name not in env]
        if left and self._last is None:
            self._last = self.program.stretch(at, self.program.end, left, env)
        if left and self._last is not None:
            env |= self._last.run(env, weights)
        return {name: env[name] for name in self.names}

    def _stop(self, value: str) -> int:
        return self.program.position(f"%{value}") + 1

    def _stretch(self, at: int, stop: int, turn: int, env: Env) -> Stretch | None:
        """Up to a turn: what is read behind it, but for the value that is replaced there."""
        value, source = self.turns[turn]
        later = [entry for _, entry in self.turns[turn:] if entry is not None]
        wanted = [*self.program.live(stop, self.program.end), *self._made(later, stop)]
        wanted += self._made(self.names, stop)
        names = dict.fromkeys(n for n in wanted if n not in env and n != value)
        if source is None:
            names[value] = None
        return self.program.stretch(at, stop, list(names), env) if names else None

    def _made(self, names: Sequence[str], stop: int) -> list[str]:
        """Those that a node before `stop` makes."""
        return [n for n in names if self.program.makers.get(n, stop) < stop]
