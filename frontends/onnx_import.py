"""An ONNX model as a typed program: parameters, operations, sizes as far as they can be told.

Small integers that the file stores (sizes, axes, bounds) become literals of the operations that
read them, so that a rewrite can change each where it stands. A vector that several operations read
(two biases that an optimiser found equal) is one parameter for each of them, so that they may be
pruned differently.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir

from prunec.frontends.onnx_flat import Flat, Step
from prunec.frontends.onnx_places import place_of
from prunec.frontends.onnx_sizes import Known, Unfit, evaluate, symbol
from prunec.ir.diagnostics import fail
from prunec.ir.dialects.onnx import DTYPES, POINTWISE
from prunec.ir.dialects.onnx_sizes import SIZES
from prunec.ir.graph import Arg, Attr, Dim, Graph, Op, Parameter, Ref, TensorType, Value
from prunec.ir.sizes import dim_size

__all__ = ["Imported", "import_graph"]

LITERAL = 64
"""Entries of integers that are taken into the operations that read them."""

QUANTISED = re.compile("^QLinear|[Qq]uantizeLinear$|Integer")
"""Operators whose integers are data, biases among them, and not sizes."""

SPATIAL = 32
"""Example sizes of pictures are multiples of it: networks halve them up to five times."""

FIRST_PRIME = 11

MOST_COPIES = 4
"""Copies of computed sizes, in all so many times the operations."""


@dataclass(frozen=True)
class Imported:
    """The program, and where its parts stand in the file: `nodes` gives for each operation (by
    its first result) the step, `tensors` for each parameter the name of its initializer or of the
    value of its `Constant` node."""

    graph: Graph
    nodes: Mapping[str, Step]
    tensors: Mapping[str, str]


def import_graph(flat: Flat) -> Imported:
    """Raises P244 when shapes in the file do not fit together."""
    first, second, symbols = _sized(flat)
    for value in flat.model.graph.outputs:
        _check_declared(value, first[str(value.name)], second[str(value.name)])
    return _Import(flat, first, second, symbols).run()


# Sizes


def _sized(flat: Flat) -> tuple[dict[str, Known], dict[str, Known], dict[str, tuple[int, int]]]:
    """What is known at two sets of example sizes; the sizes of symbols in both."""
    trials = [_trial(flat, spatial) for spatial in (True, False)]
    problem: Unfit | None = None
    for names in trials if trials[0] != trials[1] else trials[:1]:
        try:
            found = [
                evaluate(flat, {n: sizes[i] for n, sizes in names.items()}, _primes(flat, 997 + i))
                for i in range(2)
            ]
            return found[0], found[1], names
        except Unfit as error:
            problem = problem or error
    assert problem is not None
    raise fail(
        "P244",
        f"{problem.step.kind} cannot take its inputs: {problem.said}",
        where=problem.step.node.name or problem.step.outputs[0],
        help="shapes in the file contradict each other: export the model again",
    )


def _check_declared(value: ir.Value, first: Known, second: Known) -> None:
    """An output has the sizes that the file says, as far as both are numbers."""
    if value.shape is None or first.shape is None or second.shape is None:
        return
    for i, (said, *sizes) in enumerate(zip(value.shape, first.shape, second.shape, strict=False)):
        if isinstance(said, int) and said >= 0 and said != sizes[0] == sizes[1]:
            raise fail(
                "P244",
                f"output {value.name} is said to have size {said} in dimension {i}, and has"
                f" {sizes[0]}",
                where=str(value.name),
                help="shapes in the file contradict each other: export the model again",
            )


def _trial(flat: Flat, spatial: bool) -> dict[str, tuple[int, int]]:
    """Two example sizes for each symbol of the inputs."""
    primes = _primes(flat, FIRST_PRIME)
    found: dict[str, tuple[int, int]] = {}
    for value in flat.inputs:
        for i, size in enumerate(value.shape or ()):
            if isinstance(size, int) and size >= 0:
                continue
            name = symbol(value, i)
            if name in found or _sum_of(name, found):
                continue
            factor = SPATIAL if spatial and i >= 2 and _picture(value) else 1
            found[name] = (factor * next(primes), factor * next(primes))
    return found


def _picture(value: ir.Value) -> bool:
    """Whether an input has the form of pictures; caches [batch, heads, past, inside] end in a size
    that is known."""
    shape = [] if value.shape is None else list(value.shape)
    if len(shape) < 4 or value.dtype == ir.DataType.INT64:
        return False
    return not isinstance(shape[-1], int) or shape[-1] < 0


def _sum_of(text: str, sizes: Mapping[str, object]) -> bool:
    """Whether the name is an expression of symbols, such as `past + sequence`."""
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    if text in words:
        return False
    try:
        return dim_size(text, dict.fromkeys(words, 7)) > 0
    except (ArithmeticError, KeyError, SyntaxError, TypeError, ValueError, RecursionError):
        return False


def _primes(flat: Flat, start: int) -> Iterator[int]:
    """Primes that divide no size that the file stores, so that they stand for nothing else."""
    stored = {int(n) for tensor in flat.stored.values() for n in tensor.shape.numpy()}
    for n in count(start):
        prime = all(n % d for d in range(2, math.isqrt(n) + 1))
        if prime and not any(size % n == 0 for size in stored if size):
            yield n


# The program


@dataclass
class _Import:
    flat: Flat
    first: Mapping[str, Known]
    second: Mapping[str, Known]
    sizes: Mapping[str, tuple[int, int]]
    symbols: dict[str, int] = field(default_factory=dict)
    dims: dict[tuple[int, int], Dim] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)
    untyped: set[str] = field(default_factory=set)
    ops: list[Op] = field(default_factory=list)
    nodes: dict[str, Step] = field(default_factory=dict)
    waiting: dict[str, Step] = field(default_factory=dict)
    copies: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.outputs = [str(v.name) for v in self.flat.model.graph.outputs]
        read = Counter(n for s in self.flat.steps for n in set(s.inputs + s.captured))
        self.read = {*read, *self.outputs}
        self.shared = {n for n, k in read.items() if k > 1} - set(self.outputs)

    def run(self) -> Imported:
        self._name_symbols()
        for step in self.flat.steps:
            if self._computes_sizes(step):
                self.waiting[step.outputs[0]] = step
            else:
                self._add(step)
        outputs = tuple((name, self._reference(name, None)) for name in self.outputs)
        graph = Graph(
            self.flat.model.graph.name or "main",
            tuple(Value(f"%{v.name}", self._type(str(v.name))) for v in self.flat.inputs),
            self.parameters,
            tuple(self.ops),
            outputs,
            self.symbols,
        )
        return Imported(graph, self.nodes, self.tensors)

    def _add(self, step: Step, copy: str = "") -> None:
        op = self._op(step, copy)
        self.ops.append(op)
        self.nodes[op.result] = step

    def _computes_sizes(self, step: Step) -> bool:
        """Whether a node makes a vector of sizes with literals in it: then each of its readers
        gets one of its own, since in each the literals may mean another axis."""
        if step.shared or len(step.outputs) != 1 or f"onnx.{step.kind}" not in SIZES:
            return False
        if self.first[step.outputs[0]].value is None:
            return False
        inputs = [name for name in step.inputs if name]
        return any(name in self.waiting for name in inputs) or any(
            name in self.flat.stored and self._literal(name) is not None for name in inputs
        )

    def _name_symbols(self) -> None:
        """Symbols under names that an expression can hold."""
        for name, pair in self.sizes.items():
            word = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "n"
            word = word if not word[0].isdigit() else f"n{word}"
            while word in self.symbols:
                word += "_"
            factor = math.gcd(*pair) if math.gcd(*pair) == SPATIAL else 1
            self.symbols[word] = pair[0] // factor
            self.dims[pair] = word if factor == 1 else f"{factor}*{word}"

    # -- types --------------------------------------------------------------------------

    def _type(self, name: str) -> TensorType:
        known, other = self.first[name], self.second[name]
        if known.shape is None or other.shape is None or len(known.shape) != len(other.shape):
            self.untyped.add(name)
            return TensorType(DTYPES.get(known.dtype.name, "f32"))
        shape = tuple(map(self._dim, known.shape, other.shape))
        return TensorType(DTYPES[known.dtype.name], shape)

    def _dim(self, a: int, b: int) -> Dim:
        if a == b:
            return a
        if (a, b) not in self.dims:
            self.dims[a, b] = self._expressed(a, b) or self._unnamed(a)
        return self.dims[a, b]

    def _expressed(self, a: int, b: int) -> str | None:
        """As a number of times a symbol or two, or a sum with one."""
        words = list(zip(self.symbols, self.sizes.values(), strict=False))
        for word, (x, y) in words:
            factor = x // self.symbols[word]
            if a % x == 0 and a // x * y == b:
                return f"{a // x * factor}*{word}"
        for i, (one, (x, y)) in enumerate(words):
            for other, (v, w) in words[i + 1 :]:
                if x * v and a % (x * v) == 0 and a // (x * v) * y * w == b:
                    static = a // (self.symbols[one] * self.symbols[other])
                    return f"{static}*{one}*{other}" if static > 1 else f"{one}*{other}"
                if (x + v, y + w) == (a, b):
                    return f"{self.dims[x, y]} + {self.dims[v, w]}"
        for _, (x, y) in words:
            if x != y and a - x == b - y:
                sign = "+" if a > x else "-"
                return f"{self.dims[x, y]} {sign} {abs(a - x)}"
        return None

    def _unnamed(self, size: int) -> str:
        """A size that data decide, or that depends on symbols in a way of its own."""
        word = next(w for w in (f"n{i}" for i in count()) if w not in self.symbols)
        self.symbols[word] = size
        return word

    # -- operations ---------------------------------------------------------------------

    def _op(self, step: Step, copy: str) -> Op:
        results = tuple(
            f"%{name or step.outputs[0] + f'.{i}'}{copy}" for i, name in enumerate(step.outputs)
        )
        types = tuple(self._type(name) if name else TensorType("f32") for name in step.outputs)
        used = [name for name in step.outputs if name in self.untyped & self.read]
        blind = used or [n for n in (*step.inputs, *step.captured) if n in self.untyped]
        args = tuple(self._arg(step, i, name) for i, name in enumerate(step.inputs))
        args += tuple(self._arg(step, -1, name) for name in step.captured)
        name = f"onnx.{step.node.op_type}" if not step.domain else step.kind
        return Op(
            f"unshaped.{name}" if blind and not step.closed else name,
            args,
            tuple(self._attributes(step)),
            results,
            types,
            place_of(step, self.flat.stored),
            pointwise=name in POINTWISE and not blind,
        )

    def _arg(self, step: Step, position: int, name: str) -> Arg:
        if not name:
            return None
        sizes = position >= 0 and not QUANTISED.search(step.node.op_type)
        if name in self.flat.stored and name not in self.outputs and sizes:
            literal = self._literal(name)
            if literal is not None:
                return literal
        return Ref(self._reference(name, step))

    def _literal(self, name: str) -> Arg:
        """Small integers as they are, None for what is data."""
        tensor = self.flat.stored[name]
        rank, size = len(tensor.shape), math.prod(tensor.shape.numpy())
        whole = tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32)
        if not whole or rank > 1 or size > LITERAL:
            return None
        values = [int(n) for n in np.asarray(tensor.numpy()).reshape(-1)]
        return tuple(values) if rank else values[0]

    def _reference(self, name: str, step: Step | None) -> str:
        tensor = self.flat.stored.get(name)
        if tensor is None:
            return f"%{name}{self._copied(name)}"
        shape = tuple(int(n) for n in tensor.shape.numpy())
        own = name
        if step is not None and name in self.shared and math.prod(shape) == max(shape, default=1):
            self.readers[name] += 1
            own = name if self.readers[name] == 1 else f"{name}#{self.readers[name]}"
        if own not in self.parameters:
            dtype = DTYPES[tensor.dtype.name]
            kind = "parameter" if _weighs(dtype, shape) else "constant"
            kind = kind if own == name else "buffer"
            self.parameters[own] = Parameter(own, TensorType(dtype, shape), kind)
            self.tensors[own] = name
        return f"@{own}"

    def _copied(self, name: str) -> str:
        """What tells one copy of a computed size from another; the copy is made here."""
        if name not in self.waiting:
            return ""
        most = MOST_COPIES * len(self.flat.steps)
        if not self.copies[name] or self.copies.total() < most:
            self.copies[name] += 1
            copy = "" if self.copies[name] == 1 else f"#{self.copies[name]}"
            self._add(self.waiting[name], copy)
        return "" if self.copies[name] == 1 else f"#{self.copies[name]}"

    def _attributes(self, step: Step) -> Iterator[tuple[str, Arg]]:
        given = {name: _attribute(a) for name, a in step.attributes.items()}
        schema = _schema(step)
        if schema is not None:
            for name, declared in schema.attributes.items():
                default = declared.default_value
                if name not in given and default.HasField("type"):
                    given[name] = _attribute(ir.serde.deserialize_attribute(default))
        if step.shared:
            given["frozen"] = True
        return iter(given.items())


def _weighs(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor counts as a parameter: floats, and quantised weights."""
    small = dtype in ("i8", "u8", "i4", "u4", "i2", "u2") and len(shape) > 1
    return (dtype.startswith(("f", "bf")) or small) and math.prod(shape) > 1


def _schema(step: Step) -> onnx.defs.OpSchema | None:
    if step.domain:
        return None
    try:
        return onnx.defs.get_schema(step.node.op_type, step.version, "")
    except Exception:  # its own SchemaError: no such operator
        return None


def _attribute(attribute: ir.Attr) -> Arg:
    kinds = ir.AttributeType
    match attribute.type:
        case kinds.INT | kinds.FLOAT | kinds.STRING:
            return cast(Arg, attribute.value)
        case kinds.INTS | kinds.FLOATS | kinds.STRINGS:
            return tuple(attribute.value)
        case kinds.TENSOR:
            return _tensor(attribute.as_tensor())
        case _:
            return Attr(attribute.type.name.lower(), attribute.name)


def _tensor(tensor: ir.TensorProtocol) -> Arg:
    """One number as a list of it, anything else as what it is."""
    if math.prod(tensor.shape.numpy()) != 1 or tensor.dtype == ir.DataType.STRING:
        return Attr("tensor", f"{tensor.dtype.name}{list(tensor.shape.numpy())}")
    value = np.asarray(tensor.numpy()).reshape(()).item()
    return (value,) if isinstance(value, bool | int | float) else Attr("tensor", str(value))
