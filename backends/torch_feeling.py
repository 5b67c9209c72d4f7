"""How strongly the loss feels an error in the output of a layer.

For a small error D (T, m) in an output whose gradient is g (T, m) the loss grows by about
half the sum of (g_t . D_t)^2 (the empirical Fisher information for its Hessian; Hassibi and
Stork, NeurIPS 1993, section 2). With errors that point anywhere that is |D|^2 times half the mean
of g^2: one number a layer, which puts the error curves of all layers into units of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunec.backends.tensors import as_tensor
from prunec.backends.torch_gradients import Objective, backward, sequences
from prunec.backends.torch_module import to_fx
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.profile import Weights

__all__ = ["loss_per_error"]


def loss_per_error(
    graph: Graph, weights: Weights, batches: Sequence[Mapping[str, Any]], results: Sequence[str]
) -> dict[str, float]:
    """Half the mean square of the gradient of the loss at each of the `results`, by name.

    The loss is that of `TorchGradients`, a mean over the tokens of a sequence; all batches count,
    one backward pass a sequence, and the whole model is held in memory. A result that the loss
    does not depend on has 0. Raises P312 when a gradient is not finite.
    """
    module = to_fx(graph, {name: as_tensor(weights[name]) for name in graph.parameters})
    module.requires_grad_(False)
    listener = _Listener(module, results)
    objective = Objective(graph, listener.run)
    for batch in batches:
        for sequence in sequences(graph, batch):
            with torch.enable_grad():
                backward(objective(sequence), graph)
    for name, square in listener.squares.items():
        if not square < float("inf"):
            raise fail(
                "P312",
                "a gradient of the loss is not finite",
                where=graph.ops[graph.producers[name]].loc.module or name,
                help="the model overflows on this text: run it in float32, choose other"
                " calibration data, or --allocate uniform",
            )
    counts = listener.counts
    return {n: s / max(counts[n], 1) / 2 for n, s in listener.squares.items()}


class _Listener(fx.Interpreter):
    """Runs the module and sums the squares of the gradients that come back to some values."""

    def __init__(self, module: fx.GraphModule, results: Sequence[str]) -> None:
        super().__init__(module)
        self.wanted = {name[1:]: name for name in results}
        self.squares = dict.fromkeys(results, 0.0)
        self.counts = dict.fromkeys(results, 0)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = self.wanted.get(n.name)
        if name is None or not torch.is_grad_enabled() or not isinstance(value, Tensor):
            return value
        if not value.requires_grad:  # nothing before it is listened to
            value = value.detach().requires_grad_(True)

        def take(gradient: Tensor) -> None:
            self.squares[name] += float(gradient.float().square().sum(dtype=torch.float64))
            self.counts[name] += gradient.numel()

        value.register_hook(take)  # type: ignore[no-untyped-call]
        return value
