"""Write a graph as TorchScript: one file that `torch.jit.load` runs without this project.

The graph becomes a module with the state dict's names, and the module is *scripted*: sizes stay
computed, so that batch and sequence may vary (a trace would freeze them). TorchScript is
deprecated in torch 2.13 and not supported from Python 3.14 on; the file loads in older versions
of torch as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import fx

from prunec.backends.torch_module import to_fx
from prunec.backends.torch_ops import size
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph

__all__ = ["emit", "script"]

_SCALARS = {"bool": bool, **dict.fromkeys(("f64", "f32", "f16", "bf16"), float)}
"""What `Tensor.item` gives by the tensor's dtype, int otherwise: the compiler itself says no more
than that it is a number."""


def emit(graph: Graph, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write `graph` to `path`. Inputs are positional, in the graph's order; one output is a
    tensor, several are a tuple.

    Raises PrunecError (P210) when TorchScript cannot express an operation.
    """
    module = script(graph, weights)
    with _quiet():
        torch.jit.save(module, str(path))


def script(graph: Graph, weights: Mapping[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """The scripted module in memory; it shares the weights."""
    module = to_fx(graph, weights)
    _clean(module)
    try:
        with _quiet():
            found: torch.jit.ScriptModule = torch.jit.script(module)
    except Exception as error:  # the compiler raises RuntimeError and its own types
        raise _not_expressible(graph, error) from error
    return found


def _clean(module: fx.GraphModule) -> None:
    """Spell every call as TorchScript knows it."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is size:
            node.op, node.target = "call_method", "size"
        elif node.target is torch.ops.aten.item.default:
            node.target = _SCALARS.get(node.meta["read"][0], int)
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
    module.recompile()


def _not_expressible(graph: Graph, error: Exception) -> Exception:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return fail(
        "P210",
        f"TorchScript cannot express {graph.name}: {lines[0] if lines else type(error).__name__}",
        where=graph.name,
        help="leave torchscript out of --format",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings that `torch.jit` is deprecated: the user asked for this format by name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        yield
