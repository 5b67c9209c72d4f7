"""Run one IR operation with torch: from its name to a callable, from its arguments to values."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from prunec.ir.diagnostics import fail
from prunec.ir.graph import Arg, Attr, Op, Ref, references

__all__ = ["DENSE", "compile_op", "literal", "resolve", "returns_many", "size", "to_torch_arg"]

Env = Mapping[str, Any]
"""Values by reference: `%x` and `@model.weight`."""


DENSE = ("aten.view_as_complex.default",)
"""Operations that see memory in another way: their operand must lie in order, which it need not
when what lies before it in memory has become smaller."""


def size(tensor: torch.Tensor, dim: int) -> int:
    return tensor.shape[dim]


# Arithmetic on sizes: `py.` names a function of Python or its symbolic twin in torch.
_MATH = ("ceil", "floor", "trunc", "sqrt")
_SIZES: Mapping[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "int": int,
    "float": float,
    "round": round,
    "not": operator.not_,
    "and": operator.and_,
    "or": operator.or_,
    "sum": lambda args: sum(args),
    "ite": lambda test, then, other: then if test else other,
    **{name: getattr(math, name) for name in _MATH},
}


@cache
def resolve(name: str) -> Callable[..., Any]:
    """The function an operation's name stands for: an aten overload, or Python on sizes.

    Raises PrunecError when this torch has no such operation.
    """
    if name == "aten.sym_size.int":
        return size
    namespace, _, rest = name.partition(".")
    if namespace == "py":
        found = _SIZES.get(rest) or getattr(operator, rest, None)
    else:
        packet, _, overload = rest.partition(".")
        packets = getattr(getattr(torch.ops, namespace, None), packet, None)
        found = getattr(packets, overload or "default", None)
    if found is None:
        raise fail("P201", f"torch {torch.__version__} has no operation {name}", snippet=name)
    return found


def literal(attr: Attr) -> Any:
    """The torch object a symbolic literal stands for."""
    match attr.kind:
        case "dtype" | "memory_format" | "layout":
            return getattr(torch, attr.value)
        case "complex":
            return complex(attr.value)
        case "device":
            return torch.device(attr.value)
    raise fail("P201", f"torch has no literal of kind {attr.kind}", snippet=attr.value)


def to_torch_arg(arg: Arg, env: Env) -> Any:
    """An argument with its references looked up, as torch takes it."""
    match arg:
        case Ref():
            return env[arg.name]
        case tuple():
            return [to_torch_arg(a, env) for a in arg]
        case Attr():
            return literal(arg)
    return arg


def compile_op(op: Op) -> Callable[[Env], tuple[Any, ...]]:
    """A closure that computes the results of `op`, one for each of `op.results`.

    Names and literals are resolved once, here; the closure only looks up operands.
    """
    run = resolve(op.name)
    args = [_getter(a) for a in op.args]
    kwargs = {k: _getter(a) for k, a in op.kwargs}
    many = returns_many(op)
    if op.name in DENSE:
        (source,) = args
        args = [lambda env: source(env).contiguous()]

    def compute(env: Env) -> tuple[Any, ...]:
        found = run(*[get(env) for get in args], **{k: get(env) for k, get in kwargs.items()})
        return tuple(found) if many else (found,)

    return compute


def returns_many(op: Op) -> bool:
    """Whether torch returns a sequence, which it also does for a list of one."""
    if op.name.startswith("py.") or len(op.results) > 1:
        return len(op.results) > 1
    returns = getattr(resolve(op.name), "_schema", None)
    if returns is None:
        return False
    return len(returns.returns) > 1 or isinstance(returns.returns[0].type, torch.ListType)


def _getter(arg: Arg) -> Callable[[Env], Any]:
    if isinstance(arg, Ref):
        return operator.itemgetter(arg.name)
    if any(True for _ in references(arg)):
        assert isinstance(arg, tuple)
        items = [_getter(a) for a in arg]
        return lambda env: [get(env) for get in items]
    fixed = to_torch_arg(arg, {})
    return lambda env: fixed
