"""The reference for law 1: the dense program with removed indices zeroed wherever they occur.

Nothing is sliced here. Every value that carries a pruned axis has the removed indices set to
zero as soon as it is made. Operations that take a statistic over a pruned axis (a mean, a layer
norm) take it over the indices that stay, for which there is no other meaning of masking.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from prunec.backends.interpreter import Arrays, Program
from prunec.backends.torch_ops import compile_op
from prunec.ir.axes import Atom, Axis, Product, Selection, Sum, atoms, kept_positions, positions
from prunec.ir.axes import size as dense_size
from prunec.ir.graph import Op, TensorType
from prunec.passes.coupling import Coupling
from prunec.passes.rewrite import Rewritten

__all__ = ["execute_masked", "removed"]


def removed(type_: TensorType, selections: Mapping[str, Selection]) -> torch.Tensor | None:
    """Where a value of this type holds removed indices: boolean, broadcastable to its static
    dimensions; None when nothing of it is pruned."""
    gone: torch.Tensor | None = None
    names = {a.name: None for axis in type_.axes for a in atoms(axis) if a.name in selections}
    for name in names:
        mask = _removed_by(type_.axes, name, selections[name])
        gone = mask if gone is None else gone | mask
    return gone


def _removed_by(axes: tuple[Axis, ...], name: str, selection: Selection) -> torch.Tensor:
    rank = len(axes)
    gone = torch.zeros([1] * rank, dtype=torch.bool)
    for dim, axis in enumerate(axes):
        for where in positions(axis, name):
            if (where < 0).all():
                continue
            if selection.parent is not None:
                gone = gone | _ragged(axes, dim, where, selection)
                continue
            table = np.ones(int(where.max()) + 1, dtype=bool)
            table[selection.keep[selection.keep < len(table)]] = False
            mask = torch.from_numpy(np.where(where >= 0, table[where], False))
            gone = gone | mask.reshape([-1 if d == dim else 1 for d in range(rank)])
    return gone


def _ragged(
    axes: tuple[Axis, ...], dim: int, where: np.ndarray[Any, Any], selection: Selection
) -> torch.Tensor:
    """The parent may stand in the same dimension or in another one."""
    assert selection.parent is not None
    rank = len(axes)
    table = np.ones((selection.keep.shape[0], int(where.max()) + 1), dtype=bool)
    np.put_along_axis(table, selection.keep, False, axis=1)
    outer = positions(axes[dim], selection.parent)[0]
    if (outer >= 0).any():
        mask = np.where(where >= 0, table[outer, where], False)
        return torch.from_numpy(mask).reshape([-1 if d == dim else 1 for d in range(rank)])
    at = next(d for d, axis in enumerate(axes) if (positions(axis, selection.parent) >= 0).any())
    parent = positions(axes[at], selection.parent)[0]
    mask = np.where(where[None, :] >= 0, table[parent[:, None], where[None, :]], False)
    mask = mask if at < dim else mask.T
    shape = [
        mask.shape[0 if d == min(dim, at) else 1] if d in (dim, at) else 1 for d in range(rank)
    ]
    return torch.from_numpy(mask).reshape(shape)


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
        self.selections = selections
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
        gone = removed(self.graph.types[ref], self.selections)
        return value if gone is None else value.masked_fill(gone, 0)

    def start(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Also notes what the symbolic sizes are in this batch: masks depend on them."""
        env = super().start(inputs)
        self.symbols = {}
        for value in self.graph.inputs:
            for dim, size in zip(value.type.shape, env[value.name].shape, strict=True):
                if isinstance(dim, str) and dim.isidentifier():
                    self.symbols[dim] = int(size)
        return env

    def _now(self, type_: TensorType) -> TensorType:
        """The type with its symbolic axes at the sizes of this batch."""
        return replace(type_, axes=tuple(_resized(axis, self.symbols) for axis in type_.axes))

    def _zeroed(self, op: Op, step: Any) -> Any:
        if not any(self._touched(type_) for type_ in op.types):
            return step

        def masked(env: dict[str, Any]) -> tuple[Any, ...]:
            masks = [removed(self._now(type_), self.selections) for type_ in op.types]
            return tuple(
                value if mask is None else value.masked_fill(mask, 0)
                for value, mask in zip(step(env), masks, strict=True)
            )

        return masked

    def _touched(self, type_: TensorType) -> bool:
        return any(a.name in self.selections for axis in type_.axes for a in atoms(axis))

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
                _scattered(value, dims, self._now(type_))
                for value, dims, type_ in zip(run(inner), scatters, op.types, strict=True)
            )

        return step

    def _kept(self, type_: TensorType) -> list[tuple[int, torch.Tensor]]:
        return [
            (dim, torch.from_numpy(kept_positions(axis, self.selections)))
            for dim, axis in enumerate(type_.axes)
            if any(a.name in self.selections for a in atoms(axis))
        ]


def _resized(axis: Axis, sizes: Mapping[str, int]) -> Axis:
    match axis:
        case Atom(name, size):
            return Atom(name, sizes.get(name, size))
        case Product(factors):
            return Product(tuple(_resized(f, sizes) for f in factors))
        case Sum(terms):
            return Sum(tuple(_resized(t, sizes) for t in terms))


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
        env = program.start(batch)
        program.advance(env, 0, len(program.graph.ops))
        yield program.outputs(env)
