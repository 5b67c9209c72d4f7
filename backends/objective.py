"""The loss that gradients are of, one calibration sequence at a time.

A program that predicts the next token (one output gives logits over the vocabulary of an input of
tokens, and no logit depends on a later token) has the cross-entropy of the next token, a mean over
the positions of a sequence. Any other program has half the squared norm of its floating-point
outputs, a mean over the entries of each: it needs no labels, and its gradient says how far a weight
reaches into the output. Both have gradients at the outputs in closed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from prunec.backends.forward import Factors
from prunec.backends.interpreter import Program
from prunec.ir.diagnostics import PrunecError, fail
from prunec.ir.graph import Graph

__all__ = [
    "Batch",
    "Objective",
    "count_sequences",
    "cut_inputs",
    "length_of",
    "not_smooth",
    "sequences",
    "shortened",
]

Batch = dict[str, Tensor]
Outputs = Mapping[str, Tensor]

SLICE = 8 << 20
"""Bytes of logits, or of the table that makes them, at a time."""

ENOUGH = 32
"""Tokens that show whether a program looks ahead."""


class Objective:
    """The loss of one sequence; what kind it is shows at the `first` one."""

    def __init__(self, program: Program, first: Batch) -> None:
        self.graph = program.graph
        self.pair = _tokens_and_logits(self.graph)
        self.causal = self.pair is not None and _is_causal(program, first, *self.pair)

    @torch.no_grad()
    def before_product(self, sequence: Batch, factors: Factors) -> Tensor:
        """The gradient at the states (B, T, n) whose product with a table gives the logits of a
        causal program, of which only some tokens are held at a time."""
        assert self.pair is not None
        following = sequence[self.pair[0]][:, 1:].long()
        norms = [z.float().logsumexp(-1) for _, z in factors.slices(SLICE)]
        norm = torch.stack(norms).logsumexp(0)[..., None]
        found = torch.zeros_like(factors.states, dtype=torch.float32)
        for some, z in factors.slices(SLICE):
            found += (z.float() - norm).exp() @ factors.weight[some].float()
        found[:, :-1] -= factors.weight[following].float()
        found[:, -1] = 0
        return (found / following.numel()).to(factors.states.dtype)

    @torch.no_grad()
    def gradients(self, sequence: Batch, outputs: Outputs) -> dict[str, Tensor]:
        """The gradient of the loss at the outputs that it depends on, by name.

        Raises P313 when no output is in floating point.
        """
        floats = {name: value for name, value in outputs.items() if value.is_floating_point()}
        if not floats:
            raise not_smooth(self.graph)
        if not self.causal:
            return {name: value / value.numel() for name, value in floats.items()}
        assert self.pair is not None
        tokens, logits = self.pair
        return {logits: _next_token(outputs[logits], sequence[tokens])}


def not_smooth(graph: Graph) -> PrunecError:
    return fail(
        "P313",
        "no output of the model depends smoothly on its weights, so there are no gradients",
        where=", ".join(name for name, _ in graph.outputs),
        help="choose a method that needs no gradients, such as wanda-sp or ziplm",
    )


def _next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """softmax - onehot at every position (B, T, V) that has a next token (B, T), over their
    number."""
    gradient = torch.softmax(logits.float(), -1)
    gradient[:, -1] = 0
    following = tokens[:, 1:, None].long()
    gradient[:, :-1].scatter_add_(
        -1, following, torch.full_like(following, -1, dtype=torch.float32)
    )
    gradient /= following.numel()
    return gradient.to(logits.dtype)


@torch.no_grad()
def _is_causal(program: Program, sequence: Batch, tokens: str, logits: str) -> bool:
    """Whether the logits before the last position stay when the last token changes."""
    sequence = shortened(program.graph, sequence, ENOUGH)
    if sequence[tokens].shape[1] < 2:
        return False
    changed = sequence[tokens].clone()
    changed[:, -1] = changed[:, 0] if bool((changed[:, -1] != changed[:, 0]).any()) else 0
    if torch.equal(changed, sequence[tokens]):
        changed[:, -1] = 1
    before, after = (
        program.run(inputs)[logits][:, :-1] for inputs in (sequence, {**sequence, tokens: changed})
    )
    scale = float(before.abs().max())
    return bool((before - after).abs().max() <= 1e-4 * max(scale, 1e-12))


def cut_inputs(graph: Graph) -> list[str]:
    """Inputs that hold a sequence in each row: those whose first size is that of the first input
    with a run-time one."""
    inputs = [(value.name[1:], value.type.shape) for value in graph.inputs]
    leading = [shape[0] for _, shape in inputs if shape and isinstance(shape[0], str)]
    return [name for name, shape in inputs if leading and shape and shape[0] == leading[0]]


def count_sequences(graph: Graph, batch: Mapping[str, Any]) -> int:
    cut = cut_inputs(graph)
    return len(batch[cut[0]]) if cut else 1


def sequences(graph: Graph, batch: Mapping[str, Any]) -> Iterator[Batch]:
    """The sequences of a batch, each as a batch of one; other inputs go along whole."""
    cut = cut_inputs(graph)
    values = {v.name[1:]: torch.as_tensor(batch[v.name[1:]]) for v in graph.inputs}
    for i in range(count_sequences(graph, batch)):
        yield {name: v[i : i + 1] if name in cut else v for name, v in values.items()}


def shortened(graph: Graph, inputs: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Inputs with at most so many tokens in each sequence; what has no tokens stays."""
    pair = _tokens_and_logits(graph)
    if pair is None:
        return dict(inputs)
    time = graph.types[f"%{pair[0]}"].shape[1]
    if not isinstance(time, str):
        return dict(inputs)
    found = {}
    for value in graph.inputs:
        name = value.name[1:]
        cut = tuple(slice(most if size == time else None) for size in value.type.shape)
        found[name] = inputs[name][cut]
    return found


def length_of(graph: Graph, inputs: Mapping[str, Any]) -> int:
    """Tokens in each sequence; 1 for a program that reads none."""
    pair = _tokens_and_logits(graph)
    return 1 if pair is None else int(inputs[pair[0]].shape[1])


def _tokens_and_logits(graph: Graph) -> tuple[str, str] | None:
    """The input of tokens and the output of logits over the same vocabulary, by public name."""
    for op in graph.ops:
        if op.name != "aten.embedding.default":
            continue
        table, indices = list(op.operands)[:2]
        tokens = _origin(graph, indices)
        if tokens is None or len(graph.types[tokens].shape) != 2:
            continue
        logits = (*graph.types[tokens].shape, graph.types[table].shape[0])
        for name, value in graph.outputs:
            if graph.types[value].shape == logits:
                return tokens[1:], name
    return None


def _origin(graph: Graph, name: str) -> str | None:
    """The input of integers that a value is a view of: no other tensor goes into it."""
    inputs = {value.name for value in graph.inputs}
    while name not in inputs:
        if name not in graph.producers:
            return None
        operands = dict.fromkeys(graph.ops[graph.producers[name]].operands)
        tensors = [operand for operand in operands if graph.types[operand].dtype != "index"]
        if len(tensors) != 1:
            return None
        name = tensors[0]
    return name
