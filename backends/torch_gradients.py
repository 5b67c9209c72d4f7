"""Slopes of the loss of the dense program, by autograd, one calibration sequence at a time.

The loss is that of `objective`. State: two numbers in float32 for each entry of the parameters of a
stretch that are looked at (the sum of the gradients, and of their squares). The gradient of each is
folded as soon as it is complete and dropped, so that only a few are there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunec.backends.heap import BUDGET
from prunec.backends.torch_backward import Backward
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.passes.coupling import Place
from prunec.passes.profile import Slopes, Weights

__all__ = ["TorchGradients"]


class TorchGradients:
    """Implements `prunec.passes.profile.Gradients`, a stretch of the program at a time."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        batches: Sequence[Mapping[str, Any]],
        budget: int = BUDGET,
        told: Callable[[float], None] | None = None,
    ) -> None:
        self.graph, self.weights, self.batches, self.budget = graph, weights, batches, budget
        self.told = told

    def slopes(self, places: Iterable[Place]) -> dict[Place, Slopes]:
        """Slopes at each place, over all sequences.

        Raises PrunecError when a gradient is not finite, naming the parameter.
        """
        dims: dict[str, list[int]] = {}
        for place in dict.fromkeys(places):
            dims.setdefault(place.parameter, []).append(place.dim)
        passes = Backward(
            self.graph, self.weights, self.batches,
            parameters=dims, budget=self.budget, told=self.told,
        )  # fmt: skip
        found: dict[Place, Slopes] = {}
        for stretch in passes:
            own = stretch.parameters
            sums = {n: _Sums(n, p, dims[n], len(passes.sequences)) for n, p in own.items()}
            for _ in stretch.backward():
                for state in sums.values():
                    state.close()
            while sums:  # the state of one goes before the results of the next come
                found |= sums.popitem()[1].slopes()
        return found


class _Sums:
    """What is gathered of one parameter over the sequences: w g of each, folded onto each of the
    dimensions, and entry by entry the sums of g and of g^2."""

    def __init__(self, name: str, parameter: Tensor, dims: Sequence[int], count: int) -> None:
        self.name, self.dims, self.count = name, dims, count
        self.parameter = parameter
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
