"""What is timed of an ONNX file: the file and parts of it, edited as the result is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunec.backends.onnx_build import NUMPY_DTYPES
from prunec.backends.onnx_edit import Original, edit
from prunec.backends.ort_program import OrtProgram
from prunec.engines.onnx_part import part_of
from prunec.frontends.onnx import OnnxProgram
from prunec.ir.diagnostics import Diagnostic, Exit, fail
from prunec.ir.graph import Graph, Value
from prunec.measuring.feeds import TOKENS, Feeds, InputSpec, example_feeds
from prunec.options.workload import DECODE
from prunec.passes.profile import Weights
from prunec.passes.rewrite import Rewritten
from prunec.runs.loading import Loaded
from prunec.timing.program import Program
from prunec.timing.stopwatch import Stopwatch

__all__ = ["FilePrograms"]


@dataclass
class FilePrograms:
    """Implements `prunec.timing.program.Programs`. The file is given made-up inputs, and a part of
    it what it is given then."""

    whole: Loaded
    stopwatch: Stopwatch
    _parts: dict[int, tuple[OnnxProgram, Feeds]] = field(default_factory=dict)

    def of(self, loaded: Loaded, smaller: Rewritten, weights: Weights) -> Program:
        return _edited(loaded.left, smaller, weights, self.feeds)

    def part(self, graph: Graph, smaller: Rewritten, weights: Weights) -> Program:
        if id(graph) not in self._parts:
            self._parts[id(graph)] = part_of(self.whole.left, graph), self._given(graph)
        part, feeds = self._parts[id(graph)]
        return _edited(part, smaller, weights, feeds)

    @cached_property
    def feeds(self) -> Feeds:
        """Inputs of the file, at the batch size and length asked for, or at those that it takes."""
        watch, specs = self.stopwatch, [_spec(value) for value in self.whole.graph.inputs]
        decoding = watch.phase == DECODE
        length, past = (1, watch.length) if decoding else (watch.length, 0)
        return example_feeds(specs, batch=watch.batch, length=length, past=past)

    def check(self) -> tuple[Diagnostic, ...]:
        """Warnings about the inputs. Raises PrunecError (P868) when a decoding step is asked for
        and the file has no cache among them."""
        watch, source = self.stopwatch, self.whole.source
        caches = any(_spec(value).holds_past for value in self.whole.graph.inputs)
        if watch.phase == DECODE and not caches:
            raise fail(
                "P868",
                f"{source.name} takes no decoding step: no cache of keys and values is among its"
                " inputs",
                where="--phase",
                help="use --phase prefill, or export the model with its cache",
                exit_code=Exit.USAGE,
            )
        wanted = (watch.batch, 1 if watch.phase == DECODE else watch.length)
        read = next((x.shape for name, x in self.feeds.items() if name.endswith(TOKENS)), wanted)
        if read == wanted:
            return ()
        told = f"{source.name} reads {read[1]} tokens of {read[0]} sequences at once and no others"
        return (Diagnostic("P867", told, help="times are for these"),)

    def _given(self, graph: Graph) -> Feeds:
        """What a part is given when the whole file runs."""
        names = [value.name[1:] for value in graph.inputs]
        missing = [name for name in names if name not in self.feeds]
        if not missing:
            return {name: self.feeds[name] for name in names}
        left = self.whole.left
        program = OrtProgram(left.model, left.graph, left.nodes, left.tensors)
        found = program.stretch(0, program.end, missing, self.feeds).run(self.feeds, left.weights)
        known = {**self.feeds, **found}
        return {name: known[name] for name in names}


def _spec(value: Value) -> InputSpec:
    dtype = np.dtype(NUMPY_DTYPES[value.type.dtype]).name
    return InputSpec(value.name[1:], dtype, value.type.shape)


def _edited(file: OnnxProgram, smaller: Rewritten, weights: Weights, feeds: Feeds) -> Program:
    """Inputs that are narrower now get the first indices of the dense ones."""
    original = Original(file.model, file.graph, file.nodes, file.tensors)

    def write(path: Path) -> None:
        model = edit(original, smaller, weights, set())
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)

    shapes = {value.name[1:]: value.type.shape for value in smaller.graph.inputs}
    given = {
        name: feeds[name][tuple(slice(n if isinstance(n, int) else None) for n in shape)]
        for name, shape in shapes.items()
    }
    return Program(smaller.graph, weights, write, given)
