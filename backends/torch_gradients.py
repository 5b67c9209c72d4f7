"""Slopes of the loss of the dense program, by autograd, one calibration sequence at a time.

The loss of a program that predicts the next token (one output gives logits over the vocabulary of
an input of tokens, and no logit depends on a later token) is the cross-entropy of the next token,
a mean over the positions of a sequence. Any other program has half the squared norm of its
floating-point outputs, a mean over all their entries: it needs no labels, and its gradient says
how far a weight reaches into the output.

State: two numbers in float32 for each entry of the parameters that are looked at (the sum of the
gradients, and of their squares), beside the weights and what autograd keeps of one sequence. The
gradient of each parameter is folded as soon as it is complete and dropped, so that only a few are
there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.backends.tensors import as_tensor
from prunec.backends.torch_module import to_fx
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.coupling import Place
from prunec.passes.profile import Slopes, Weights

__all__ = ["Objective", "TorchGradients", "backward", "sequences"]

Batch = dict[str, Tensor]


class TorchGradients:
    """Implements `prunec.passes.profile.Gradients` for models that fit into memory."""

    def __init__(
        self, graph: Graph, weights: Weights, batches: Sequence[Mapping[str, Any]]
    ) -> None:
        self.graph, self.weights, self.batches = graph, weights, batches

    def slopes(self, places: Iterable[Place]) -> dict[Place, Slopes]:
        """Slopes at each place, over all sequences.

        Raises PrunecError when a gradient is not finite, naming the parameter.
        """
        dims: dict[str, list[int]] = {}
        for place in dict.fromkeys(places):
            dims.setdefault(place.parameter, []).append(place.dim)
        values = {name: as_tensor(self.weights[name]) for name in self.graph.parameters}
        module = to_fx(self.graph, values)
        count = sum(_count(self.graph, batch) for batch in self.batches)
        sums = {name: _Sums(name, module.get_parameter(name), dims[name], count) for name in dims}
        objective = Objective(self.graph, module)
        for batch in self.batches:
            for sequence in sequences(self.graph, batch):
                with torch.enable_grad():
                    backward(objective(sequence), self.graph)
                for state in sums.values():
                    state.close()
        found: dict[Place, Slopes] = {}
        for name in dims:
            found |= sums.pop(name).slopes()  # its state goes before the next one's results come
        return found


def backward(loss: Tensor | None, graph: Graph) -> None:
    if loss is not None and loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
        return
    raise fail(
        "P313",
        "no output of the model depends smoothly on its weights, so there are no gradients",
        where=", ".join(name for name, _ in graph.outputs),
        help="choose a method that needs no gradients, such as wanda-sp or ziplm",
    )


class _Sums:
    """What is gathered of one parameter over the sequences: w g of each, folded onto each of the
    dimensions, and entry by entry the sums of g and of g^2."""

    def __init__(
        self, name: str, parameter: torch.nn.Parameter, dims: Sequence[int], count: int
    ) -> None:
        self.name, self.dims, self.count = name, dims, count
        self.parameter = parameter.requires_grad_(True)
        self.first = torch.zeros(parameter.shape)
        self.second = torch.zeros(parameter.shape)
        # all at once: small pieces that stay would keep the heap from shrinking
        self.rows = [torch.zeros(count, parameter.shape[d], dtype=torch.float64) for d in dims]
        self.done = 0
        parameter.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]

    def _take(self, parameter: Tensor) -> None:
        """Take the gradient of one sequence as soon as it is complete."""
        assert parameter.grad is not None
        gradient = parameter.grad.detach().float()
        parameter.grad = None
        self.first += gradient
        self.second.addcmul_(gradient, gradient)
        product = gradient * parameter.detach()
        for rows, dim in zip(self.rows, self.dims, strict=True):
            rows[self.done] = _folded(product, dim)

    def close(self) -> None:
        """After a sequence; a parameter that it did not reach has slope zero."""
        self.done += 1
        if all(bool(torch.isfinite(rows[self.done - 1]).all()) for rows in self.rows):
            return
        raise fail(
            "P312",
            f"the gradient of {self.name} is not finite",
            where=self.name,
            help="the model overflows on this text or its weights are damaged: run it in float32,"
            " choose other calibration data, or a method without gradients",
        )

    def slopes(self) -> dict[Place, Slopes]:
        """The result at each dimension; uses up the state."""
        weight = self.parameter.detach()
        first = self.first.mul_(weight).div_(max(self.count, 1))
        second = self.second.mul_(weight).mul_(weight).div_(2 * max(self.count, 1))
        terms = [[_folded(second, dim) for dim in self.dims]]
        second = second.sub_(first).abs_()
        terms.append([_folded(second, dim) for dim in self.dims])
        terms.append([_folded(first.abs_(), dim) for dim in self.dims])
        return {
            Place(self.name, dim): Slopes(
                self.rows[i].numpy(),
                first=terms[2][i].numpy(),
                second=terms[0][i].numpy(),
                mixed=terms[1][i].numpy(),
            )
            for i, dim in enumerate(self.dims)
        }


def _folded(values: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one, in float64."""
    others = tuple(d for d in range(values.dim()) if d != dim)
    return values.sum(others, dtype=torch.float64) if others else values.double()


def _cut(graph: Graph) -> list[str]:
    """Inputs that hold a sequence in each row: those whose first size is that of the first input
    with a run-time one."""
    inputs = [(value.name[1:], value.type.shape) for value in graph.inputs]
    leading = [shape[0] for _, shape in inputs if shape and isinstance(shape[0], str)]
    return [name for name, shape in inputs if leading and shape and shape[0] == leading[0]]


def _count(graph: Graph, batch: Mapping[str, Any]) -> int:
    cut = _cut(graph)
    return len(batch[cut[0]]) if cut else 1


def sequences(graph: Graph, batch: Mapping[str, Any]) -> Iterator[Batch]:
    """The sequences of a batch, each as a batch of one; other inputs go along whole."""
    cut = _cut(graph)
    values = {v.name[1:]: torch.as_tensor(batch[v.name[1:]]) for v in graph.inputs}
    for i in range(_count(graph, batch)):
        yield {name: v[i : i + 1] if name in cut else v for name, v in values.items()}


class Objective:
    """The loss of one sequence; what kind it is shows at the first one."""

    def __init__(self, graph: Graph, module: Callable[..., Any]) -> None:
        self.graph, self.module = graph, module
        self.pair = _tokens_and_logits(graph)
        self.causal: bool | None = None if self.pair is not None else False

    def __call__(self, sequence: Batch) -> Tensor | None:
        """None when no output is in floating point."""
        if self.causal is None:
            self.causal = self._is_causal(sequence)
        outputs = self._run(sequence)
        return self._next_token(sequence, outputs) if self.causal else _energy(outputs.values())

    def _run(self, sequence: Batch) -> dict[str, Tensor]:
        found = self.module(*[sequence[value.name[1:]] for value in self.graph.inputs])
        names = [name for name, _ in self.graph.outputs]
        return dict(zip(names, found if len(names) > 1 else (found,), strict=True))

    @torch.no_grad()
    def _is_causal(self, sequence: Batch) -> bool:
        """Whether the logits before the last position stay when the last token changes."""
        assert self.pair is not None
        tokens, logits = self.pair
        if sequence[tokens].shape[1] < 2:
            return False
        changed = sequence[tokens].clone()
        changed[:, -1] = changed[:, 0] if bool((changed[:, -1] != changed[:, 0]).any()) else 0
        if torch.equal(changed, sequence[tokens]):
            changed[:, -1] = 1
        before = self._run(sequence)[logits][:, :-1].float()
        after = self._run({**sequence, tokens: changed})[logits][:, :-1].float()
        scale = float(before.abs().max())
        return bool((before - after).abs().max() <= 1e-4 * max(scale, 1e-12))

    def _next_token(self, sequence: Batch, outputs: Mapping[str, Tensor]) -> Tensor:
        assert self.pair is not None
        tokens, logits = self.pair
        predicted = outputs[logits][:, :-1].float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(
            predicted, sequence[tokens][:, 1:].flatten().long()
        )


def _energy(outputs: Iterable[Tensor]) -> Tensor | None:
    parts = [value.float().square().mean() / 2 for value in outputs if value.is_floating_point()]
    return torch.stack(parts).sum() if parts else None


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
