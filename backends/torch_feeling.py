"""How strongly the loss feels an error in the output of a layer.

For a small error D (T, m) in an output whose gradient is g (T, m) the loss grows by about
half the sum of (g_t . D_t)^2 (the empirical Fisher information for its Hessian; Hassibi and
Stork, NeurIPS 1993, section 2). With errors that point anywhere that is |D|^2 times half the mean
of g^2: one number a layer, which puts the error curves of all layers into units of the loss.

Where the loss is a mean over T tokens, g is a Tth of what the loss of a token feels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from prunec.backends.heap import BUDGET
from prunec.backends.objective import count_sequences, length_of, shortened
from prunec.backends.torch_backward import Backward
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.profile import Weights

__all__ = ["TOKENS", "loss_per_error", "loss_per_square"]

TOKENS = 256
"""Of each sequence. Two windows of so many gave the layers of a model of 30 the same relative
weights as eight, to 6 %; more would make the logits the largest thing in memory."""


def loss_per_error(
    graph: Graph,
    weights: Weights,
    batches: Sequence[Mapping[str, Any]],
    results: Sequence[str],
    budget: int = BUDGET,
    told: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Half the mean square of the gradient of the loss at each of the `results`, by name.

    The loss is that of `Objective`, a mean over the tokens of a sequence, of which the first
    `TOKENS` are taken; all batches count, with one backward pass a sequence. A result that the loss
    does not depend on has 0. Raises P312 when a gradient is not finite.
    """
    short = [shortened(graph, batch, TOKENS) for batch in batches]
    squares = dict.fromkeys(results, 0.0)
    counts = dict.fromkeys(results, 0)
    for stretch in Backward(graph, weights, short, results, budget=budget, told=told):
        for gradients in stretch.backward():
            for name, gradient in gradients.items():
                squares[name] += float(gradient.float().square().sum(dtype=torch.float64))
                counts[name] += gradient.numel()
    for name, square in squares.items():
        if not square < float("inf"):
            raise fail(
                "P312",
                "a gradient of the loss is not finite",
                where=graph.ops[graph.producers[name]].loc.module or name,
                help="the model overflows on this text: run it in float32, choose other"
                " calibration data, or --allocate uniform",
            )
    return {name: square / max(counts[name], 1) / 2 for name, square in squares.items()}


def loss_per_square(
    graph: Graph,
    weights: Weights,
    batches: Sequence[Mapping[str, Any]],
    few: Sequence[Mapping[str, Any]],
    results: Sequence[str],
    budget: int = BUDGET,
    told: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """How much the loss, in nats a token, grows for errors in each of the `results` whose squares
    add up to 1 over all tokens of `batches`, judged by `few` of these."""
    felt = loss_per_error(graph, weights, few, results, budget, told)
    length = max(length_of(graph, shortened(graph, batch, TOKENS)) for batch in few)
    tokens = sum(count_sequences(graph, batch) * length_of(graph, batch) for batch in batches)
    return {name: value * length**2 / tokens for name, value in felt.items()}
