"""Criteria by the names that `--method` takes, one family a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunec.passes.criteria.activation import Activation, Fluctuation, Wanda
from prunec.passes.criteria.gradient import HeadImportance, Taylor
from prunec.passes.criteria.obs import Obs
from prunec.passes.criteria.slimllm import SlimLLM
from prunec.passes.criteria.weight import Magnitude, Random
from prunec.passes.score import Criterion

__all__ = [
    "CRITERIA",
    "Activation",
    "Fluctuation",
    "HeadImportance",
    "Magnitude",
    "Obs",
    "Random",
    "SlimLLM",
    "Taylor",
    "Wanda",
]

CRITERIA: Mapping[str, Callable[[], Criterion]] = {
    "magnitude": Magnitude,
    "magnitude-l1": lambda: Magnitude(power=1),
    "random": Random,
    "wanda": Wanda,
    "fluctuation": Fluctuation,
    "activation-mean": lambda: Activation("mean"),
    "activation-l2": lambda: Activation("l2"),
    "head-importance": HeadImportance,
    "taylor": Taylor,
    "taylor-vector": lambda: Taylor("vector"),
    "taylor-element": lambda: Taylor("element"),
    "taylor-second": lambda: Taylor("second"),
    "taylor-mixed": lambda: Taylor("mixed"),
    "slimllm": SlimLLM,
    "obs": Obs,
    "obs-swap": lambda: Obs(swaps=64),
}
"""Makers of criteria with their default options, by name."""
