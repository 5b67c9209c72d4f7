"""Programs written by hand, operation by operation, in the form that the frontend gives them.

Every operation runs as it is added, so that types are what torch computes. A dimension whose
size is a multiple of an example size is taken for a run-time one: write no such static size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch

from prunec.backends.torch_ops import resolve, to_torch_arg
from prunec.frontends.torch_canon import Call, canonical
from prunec.ir.graph import Arg, Dim, Graph, Op, Parameter, Ref, TensorType, Value

__all__ = ["SIZES", "Builder", "Built"]

SIZES = {"batch": 17, "time": 19}
"""Example sizes of the run-time dimensions."""

DTYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.bool: "bool",
    torch.complex64: "c64",
}


@dataclass(frozen=True)
class Built:
    """A program with its weights; `values` are its outputs on the example inputs."""

    graph: Graph
    weights: dict[str, np.ndarray]
    example: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor]

    def inputs(self, batch: int, time: int) -> dict[str, torch.Tensor]:
        """The example inputs cut to smaller sizes."""
        sizes = {"batch": batch, "time": time}
        found = {}
        for value in self.graph.inputs:
            example = self.example[value.name[1:]]
            cut = [sizes[d] if isinstance(d, str) else d for d in value.type.shape]
            found[value.name[1:]] = example[tuple(map(slice, cut))]
        return found


@dataclass
class Builder:
    """Adds parameters and operations to a program; `finish` gives it."""

    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    env: dict[str, Any] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)

    # -- values -------------------------------------------------------------------------

    def input(self, *shape: int | str) -> Ref:
        """Random numbers as a graph input; `batch` and `time` are run-time sizes."""
        sizes = [SIZES[n] if isinstance(n, str) else n for n in shape]
        return self._input(torch.randn(sizes, generator=self.generator))

    def tokens(self, high: int, *shape: int | str) -> Ref:
        """Random integers below `high` as a graph input."""
        sizes = [SIZES[n] if isinstance(n, str) else n for n in shape or ("batch", "time")]
        return self._input(torch.randint(high, sizes, generator=self.generator))

    def _input(self, value: torch.Tensor) -> Ref:
        ref = Ref(f"%x{len(self.inputs)}")
        self.inputs.append(Value(ref.name, self._keep(ref.name, value)))
        return ref

    def weight(self, *shape: int) -> Ref:
        """A parameter of random numbers that keep activations near one."""
        scale = prod(shape[1:]) ** -0.5 if len(shape) > 1 else 1.0
        return self._parameter(
            "w", "parameter", torch.randn(shape, generator=self.generator) * scale
        )

    def positive(self, *shape: int) -> Ref:
        """A parameter of numbers between 1/2 and 3/2, such as a variance."""
        return self._parameter("w", "parameter", torch.rand(shape, generator=self.generator) + 0.5)

    def constant(self, value: Any) -> Ref:
        return self._parameter("c", "constant", torch.as_tensor(value))

    def _parameter(self, stem: str, kind: str, value: torch.Tensor) -> Ref:
        ref = Ref(f"@{stem}{len(self.parameters)}")
        self.parameters[ref.name[1:]] = Parameter(ref.name[1:], self._keep(ref.name, value), kind)
        return ref

    def _keep(self, name: str, value: Any) -> TensorType:
        self.env[name] = value
        self.types[name] = typed(value)
        return self.types[name]

    def shape(self, value: Ref) -> tuple[int, ...]:
        return tuple(self.env[value.name].shape)

    # -- operations ---------------------------------------------------------------------

    def call(self, name: str, *args: Arg, **kwargs: Arg) -> Ref:
        """Add an operation with one result."""
        (result,) = self.calls(name, *args, **kwargs)
        return result

    def calls(self, name: str, *args: Arg, **kwargs: Arg) -> tuple[Ref, ...]:
        """Add an operation with any number of results."""
        run = resolve(name)
        given = [to_torch_arg(a, self.env) for a in args]
        found = run(*given, **{k: to_torch_arg(a, self.env) for k, a in kwargs.items()})
        many = isinstance(found, list | tuple)
        values = tuple(found) if many else (found,)
        stem = f"%v{len(self.ops)}"
        results = tuple(f"{stem}__{i}" for i in range(len(values))) if many else (stem,)
        for result, value in zip(results, values, strict=True):
            self._keep(result, value)
        self.ops.append(self._canonical(name, args, kwargs, results))
        return tuple(map(Ref, results))

    def _canonical(
        self, name: str, args: tuple[Arg, ...], kwargs: dict[str, Arg], results: tuple[str, ...]
    ) -> Op:
        """The operation as the frontend gives it; as it is where the frontend has another."""
        types = tuple(self.types[result] for result in results)
        schema = getattr(resolve(name), "_schema", None)
        if schema is not None:
            call = canonical(Call(name, args, kwargs, types, self.types.get, schema))
            if isinstance(call, Call) and call.name == name:
                args, kwargs = call.args, dict(call.kwargs)
        return Op(name, args, tuple(kwargs.items()), results, types, pointwise=pointwise(name))

    def size(self, value: Ref, dim: int) -> Ref:
        """The size of a dimension at run time."""
        return self.call("aten.sym_size.int", value, dim)

    def linear(self, value: Ref, out: int, *, bias: bool = True) -> Ref:
        weight = self.weight(out, self.shape(value)[-1])
        added = (self.weight(out),) if bias else ()
        return self.call("aten.linear.default", value, weight, *added)

    # -- ends ---------------------------------------------------------------------------

    def up(self, width: int) -> Ref:
        """A value [batch, time, width] that a linear layer makes of an input."""
        return self.linear(self.input("batch", "time", 6), width)

    def rows(self, width: int) -> Ref:
        """A value [batch, width] that a linear layer makes of an input."""
        return self.linear(self.input("batch", 6), width)

    def space(self, width: int, rank: int = 2) -> Ref:
        """A value [batch, width, 4, ...] that a convolution makes of an input."""
        value = self.input("batch", 2, *[4] * rank)
        weight = self.weight(width, 2, *[1] * rank)
        return self.call(f"aten.conv{rank}d.default", value, weight, self.weight(width))

    def down(self, value: Ref) -> Ref:
        """A linear layer that consumes the last dimension."""
        return self.linear(value, 3)

    def mix(self, value: Ref) -> Ref:
        """A convolution that consumes dimension 1."""
        rank = len(self.shape(value)) - 2
        weight = self.weight(3, self.shape(value)[1], *[1] * rank)
        return self.call(f"aten.conv{rank}d.default", value, weight)

    def finish(self, *results: Ref) -> Built:
        outputs = tuple((f"y{i}", ref.name) for i, ref in enumerate(results))
        graph = Graph(
            "handmade", tuple(self.inputs), self.parameters, tuple(self.ops), outputs, SIZES
        )
        return Built(
            graph,
            {name: np.asarray(self.env["@" + name]) for name in self.parameters},
            {value.name[1:]: self.env[value.name] for value in self.inputs},
            {name: self.env[value] for name, value in outputs},
        )


def typed(value: Any) -> TensorType:
    if not isinstance(value, torch.Tensor):
        return TensorType("index")
    return TensorType(DTYPES[value.dtype], tuple(map(dim, value.shape)))


def dim(size: int) -> Dim:
    """A static size, or the text of a run-time one."""
    names = [name for name, example in SIZES.items() if size % example == 0]
    rest = size // prod(SIZES[name] for name in names)
    if not names or not size:
        return size
    return "*".join([*([str(rest)] if rest > 1 else []), *names])


def pointwise(name: str) -> bool:
    tags = getattr(resolve(name), "tags", ())
    return name == "aten.to.dtype" or torch.Tag.pointwise in tags
