"""The reference for law 1: the dense program with removed indices zeroed wherever they occur.

Nothing is sliced here. Every value that carries a pruned axis has the removed indices set to
zero as soon as it is made. Operations that take a statistic over a pruned axis (a mean, a layer
norm) take it over the indices that stay, for which there is no other meaning of masking.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from prunec.backends.interpreter import Arrays, Program
from prunec.backends.torch_ops import compile_op
from prunec.ir.axes import Atom, Selection, atoms, kept_positions
from prunec.ir.axes import size as dense_size
from prunec.ir.graph import Graph, Op, TensorType
from prunec.ir.sizes import dim_size
from prunec.passes.coupling import Coupling
from prunec.passes.masks import removed, resized, touched
from prunec.passes.rewrite import Rewritten

__all__ = ["execute_masked"]


def _gone(type_: TensorType, selections: Mapping[str, Selection]) -> torch.Tensor | None:
    mask = removed(type_, selections)
    return None if mask is None else torch.from_numpy(mask)


def _running(graph: Graph) -> dict[str, str]:
    """The sizes of axes that vary with the input, by the axis's name."""
    types = [type_ for op in graph.ops for type_ in op.types]
    return {
        axis.name: dim
        for type_ in types
        for axis, dim in zip(type_.axes, type_.shape, strict=False)  # untyped values have no axes
        if isinstance(axis, Atom) and isinstance(dim, str)
    }


class _Masked(Program):
    def __init__(
        self,
        coupling: Coupling,
        selections: Mapping[str, Selection],
        rewritten: Rewritten,
        weights: Arrays,
        in_double: Collection[str],
    ) -> None:
        super().__init__(coupling.graph, weights, in_double)
        self.symbols: dict[str, int] = {}
        self.running = _running(coupling.graph)
        self.selections, self.positions = selections, coupling.positions
        types = coupling.graph.types
        smaller = {op.result: op for op in rewritten.graph.ops}
        for i, op in enumerate(coupling.graph.ops):
            axes = coupling.normed.get(op.result, ())
            if any(a.name in selections for axis in axes for a in atoms(axis)):
                self.steps[i] = self._over_kept(op, smaller[op.result], types)
            else:
                self.steps[i] = self._zeroed(op, self.steps[i])

    def parameter(self, ref: str) -> torch.Tensor:
        """A weight that meets another weight is masked by nobody else."""
        value = super().parameter(ref)
        gone = _gone(self.graph.types[ref], self.selections)
        return value if gone is None else value.masked_fill(gone, 0)

    def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Also notes what the symbolic sizes are in this batch: masks depend on them."""
        env = super().start(inputs)
        self.symbols = {}
        for value in self.graph.inputs:
            for dim, size in zip(value.type.shape, env[value.name].shape, strict=True):
                if isinstance(dim, str) and dim.isidentifier():
                    self.symbols[dim] = int(size)
        example = dict(self.graph.symbols)
        now = {dim: dim_size(dim, example | self.symbols) for dim in set(self.running.values())}
        self.symbols |= {name: now[dim] for name, dim in self.running.items()}
        return env

    def _now(self, type_: TensorType) -> TensorType:
        """The type with its symbolic axes at the sizes of this batch."""
        return replace(type_, axes=tuple(resized(axis, self.symbols) for axis in type_.axes))

    def _zeroed(self, op: Op, step: Any) -> Any:
        if not any(self._touched(type_) for type_ in op.types):
            return step

        def masked(env: dict[str, Any]) -> tuple[Any, ...]:
            masks = [_gone(self._now(type_), self.selections) for type_ in op.types]
            return tuple(
                value if mask is None else value.masked_fill(mask, 0)
                for value, mask in zip(step(env), masks, strict=True)
            )

        return masked

    def _touched(self, type_: TensorType) -> bool:
        return touched(type_, self.selections)

    def _over_kept(self, op: Op, smaller: Op, types: Mapping[str, TensorType]) -> Any:
        """Run on the indices that stay, and put the result back among zeros."""
        run = compile_op(smaller)
        names = [n for n in dict.fromkeys(op.operands) if n in types]

        def step(env: dict[str, Any]) -> tuple[Any, ...]:
            gathers = {name: self._kept(self._now(types[name])) for name in names}
            scatters = [self._kept(self._now(type_)) for type_ in op.types]
            inner = dict(env)
            for name, dims in gathers.items():
                for dim, keep in dims:
                    inner[name] = inner[name].index_select(dim, keep)
            return tuple(
                self._told(name, _scattered(value, dims, self._now(type_)))
                for name, value, dims, type_ in zip(
                    op.results, run(inner), scatters, op.types, strict=True
                )
            )

        return step

    def _told(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Positions among the indices that stay as positions among all."""
        axis = self.positions.get(name)
        if axis is None or not any(a.name in self.selections for a in atoms(axis)):
            return value
        return torch.from_numpy(kept_positions(axis, self.selections))[value]

    def _kept(self, type_: TensorType) -> list[tuple[int, torch.Tensor]]:
        return [
            (dim, torch.from_numpy(kept_positions(axis, self.selections)))
            for dim, axis in enumerate(type_.axes)
            if any(a.name in self.selections for a in atoms(axis))
        ]


def _scattered(
    value: torch.Tensor, dims: list[tuple[int, torch.Tensor]], type_: TensorType
) -> torch.Tensor:
    for dim, keep in dims:
        size = dense_size(type_.axes[dim])
        shape = list(value.shape)
        shape[dim] = size
        value = value.new_zeros(shape).index_copy(dim, keep, value)
    return value


@torch.no_grad()
def execute_masked(
    coupling: Coupling,
    selections: Mapping[str, Selection],
    rewritten: Rewritten,
    weights: Arrays,
    batches: Iterable[Mapping[str, Any]],
    in_double: Collection[str] = (),
) -> Iterator[dict[str, torch.Tensor]]:
    """The outputs of the masked dense program for each batch.

    `weights` are the dense ones. Outputs are never pruned, so they compare entry by entry with
    those of the rewritten program.
    """
    program = _Masked(coupling, selections, rewritten, weights, in_double)
    for batch in batches:
        yield program.run(batch)
