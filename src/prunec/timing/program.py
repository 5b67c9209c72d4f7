"""What is timed: a program with its weights and inputs, and how an ONNX runtime gets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prunec.ir.graph import Graph
from prunec.measuring.feeds import Array
from prunec.passes.dce import dce
from prunec.passes.profile import Weights
from prunec.passes.rewrite import Rewritten

if TYPE_CHECKING:
    from prunec.runs.loading import Loaded

__all__ = ["Program", "Programs", "TracedPrograms"]


@dataclass(frozen=True)
class Program:
    """`weights` are those of `graph`; `write` writes both as an ONNX file. `feeds` are inputs by
    their names, where they are not to be made up."""

    graph: Graph
    weights: Weights
    write: Callable[[Path], None]
    feeds: Mapping[str, Array] = field(default_factory=dict)


class Programs(Protocol):
    """Makes what is timed of a model and of blocks cut out of it; `weights` are the dense ones."""

    def of(self, loaded: Loaded, smaller: Rewritten, weights: Weights) -> Program:
        """A whole model, some regions and indices of which may be gone."""
        ...

    def part(self, graph: Graph, smaller: Rewritten, weights: Weights) -> Program:
        """The block `graph`, some indices of which may be gone."""
        ...


class TracedPrograms:
    """Those of a model that was traced: a block is written as the whole model is."""

    def of(self, loaded: Loaded, smaller: Rewritten, weights: Weights) -> Program:
        return self.part(loaded.graph, smaller, weights)

    def part(self, graph: Graph, smaller: Rewritten, weights: Weights) -> Program:
        from prunec.backends.onnx import emit
        from prunec.output.tensor_view import TensorView
        from prunec.runs.loading import SlicedWeights

        left, sliced = dce(smaller.graph), SlicedWeights(weights, smaller.kept)
        return Program(left, sliced, lambda path: emit(left, TensorView(sliced, left), path))
