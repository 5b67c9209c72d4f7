"""Canonical form of an imported operation, so that passes meet few spellings.

What they can rely on:

- no copies: `detach`, `clone`, `contiguous`, `alias`, dropout in evaluation mode, slices of a
  whole dimension, reshapes and expansions to the same shape are gone;
- `view` is `aten.reshape.default`, `.T` and the like are `transpose` or `permute`, `narrow` is
  `slice`, changes of dtype are `aten.to.dtype`;
- no device, layout, memory format or pinning; factory operations state their dtype;
- dimensions count from 0 and are stated, also where the default was meant;
- `squeeze` names dimensions that it does drop, so that one that shrinks to 1 later stays;
- indexing with consecutive numbers that the code states is a slice;
- `aten.slice.Tensor` has five arguments; an end of None means "to the end"; start and end of a
  static dimension are never negative;
- the scale of `scaled_dot_product_attention` is explicit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunec.ir.graph import Arg, Attr, Ref, TensorType

__all__ = ["Call", "canonical"]

_TO_THE_END = 2**62
_PLACEMENT = ("device", "layout", "pin_memory", "non_blocking", "memory_format")
_DIM_NAMES = ("dim", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim")
_INSERTS_DIM = ("aten.unsqueeze.default", "aten.stack.default", "aten.diag_embed.default")
_FACTORIES = ("arange", "full", "zeros", "ones", "empty", "new_", "scalar_tensor", "eye")


@dataclass(frozen=True)
class Call:
    """An operation before it becomes an `Op`. `operand` gives the type of a value by name,
    `constant` the numbers of one that is written into the code."""

    name: str
    args: tuple[Arg, ...]
    kwargs: Mapping[str, Arg]
    types: tuple[TensorType, ...]
    operand: Callable[[str], TensorType | None]
    schema: Any = field(default=None, compare=False)
    constant: Callable[[str], npt.NDArray[Any] | None] = field(
        default=lambda _: None, compare=False
    )

    def arg(self, position: int, default: Arg = None) -> Arg:
        return self.args[position] if position < len(self.args) else default

    def type_of(self, arg: Arg) -> TensorType | None:
        return self.operand(arg.name) if isinstance(arg, Ref) else None


Rule = Callable[[Call], Call | Ref]


def canonical(call: Call) -> Call | Ref:
    """The canonical call, or the operand that the call only copies."""
    call = replace(call, name=_SPELLINGS.get(call.name, call.name))
    call = _without_placement(_with_counted_dims(call))
    rule = RULES.get(call.name)
    return rule(call) if rule else call


def _without_placement(call: Call) -> Call:
    kwargs = {k: v for k, v in call.kwargs.items() if k not in _PLACEMENT and v is not None}
    if call.name.split(".")[1].startswith(_FACTORIES) and call.schema is not None:
        kwargs["dtype"] = Attr("dtype", _TORCH_NAMES[call.types[0].dtype])
    return replace(call, kwargs=kwargs)


def _with_counted_dims(call: Call) -> Call:
    """State the dimensions an operation works on, counted from 0."""
    if call.schema is None or not call.args:
        return call
    rank = _rank(call)
    if rank is None:
        return call
    rank += call.name in _INSERTS_DIM
    args = list(call.args)
    names = [a.name for a in call.schema.arguments if not a.kwarg_only]
    last = max((i for i, name in enumerate(names) if name in _DIM_NAMES), default=-1)
    for formal in call.schema.arguments[len(args) : last + 1]:
        if not formal.has_default_value() or formal.default_value is None:
            return call
        args.append(_as_arg(formal.default_value))
    for i, name in enumerate(names[: len(args)]):
        if name in _DIM_NAMES:
            args[i] = _counted(args[i], rank)
    return replace(call, args=tuple(args))


def _rank(call: Call) -> int | None:
    first = call.args[0]
    if isinstance(first, tuple):
        first = first[0] if first else None
    found = call.type_of(first)
    return len(found.shape) if found is not None else None


def _as_arg(value: Any) -> Arg:
    return tuple(_as_arg(v) for v in value) if isinstance(value, list | tuple) else value


def _counted(dim: Arg, rank: int) -> Arg:
    if isinstance(dim, tuple):
        return tuple(_counted(d, rank) for d in dim)
    if isinstance(dim, int) and not isinstance(dim, bool) and dim < 0:
        return dim + rank
    return dim


def _first(call: Call) -> Call | Ref:
    """A copy of its operand."""
    source = call.args[0]
    return source if isinstance(source, Ref) else call


def _cast(call: Call) -> Call | Ref:
    source = call.args[0]
    assert isinstance(source, Ref)
    dtype = call.types[0].dtype
    known = call.type_of(source)
    if known is not None and known.dtype == dtype:
        return source
    args = (source, Attr("dtype", _TORCH_NAMES[dtype]))
    return replace(call, name="aten.to.dtype", args=args, kwargs={})


def _dropout(call: Call) -> Call | Ref:
    return _first(call) if call.arg(2) is False or call.arg(1) == 0 else call


def _same_shape(call: Call) -> Call | Ref:
    known = call.type_of(call.args[0])
    if known is not None and known.shape == call.types[0].shape:
        return _first(call)
    kwargs = {k: v for k, v in call.kwargs.items() if k != "implicit"}
    return replace(call, kwargs=kwargs)


def _times_one(call: Call) -> Call | Ref:
    literal = call.arg(1)
    if isinstance(literal, int | float) and literal == 1 and _keeps_type(call):
        return _first(call)
    return call


def _plus_zero(call: Call) -> Call | Ref:
    # Adding 0.0 turns -0.0 into 0.0, so that only integers are left alone.
    literal = call.arg(1)
    if isinstance(literal, int) and literal == 0 and _keeps_type(call):
        return _first(call) if call.types[0].dtype.startswith(("i", "u")) else call
    return call


def _keeps_type(call: Call) -> bool:
    return call.type_of(call.args[0]) == call.types[0]


def _slice(call: Call) -> Call | Ref:
    source, dim = call.args[0], call.arg(1, 0)
    known = call.type_of(source)
    assert known is not None
    assert isinstance(dim, int)
    extent = known.shape[dim]
    start = _bound(call.arg(2), extent, default=0)
    end = _bound(call.arg(3), extent, default=None)
    if isinstance(end, int) and (end >= _TO_THE_END or end == extent):
        end = None
    step = call.arg(4, 1)
    if start == 0 and end is None and step == 1:
        return _first(call)
    return replace(call, args=(source, dim, start, end, step), kwargs={})


def _slice_scatter(call: Call) -> Call | Ref:
    """Writing over a whole dimension leaves what is written."""
    _, source, dim = call.args[:3]
    start, end, step = call.arg(3), call.arg(4), call.arg(5, 1)
    assert isinstance(dim, int)
    extent = call.types[0].shape[dim]
    whole = end is None or end == extent or (isinstance(end, int) and end >= _TO_THE_END)
    if start in (None, 0) and whole and step == 1 and call.type_of(source) == call.types[0]:
        return source if isinstance(source, Ref) else call
    return call


def _bound(bound: Arg, extent: int | str, default: Arg) -> Arg:
    if bound is None:
        return default
    if not isinstance(bound, int) or isinstance(extent, str):
        return bound
    return max(bound + extent, 0) if bound < 0 else min(bound, extent)


def _select(call: Call) -> Call | Ref:
    source, dim, index = call.args
    known = call.type_of(source)
    if known is None or not isinstance(dim, int) or not isinstance(index, int) or index >= 0:
        return call
    extent = known.shape[dim]
    return replace(call, args=(source, dim, index + extent)) if isinstance(extent, int) else call


def _index(call: Call) -> Call | Ref:
    """Indices that the code states one after the other are a slice."""
    source, given = call.args[:2]
    known = call.type_of(source)
    assert isinstance(given, tuple)
    at = [(dim, index) for dim, index in enumerate(given) if index is not None]
    if known is None or len(at) != 1:
        return call
    dim, index = at[0]
    if not isinstance(index, Ref):
        return call
    extent, values = known.shape[dim], call.constant(index.name)
    if values is None or values.dtype.kind != "i" or values.ndim != 1 or isinstance(extent, str):
        return call
    values = np.where(values < 0, values + extent, values)
    if not values.size or (np.diff(values) != 1).any():
        return call
    args = (source, dim, int(values[0]), int(values[-1]) + 1)
    return _slice(replace(call, name="aten.slice.Tensor", args=args, schema=None))


def _reversed(call: Call) -> Call | Ref:
    """`x.T`: all dimensions in reverse order."""
    known = call.type_of(call.args[0])
    assert known is not None
    rank = len(known.shape)
    if rank < 2:
        return _first(call)
    return _transposed(call, 0, 1) if rank == 2 else _permuted(call, range(rank - 1, -1, -1))


def _last_two(call: Call) -> Call:
    known = call.type_of(call.args[0])
    assert known is not None
    return _transposed(call, len(known.shape) - 2, len(known.shape) - 1)


def _squeezed(call: Call) -> Call | Ref:
    known, asked = call.type_of(call.args[0]), call.arg(1)
    assert known is not None
    over = range(len(known.shape)) if asked is None else asked
    found = tuple(over) if isinstance(over, range | tuple) else (over,)
    gone = tuple(d for d in found if isinstance(d, int) and known.shape[d] == 1)
    if not gone:
        return _first(call)
    return (
        call
        if asked in (gone, gone[0])
        else replace(call, name="aten.squeeze.dims", args=(call.args[0], gone))
    )


def _moved(call: Call) -> Call:
    source, start, end = call.args
    known = call.type_of(source)
    assert known is not None
    assert isinstance(start, int)
    assert isinstance(end, int)
    rank = len(known.shape)
    order = [d for d in range(rank) if d != start % rank]
    order.insert(end % rank, start % rank)
    return _permuted(call, order)


def _transposed(call: Call, left: int, right: int) -> Call:
    return replace(call, name="aten.transpose.int", args=(call.args[0], left, right))


def _permuted(call: Call, order: Iterable[int]) -> Call:
    return replace(call, name="aten.permute.default", args=(call.args[0], tuple(order)))


def _narrow(call: Call) -> Call | Ref:
    source, dim, start, length = call.args
    if not isinstance(start, int) or not isinstance(length, int):
        return call
    args = (source, dim, start, start + length)
    return _slice(replace(call, name="aten.slice.Tensor", args=args))


def _attention(call: Call) -> Call:
    query = call.type_of(call.args[0])
    if call.kwargs.get("scale") is not None or query is None:
        return call
    width = query.shape[-1]
    if not isinstance(width, int):
        return call
    return replace(call, kwargs={**call.kwargs, "scale": 1.0 / math.sqrt(width)})


_TORCH_NAMES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
    "c64": "complex64",
    "c128": "complex128",
}

_SPELLINGS = {
    "aten.view.default": "aten.reshape.default",
    "aten._unsafe_view.default": "aten.reshape.default",
    "aten.__and__.Tensor": "aten.bitwise_and.Tensor",
    "aten.__and__.Scalar": "aten.bitwise_and.Scalar",
    "aten.__or__.Tensor": "aten.bitwise_or.Tensor",
    "aten.__or__.Scalar": "aten.bitwise_or.Scalar",
    "aten.__xor__.Tensor": "aten.bitwise_xor.Tensor",
    "aten.__xor__.Scalar": "aten.bitwise_xor.Scalar",
    "aten.swapaxes.default": "aten.transpose.int",
    "aten.swapdims.default": "aten.transpose.int",
    "aten.concat.default": "aten.cat.default",
    "aten.concatenate.default": "aten.cat.default",
    "aten.unsafe_split.Tensor": "aten.split.Tensor",
    "aten.unsafe_chunk.default": "aten.chunk.default",
    "aten.true_divide.Tensor": "aten.div.Tensor",
    "aten.multiply.Tensor": "aten.mul.Tensor",
    "aten.subtract.Tensor": "aten.sub.Tensor",
    "aten.negative.default": "aten.neg.default",
    "aten.absolute.default": "aten.abs.default",
    "aten.greater.Scalar": "aten.gt.Scalar",
    "aten.greater.Tensor": "aten.gt.Tensor",
    "aten.less.Scalar": "aten.lt.Scalar",
    "aten.less.Tensor": "aten.lt.Tensor",
    "aten.divide.Tensor": "aten.div.Tensor",
    "aten.special_expit.default": "aten.sigmoid.default",
    "aten.special_softmax.default": "aten.softmax.int",
    "aten.moveaxis.int": "aten.movedim.int",
    "aten.view_as.default": "aten.reshape_as.default",
    "aten.broadcast_to.default": "aten.expand.default",
}

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "aten.detach.default",
            "aten.detach_.default",
            "aten.alias.default",
            "aten.clone.default",
            "aten.contiguous.default",
            "aten.lift.default",
            "aten.lift_fresh.default",
            "aten.lift_fresh_copy.default",
            "aten.positive.default",
        ),
        _first,
    ),
    **dict.fromkeys(
        (
            "aten.to.device",
            "aten.to.dtype",
            "aten.to.dtype_layout",
            "aten.to.other",
            "aten.to.prim_Device",
            "aten._to_copy.default",
            "aten.type_as.default",
        ),
        _cast,
    ),
    **dict.fromkeys(
        ("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default"),
        _dropout,
    ),
    "aten.reshape.default": _same_shape,
    "aten.expand.default": _same_shape,
    "aten.mul.Tensor": _times_one,
    "aten.add.Tensor": _plus_zero,
    "aten.numpy_T.default": _reversed,
    "aten.t.default": _reversed,
    "aten.mT.default": _last_two,
    "aten.movedim.int": _moved,
    "aten.squeeze.default": _squeezed,
    "aten.squeeze.dim": _squeezed,
    "aten.squeeze.dims": _squeezed,
    "aten.slice.Tensor": _slice,
    "aten.narrow.default": _narrow,
    "aten.index.Tensor": _index,
    "aten.select.int": _select,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.scaled_dot_product_attention.default": _attention,
}
