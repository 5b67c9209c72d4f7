"""prunec: a pruning compiler for neural networks.

`load` reads a model, `Model.prune` makes it smaller; see docs/python.md. Names are imported when
they are first used: `import prunec` loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunec.api import Model, PrunedModel, load
    from prunec.ir.diagnostics import Diagnostic, PrunecError
    from prunec.reports.data import InspectReport, PruneReport

__version__ = "0.1.0"

__all__ = [
    "Diagnostic",
    "InspectReport",
    "Model",
    "PruneReport",
    "PrunecError",
    "PrunedModel",
    "__version__",
    "load",
]

HOMES = {
    "Diagnostic": "prunec.ir.diagnostics",
    "InspectReport": "prunec.reports.data",
    "Model": "prunec.api",
    "PruneReport": "prunec.reports.data",
    "PrunecError": "prunec.ir.diagnostics",
    "PrunedModel": "prunec.api",
    "load": "prunec.api",
}
"""Where each public name is defined."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'prunec' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
