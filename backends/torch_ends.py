"""The stream at both ends of every region: how much a region changes it, and how it points there.

All windows advance together from one end to the next, so that the weights between two ends are
opened once and closed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch

from prunec.backends.interpreter import Flow, Program
from prunec.ir.graph import Graph
from prunec.passes.depth import Ends
from prunec.passes.regions import Region

__all__ = ["observe_ends"]


@torch.no_grad()
def observe_ends(
    graph: Graph,
    weights: Mapping[str, npt.NDArray[Any]],
    windows: Sequence[Mapping[str, Any]],
    regions: Sequence[Region],
    features: Callable[[str], int],
    step: Callable[[], None] = lambda: None,
) -> Ends:
    """Run the program on windows (inputs by name, each with a batch dimension) and look at the
    ends of the regions. `features` tells which dimension of a value is not a token's place;
    `step` is called at every end."""
    flow = Flow(Program(graph, weights))
    envs = [flow.program.start(window) for window in windows]
    names = dict.fromkeys(name for region in regions for name in (region.entry, region.exit))
    needed = {name: sum(name in (r.entry, r.exit) for r in regions) for name in names}
    ends, held, at = Ends(), dict[str, list[torch.Tensor]](), 0
    for name in sorted(names, key=graph.producers.__getitem__):
        stop = graph.producers[name] + 1
        for env in envs:
            flow.run(env, at, stop)
        at, flow.parameters = stop, {}
        held[name] = [_rows(env[name], features(name)) for env in envs]
        last = [rows[:, -1] for rows in held[name]]
        ends.vectors[name] = torch.cat(last).double().numpy()
        for region in regions:
            if region.exit == name:
                ends.influence[region.name] = _change(held[region.entry], held[name])
                needed[region.entry] -= 1
                needed[name] -= 1
        for done in [n for n in held if not needed[n]]:
            del held[done]
        step()
    return ends


def _rows(value: torch.Tensor, dim: int) -> torch.Tensor:
    """One vector for each position of each window: (windows, positions, features)."""
    moved = value.movedim(dim, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1]).float()


def _change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    total, tokens = 0.0, 0
    for one, other in zip(before, after, strict=True):
        similar = torch.cosine_similarity(one, other, dim=-1)
        total += float((1 - similar).double().sum())
        tokens += similar.numel()
    return total / tokens
