"""See which attributes of its modules a model reads while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from prunec.backends.modeling_prunec import Seen

__all__ = ["Reads", "spied"]

Reads = set[tuple[str, str]]
"""Module path and attribute name; `config.x` is the field x of the module's config."""

_CONFIG = "config."


@contextlib.contextmanager
def spied(model: torch.nn.Module, watched: Iterable[tuple[Iterable[str], str]]) -> Iterator[Reads]:
    """Within the block, reads of the watched attributes of these modules are noted."""
    reads: Reads = set()
    modules = dict(model.named_modules())
    by_module: dict[str, set[str]] = {}
    for paths, name in watched:
        for path in paths:
            if path in modules:
                by_module.setdefault(path, set()).add(name)
    undo = [_spy(modules[path], path, names, reads) for path, names in by_module.items()]
    try:
        yield reads
    finally:
        for module, kind, config in undo:
            module.__class__ = kind
            if config is not None:
                vars(module)["config"] = config


def _spy(
    module: torch.nn.Module, path: str, names: set[str], reads: Reads
) -> tuple[torch.nn.Module, type, Any]:
    """Give one module a class that notes what is read; returns what undoes it."""
    kind = type(module)
    watched = {n: _noting(path, n, reads) for n in names if not n.startswith(_CONFIG)}
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **watched})
    config = vars(module).get("config")
    fields = {n.removeprefix(_CONFIG) for n in names if n.startswith(_CONFIG)}
    if config is not None and fields:
        vars(module)["config"] = _Noting(config, path, fields, reads)
        return module, kind, config
    return module, kind, None


def _noting(path: str, name: str, reads: Reads) -> property:
    def get(self: Any) -> Any:
        reads.add((path, name))
        return vars(self)[name]

    def put(self: Any, value: Any) -> None:
        vars(self)[name] = value

    return property(get, put)


class _Noting(Seen):
    """A config that notes which of its fields a module reads."""

    def __init__(self, config: Any, path: str, fields: Iterable[str], reads: Reads) -> None:
        kept: Mapping[str, int] = getattr(config, "_fields", {})
        super().__init__(config, dict(kept))
        vars(self).update(_path=path, _watched=set(fields), _reads=reads)

    def __getattr__(self, name: str) -> Any:
        if name in vars(self).get("_watched", ()):
            vars(self)["_reads"].add((vars(self)["_path"], _CONFIG + name))
        return super().__getattr__(name)
