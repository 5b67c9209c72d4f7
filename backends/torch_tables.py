"""Operations on tables too large to be held: rows are looked up, or multiplied some at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from prunec.backends.endings import by_position, is_product
from prunec.backends.tensors import as_tensor
from prunec.backends.torch_ops import compile_op
from prunec.ir.graph import Graph, Op, Ref
from prunec.passes.parted import Parted, is_parted

__all__ = ["Table", "tables"]

EMBEDDING = "aten.embedding.default"
LARGE = 32 << 20
"""Bytes, in float32, from which on a table is not opened whole."""
PART = 8 << 20
"""Bytes of a table that are opened at a time."""

Env = Mapping[str, Any]
Step = Callable[[Env], tuple[Any, ...]]


def tables(graph: Graph, weights: Mapping[str, Any]) -> dict[str, Table]:
    """By the operation's result, the large tables that rows are looked up in, and the one that
    makes the output position by position; those that the store gives in parts."""
    products = [op.result for op in by_position(graph) if is_product(op)]
    found = {}
    for op in graph.ops:
        if op.name != EMBEDDING and op.result not in products[-1:]:
            continue
        at = 0 if op.name == EMBEDDING else 1
        arg = op.args[at]
        if isinstance(arg, Ref) and arg.name.startswith("@"):
            shape = [int(d) for d in graph.types[arg.name].shape]
            large = 4 * math.prod(shape) >= LARGE
            if large and is_parted(weights, arg.name[1:]):
                assert isinstance(weights, Parted)
                found[op.result] = Table(op, weights, arg.name, shape[0], shape[1])
    return found


@dataclass(frozen=True)
class Table:
    """A parameter (rows, features) that one operation reads in parts."""

    op: Op
    weights: Parted
    ref: str
    count: int
    features: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, where: slice | torch.Tensor) -> torch.Tensor:
        """Some rows, in the dtype that the program computes with; numbers in any order."""
        if isinstance(where, slice):
            return as_tensor(self.weights.rows(self.ref[1:], where))
        rows, places = torch.unique(where, return_inverse=True)
        return as_tensor(self.weights.rows(self.ref[1:], rows.numpy()))[places]

    def parts(self) -> Iterator[slice]:
        step = max(1, PART // (4 * self.features))
        for start in range(0, self.count, step):
            yield slice(start, min(start + step, self.count))

    def step(self) -> Step:
        """The operation; it works on the whole table where that is there."""
        whole = compile_op(self.op)
        own = self._looked_up(whole) if self.op.name == EMBEDDING else self._multiplied

        def step(env: Env) -> tuple[Any, ...]:
            return whole(env) if self.ref in env else own(env)

        return step

    def _looked_up(self, whole: Step) -> Step:
        """The rows that are asked for, each once, stand for the table."""
        arg = self.op.args[1]
        assert isinstance(arg, Ref)

        def step(env: Env) -> tuple[Any, ...]:
            rows, places = torch.unique(env[arg.name], return_inverse=True)
            if len(rows) and not 0 <= int(rows[0]) <= int(rows[-1]) < self.count:
                raise IndexError("index out of range in self")  # as torch says it
            few = self.weights.rows(self.ref[1:], rows.numpy().astype(np.int64))
            return whole({**env, self.ref: as_tensor(few), arg.name: places})

        return step

    def _multiplied(self, env: Env) -> tuple[Any, ...]:
        name, _, *rest = self.op.operands
        values, bias = env[name], env[rest[0]] if rest else None
        found = values.new_empty((*values.shape[:-1], self.count))
        for some in self.parts():
            own = None if bias is None else bias[some]
            found[..., some] = functional.linear(values, self[some], own)
        return (found,)
