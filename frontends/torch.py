"""Trace a PyTorch module into the IR with torch.export, on shapes alone.

No weight is ever read: every parameter and buffer is replaced by a fake tensor while tracing,
so a module may live on the meta device or hold real weights. The graph is the raw
(pre-decomposition) aten graph: `linear`, `layer_norm` and attention are still whole.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import sympy
import torch
from torch import nn
from torch.export import ExportedProgram, _trace
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunec.frontends.torch_expand import expanded
from prunec.frontends.torch_fake import fake_inputs, fake_mode, faked
from prunec.frontends.torch_guards import held_sizes
from prunec.frontends.torch_import import Imported, import_program
from prunec.frontends.torch_repeat import find_runs, shortened
from prunec.frontends.torch_symbols import Dynamic, fixed_dimension, input_dims
from prunec.ir.diagnostics import Diagnostic, PrunecError, fail
from prunec.ir.graph import Graph

__all__ = ["Dynamic", "Traced", "trace"]

_SMALLEST_PRIME = 5
_ATTEMPTS = 4

# A frame as tracebacks quote it.
_QUOTED = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Traced:
    """A traced module.

    `constants` holds the values of the parameters of kind `constant`, by name; `warnings` says
    which dimensions the model fixed although they were asked to vary.
    """

    graph: Graph
    module: nn.Module
    constants: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()


def trace(
    module: nn.Module,
    example: Mapping[str, Any],
    *,
    dynamic: Dynamic | None = None,
    name: str = "main",
) -> Traced:
    """Export `module(**example)` in evaluation mode and import the graph.

    Only shapes and dtypes of `example` are used. A dimension named in `dynamic` is traced at a
    prime size that divides no static size of the model, and dimensions of one name share one
    symbol; the size it has in `example` is ignored. One that decides how often a loop of the module
    goes round is traced at the size it has in `example`, with a warning. Raises PrunecError when
    the exporter cannot trace the module.
    """
    dynamic = dynamic or {}
    static = _static_sizes(module, example, dynamic)
    told: list[Diagnostic] = []
    names = {name for dims in dynamic.values() for name in dims.values()}
    for _ in range(_ATTEMPTS + len(names)):  # each may turn out to be held
        sizes = _prime_sizes(dynamic, static)
        try:
            imported = _imported(module, _resized(example, dynamic, sizes), dynamic, sizes, name)
        except _Held as held:
            told += held.warnings(example)
            dynamic = _without(dynamic, {name for *_, name in held.fixed})
            static = _static_sizes(module, example, dynamic)
            continue
        met = imported.static_sizes
        vary = [sizes[name] for name in imported.graph.symbols if name in sizes]
        if not any(_divides(prime, met) for prime in vary):  # those that were fixed stay so
            break
        static |= met
    return Traced(imported.graph, module, imported.constants, (*told, *imported.warnings))


class _Held(Exception):
    """Dimensions (input, dimension, name) that decide how often a loop goes round, which a trace
    cannot leave open."""

    def __init__(self, fixed: Sequence[tuple[str, int, str]]) -> None:
        super().__init__(fixed)
        self.fixed = fixed

    def warnings(self, example: Mapping[str, Any]) -> list[Diagnostic]:
        return [
            fixed_dimension(key, dim, name, f"{example[key].shape[dim]}, as in the example")
            for key, dim, name in self.fixed
        ]


def _check_held(program: ExportedProgram, dynamic: Dynamic, example: Mapping[str, Any]) -> None:
    """Raises _Held for dimensions that decide how often a loop goes round."""
    dims = list(input_dims(program, dynamic))
    symbols = {e: example[key].shape[dim] for key, dim, _, e in dims if isinstance(e, sympy.Symbol)}
    held = held_sizes(program, symbols)
    if held:
        fixed = [(key, dim, name) for key, dim, name, expr in dims if expr in held]
        raise _Held(fixed)


def _without(dynamic: Dynamic, names: set[str]) -> Dynamic:
    return {
        key: {dim: name for dim, name in dims.items() if name not in names}
        for key, dims in dynamic.items()
    }


def _imported(
    module: nn.Module,
    example: Mapping[str, Any],
    dynamic: Dynamic,
    sizes: Mapping[str, int],
    name: str,
) -> Imported:
    """The imported program; of blocks that compute the same only the first are exported."""
    with _plain_kernels():
        runs = find_runs(module, example)
    if runs:
        try:
            with shortened(module, runs):
                short = _export(module, example, dynamic, sizes, name)
        except PrunecError:  # a module that counts on the length of its lists
            return _export(module, example, dynamic, sizes, name)
        graph = expanded(short.graph, module, runs)
        if graph is not None:
            return replace(short, graph=graph)
    return _export(module, example, dynamic, sizes, name)


def _export(
    module: nn.Module,
    example: Mapping[str, Any],
    dynamic: Dynamic,
    sizes: Mapping[str, int],
    name: str,
) -> Imported:
    wanted = _dynamic_shapes(module, example, dynamic)
    shapes = wanted if dynamic else None  # what torch reads from fixed ones fails on **kwargs
    settings = (torch.no_grad(), _plain_kernels(), _forward_only(), _forgetful(), _silence())
    with ExitStack() as within:
        for setting in settings:
            within.enter_context(setting)
        mode = fake_mode()
        within.enter_context(faked(module, mode))
        inputs = fake_inputs(example, mode)
        try:
            program = torch.export.export(module, (), inputs, dynamic_shapes=shapes, strict=False)
            _check_held(program, dynamic, example)
            if any(map(_is_transform, program.graph.nodes)):  # vmap, written out by decomposing
                program = program.run_decompositions({})
        except _Held:
            raise
        except Exception as error:  # the exporter raises many unrelated types
            raise _not_exportable(module, error) from error
    return import_program(program, module, name=name, dynamic=dynamic, sizes=sizes)


def _is_transform(node: torch.fx.Node) -> bool:
    return getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def _dynamic_shapes(
    module: nn.Module, example: Mapping[str, Any], dynamic: Dynamic
) -> dict[str, Any]:
    """The dynamic dimensions as the exporter wants them: keyed by argument of `forward`."""
    accepted = inspect.signature(module.forward).parameters
    shapes: dict[str, Any] = {}
    for key, value in example.items():
        dims = dynamic.get(key, {}) if isinstance(value, torch.Tensor) else None
        wanted = dims if dims is None else dict.fromkeys(dims, torch.export.Dim.AUTO)
        if key in accepted:
            shapes[key] = wanted
            continue
        rest = next((n for n, p in accepted.items() if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            raise fail(
                "P134",
                f"{type(module).__name__} takes no input called {key}",
                help=f"its inputs are {', '.join(accepted)}",
            )
        shapes.setdefault(rest, {})[key] = wanted
    return shapes


def _not_exportable(module: nn.Module, error: Exception) -> Exception:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    quoted = [_QUOTED.match(line) for line in lines]
    places = [f"{found[1]}:{found[2]}" for found in quoted if found and "/torch/" not in found[1]]
    message = lines[0] if lines else type(error).__name__
    places = places or _own_frames(error)
    return fail(
        "P130",
        f"torch.export cannot trace {type(module).__name__}: {message}",
        where=places[-1] if places else type(module).__name__,
        help="make the forward pass independent of tensor values, or trace an inner module",
    )


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention by the one kernel that does not branch on sizes, and torch's own layers operation
    by operation, not fused."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _forward_only() -> Iterator[None]:
    """What a forward pass may do and the exporter refuses: cast a layer to the dtype it has, and
    call a function that brings a derivative of its own."""
    move = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        held = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
        return module if held <= {dtype, None} or dtype is None else move(module, *args, **kwargs)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.setup_context is not torch.autograd.Function.setup_context:
            return cls.forward(*args, **kwargs)
        return cls.forward(_NoContext(), *args, **kwargs)

    with (
        mock.patch.object(nn.Module, "to", to),
        mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)),
    ):
        yield


class _NoContext:
    """Takes whatever a function wants to keep for its derivative."""

    needs_input_grad: tuple[bool, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _forgetful() -> AbstractContextManager[None]:
    """Results on fake tensors are not remembered: with symbolic shapes hardly any is met twice, and
    looking for them took a quarter of the time of an export."""
    found: AbstractContextManager[None] = torch._dynamo.config.patch(
        fake_tensor_cache_enabled=False
    )
    return found


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter logs what it is about to raise, and prints the graph it has so far."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with mock.patch.object(_trace, "print", create=True):
            yield
    finally:
        logging.disable(before)


def _own_frames(error: Exception) -> list[str]:
    """Where the traceback passes through code that is neither torch's nor ours."""
    found = []
    frame = error.__traceback__
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if "/torch/" not in path and path != __file__:
            found.append(f"{path}:{frame.tb_lineno}")
        frame = frame.tb_next
    return found


def _static_sizes(module: nn.Module, example: Mapping[str, Any], dynamic: Dynamic) -> set[int]:
    stored = [*module.parameters(), *module.buffers()]
    sizes = {dim for tensor in stored for dim in tensor.shape}
    for key, value in example.items():
        if not isinstance(value, torch.Tensor):
            continue
        sizes |= {n for i, n in enumerate(value.shape) if i not in dynamic.get(key, {})}
    return sizes


def _prime_sizes(dynamic: Dynamic, static: set[int]) -> dict[str, int]:
    """An example size for each name: distinct primes, none of which divides a static size."""
    names = dict.fromkeys(name for dims in dynamic.values() for name in dims.values())
    free = (prime for prime in _primes() if not _divides(prime, static))
    return {name: next(free) for name in names}


def _primes() -> Iterator[int]:
    for n in count(_SMALLEST_PRIME):
        if all(n % d for d in range(2, int(n**0.5) + 1)):
            yield n


def _divides(prime: int, sizes: set[int]) -> bool:
    table = np.fromiter((s for s in sizes if s > 0), dtype=np.int64)
    return bool((table % prime == 0).any())


def _resized(
    example: Mapping[str, Any], dynamic: Dynamic, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The example with every dynamic dimension at its prime size, on the meta device."""
    found: dict[str, Any] = {}
    for key, value in example.items():
        if not isinstance(value, torch.Tensor):
            found[key] = value
            continue
        shape = list(value.shape)
        for dim, axis in dynamic.get(key, {}).items():
            shape[dim] = sizes[axis]
        found[key] = torch.empty(shape, dtype=value.dtype, device="meta")
    return found
