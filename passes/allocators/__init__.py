"""Allocators: how many indices of each group stay, so that the cost meets the target.

One allocator a file. `ALLOCATORS` holds them by the names that `--method` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunec.passes.allocators.budget import Budget, Counts, least_counts
from prunec.passes.allocators.depth import LogDepth
from prunec.passes.allocators.dynamic import DynamicProgram
from prunec.passes.allocators.evidence import Allocator, Divergence, Evidence
from prunec.passes.allocators.evolutionary import Evolutionary
from prunec.passes.allocators.influence import BlockInfluence
from prunec.passes.allocators.ladder import LADDER
from prunec.passes.allocators.ranking import Global
from prunec.passes.allocators.uniform import Uniform

__all__ = [
    "ALLOCATORS",
    "LADDER",
    "Allocator",
    "BlockInfluence",
    "Budget",
    "Counts",
    "Divergence",
    "DynamicProgram",
    "Evidence",
    "Evolutionary",
    "Global",
    "LogDepth",
    "Uniform",
    "least_counts",
]

ALLOCATORS: Mapping[str, Callable[[int], Allocator]] = {
    "uniform": lambda seed: Uniform(),
    "global": lambda seed: Global(),
    "block-influence": lambda seed: BlockInfluence(),
    "log-depth": lambda seed: LogDepth(),
    "dp": lambda seed: DynamicProgram(),
    "evolutionary": lambda seed: Evolutionary(seed=seed),
}
"""Makers with default options, given the run's seed, by name."""
