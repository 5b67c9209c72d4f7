"""Load a module that is in memory: its program as the passes see it, its tensors as arrays.

A stock transformers model is treated as its checkpoint would be, so it can be written as one. Any
other module is traced with the example inputs that it comes with. Nothing is copied: arrays share
the memory of the module's tensors, and the module is left as it was found.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from prunec.backends.hf_build import shapes
from prunec.frontends import hf
from prunec.frontends.source import Source
from prunec.frontends.tensors import to_numpy
from prunec.frontends.torch import Dynamic, Traced, trace
from prunec.frontends.torch_hf import example_inputs, trace_hf
from prunec.ir.diagnostics import PrunecError, fail
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Graph
from prunec.passes.cost import Cost
from prunec.passes.couple import couple
from prunec.passes.profile import Array
from prunec.progress import Progress
from prunec.runs.loading import Loaded, ProgramWeights

__all__ = ["Example", "Live", "as_fed", "load_module", "named_inputs", "on_meta"]

Example = Mapping[str, Any] | Sequence[Any] | torch.Tensor
"""Inputs of `forward`: by name, in order, or the only one."""

SMALL = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Live:
    """A module in memory as it was loaded, and how to trace another one in the same way."""

    module: nn.Module
    loaded: Loaded
    trace: Callable[[nn.Module], Graph]


def load_module(
    module: nn.Module, example: Example | None, dynamic: Dynamic | None, progress: Progress
) -> Live:
    """Trace a module in memory and couple its dimensions.

    `example` may be left out for models of transformers, which say what they read; `dynamic` by
    default lets the first dimension of every input vary. Raises PrunecError when the module
    cannot be traced or copied, or nothing says what it reads.
    """
    config = None if example is not None else _stock_config(module)
    with progress.step("Tracing the program"):
        start = time.perf_counter()
        skeleton = on_meta(module) if config is None else hf.build_meta(config)
        inputs = {} if config is not None else _inputs(module, example)
        varying = dynamic if dynamic is not None else _batched(inputs)

        def tracer(other: nn.Module) -> Traced:
            return trace_hf(other) if config is not None else _trace(other, inputs, varying)

        traced = tracer(skeleton)
        seconds = {"trace": time.perf_counter() - start}
    with progress.step("Coupling dimensions"):
        start = time.perf_counter()
        coupling = couple(traced.graph, ATEN)
        seconds["couple"] = time.perf_counter() - start
    stored, computed = _arrays(module, keep_buffers=config is None)
    name = type(module).__name__
    loaded = Loaded(
        Source("module", name, Path(name), None, None),
        config,
        skeleton,
        coupling,
        Cost(coupling),
        stored,
        ProgramWeights(coupling.graph, stored, {**computed, **traced.constants}),
        examples=(as_fed(inputs),) if config is None else (),
        warnings=traced.warnings,
        seconds=seconds,
    )
    return Live(module, loaded, lambda other: tracer(other).graph)


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module in evaluation mode whose parameters and buffers have no storage, in
    float32 where they are smaller floats: that is what the passes compute in."""
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(tensor): _without_storage(tensor) for tensor in tensors}
    try:
        made = copy.deepcopy(module, memo)
    except Exception as error:  # whatever the attributes of a module raise
        raise fail(
            "P133",
            f"{type(module).__name__} cannot be copied: {' '.join(str(error).split())[:200]}",
            help="keep open files, locks and tensors with a gradient history out of its attributes",
        ) from error
    return made.eval()


def named_inputs(module: nn.Module, example: Example) -> dict[str, Any]:
    """Inputs by the names that `forward` has for them; raises P134 for too many or unknown ones."""
    accepted = inspect.signature(module.forward).parameters
    if isinstance(example, Mapping):
        return dict(example)
    values = [example] if isinstance(example, torch.Tensor) else list(example)
    order = [
        n for n, p in accepted.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(values) <= len(order):
        return dict(zip(order, values, strict=False))
    raise fail(
        "P134",
        f"{type(module).__name__} takes {len(order)} inputs by name, and {len(values)} are given",
        help=f"its inputs are {', '.join(order) or 'not named: give forward an argument for each'}",
    )


def _without_storage(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if tensor.dtype in SMALL else tensor.dtype
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    if not isinstance(tensor, nn.Parameter):
        return empty
    return nn.Parameter(empty, requires_grad=tensor.requires_grad)


def _stock_config(module: nn.Module) -> Any:
    """The configuration of a model that transformers can build again, or None."""
    kind = type(module)
    if (
        not isinstance(module, PreTrainedModel)
        or getattr(transformers, kind.__name__, 0) is not kind
    ):
        return None
    config: Any = copy.deepcopy(module.config)
    config.architectures = [kind.__name__]
    try:
        built = hf.build_meta(config)
    except PrunecError:
        return None
    same = shapes(built) == shapes(module)  # neither adapters nor layers of its own
    return config if same else None


def _inputs(module: nn.Module, example: Example | None) -> dict[str, Any]:
    if example is not None:
        return named_inputs(module, example)
    if isinstance(module, PreTrainedModel):
        made, _ = example_inputs(module)
        return {name: torch.zeros(x.shape, dtype=x.dtype) for name, x in made.items()}
    raise fail(
        "P134",
        f"nothing says what {type(module).__name__} reads",
        help="give example inputs: prunec.load(module, example=(x,))",
    )


def _batched(example: Mapping[str, Any]) -> Dynamic:
    tensors = {name: x for name, x in example.items() if isinstance(x, torch.Tensor) and x.dim()}
    return {name: {0: "batch"} for name in tensors}


def _trace(skeleton: nn.Module, example: Mapping[str, Any], dynamic: Dynamic) -> Traced:
    widened = {
        name: x.float() if isinstance(x, torch.Tensor) and x.dtype in SMALL else x
        for name, x in example.items()
    }
    return trace(skeleton, widened, dynamic=dynamic, name=type(skeleton).__name__)


def _arrays(module: nn.Module, *, keep_buffers: bool) -> tuple[dict[str, Array], dict[str, Array]]:
    """What a state dict holds, with all buffers if they are to be kept, and the other buffers."""
    state = {name: to_numpy(tensor) for name, tensor in module.state_dict().items()}
    buffers = {n: to_numpy(b) for n, b in module.named_buffers(remove_duplicate=False)}
    return (state | buffers, {}) if keep_buffers else (state, buffers)


def as_fed(example: Mapping[str, Any]) -> dict[str, Array]:
    """What a program reads: the tensors among the inputs."""
    tensors = {name: x for name, x in example.items() if isinstance(x, torch.Tensor)}
    return {n: to_numpy(x.float() if x.dtype in SMALL else x) for n, x in tensors.items()}
