"""Run programs in a runtime on the CPU and time them in turns."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from prunec.backends.onnx_build import NUMPY_DTYPES
from prunec.ir.graph import Graph, Value
from prunec.ir.sizes import dim_size
from prunec.measuring.feeds import Feeds, InputSpec, example_feeds
from prunec.measuring.runners import open_onnx, open_openvino
from prunec.options.workload import PREFILL
from prunec.timing.laps import Laps
from prunec.timing.program import Program

__all__ = ["Opened", "Stopwatch"]

WARM_UP = 2
SECONDS = 1.0
"""Turns go on until they have taken so long."""


@dataclass(frozen=True)
class Opened:
    """A program that is ready to run; `kept` is what must not go before it does."""

    run: Callable[[], object]
    kept: object = None


@dataclass(frozen=True)
class Stopwatch:
    """A runtime (`onnxruntime`, `openvino` or `torch`) and what it is given, on `threads` threads
    (None: as many as it likes): `batch` sequences of `length` tokens, or in the phase `decode` the
    next token of each after so many."""

    runtime: str
    threads: int | None
    batch: int
    length: int
    phase: str = PREFILL

    @property
    def version(self) -> str:
        """Of the runtime."""
        return metadata.version(self.runtime)

    def open(self, program: Program) -> Opened:
        """A program that is ready to run on its inputs, or on some made up by names and types."""
        graph = program.graph
        feeds = dict(program.feeds) or self._feeds(graph)
        if self.runtime == "torch":
            return _in_torch(program, feeds)
        folder = tempfile.TemporaryDirectory(prefix="prunec-")
        path = Path(folder.name) / "model.onnx"
        program.write(path)
        opener = open_onnx if self.runtime == "onnxruntime" else open_openvino
        runner = opener(path, self.threads)
        return Opened(lambda: runner.run(feeds), folder)

    def race(self, programs: Sequence[Opened], laps: Sequence[int] = ()) -> Laps:
        """Seconds of each program, taken in turns: A B C, A B C, ... `laps` is how often each runs
        in one turn (by default once); the time is that of one run."""
        counts = laps or [1] * len(programs)
        runs = [(program.run, count) for program, count in zip(programs, counts, strict=True)]
        with self._threaded():
            for run, _ in runs * WARM_UP:
                run()
            return Laps.of(runs, seconds=SECONDS, alone=self.threads == 1)

    @contextlib.contextmanager
    def _threaded(self) -> Iterator[None]:
        """torch counts threads for the whole process; the others were told when they opened."""
        if self.runtime != "torch" or self.threads is None:
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _feeds(self, graph: Graph) -> Feeds:
        """Inputs of a whole program by their names; masks of a block let everything through."""
        feeds = example_feeds(
            [self._spec(value, graph) for value in graph.inputs],
            batch=self.batch,
            length=self.length,
        )
        return {name: np.ones_like(x) if x.dtype == bool else x for name, x in feeds.items()}

    def _spec(self, value: Value, graph: Graph) -> InputSpec:
        symbols = dict.fromkeys(graph.symbols, self.length)
        symbols |= {"batch": self.batch} if "batch" in symbols else {}
        shape = tuple(dim_size(dim, symbols) for dim in value.type.shape)
        return InputSpec(value.name[1:], np.dtype(NUMPY_DTYPES[value.type.dtype]).name, shape)


def _in_torch(program: Program, feeds: Feeds) -> Opened:
    """The program operation by operation, as the module that it was traced from runs."""
    import torch

    from prunec.backends.torch_module import to_fx
    from prunec.output.tensor_view import TensorView

    module: Any = to_fx(program.graph, TensorView(program.weights, program.graph))
    inputs = [torch.from_numpy(feeds[value.name[1:]]) for value in program.graph.inputs]

    def run() -> object:
        with torch.inference_mode():
            return module(*inputs)

    return Opened(run)
