"""Watch which experts tokens go to, and what these contribute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prunec.backends.interpreter import Arrays, Program
from prunec.ir.graph import Graph
from prunec.passes.routing import Routed, Router

__all__ = ["watch_routes"]


@torch.no_grad()
def watch_routes(
    graph: Graph,
    weights: Arrays,
    batches: Sequence[Mapping[str, Any]],
    routers: Sequence[Router],
    step: Callable[[], None] = lambda: None,
) -> dict[str, Routed]:
    """By group, sums over all tokens of the batches; `step` is called after each batch.

    Weights are opened one operation at a time.
    """
    found = {r.group: Routed(np.zeros(r.size), np.zeros(r.size)) for r in routers}
    program = Program(graph, weights)
    stops = sorted(
        {graph.producers[name] + 1 for r in routers for name in (r.chosen, r.contributed)}
    )
    for batch in batches:
        env, at = program.start(batch), 0
        chosen: dict[str, torch.Tensor] = {}
        for stop in stops:
            program.advance(env, at, stop)
            at = stop
            for router in routers:
                if graph.producers[router.chosen] + 1 == stop:
                    chosen[router.group] = env[router.chosen].flatten()
                if graph.producers[router.contributed] + 1 == stop:
                    given = env[router.contributed]
                    found[router.group] += _counted(router, chosen[router.group], given)
        step()
    return found


def _counted(router: Router, chosen: torch.Tensor, given: torch.Tensor) -> Routed:
    norms = given.reshape(len(chosen), -1).double().norm(dim=-1)
    tokens = torch.bincount(chosen, minlength=router.size).double()
    sums = torch.bincount(chosen, weights=norms, minlength=router.size)
    return Routed(tokens.numpy(), sums.numpy())
