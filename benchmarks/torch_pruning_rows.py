"""Ask Torch-Pruning for what the zoo asks of prunec; a row for each model type.

    python benchmarks/torch_pruning_rows.py STATE SECONDS MODEL...

Started by `torch_pruning_zoo.py` in an environment that has torch-pruning, with prunec and the
tools of the zoo on the path.
"""

from __future__ import annotations

import copy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp  # type: ignore[import-untyped,import-not-found,unused-ignore]
from coverage import apart, append
from coverage_row import ROLES, Smaller, feeds_of, named, quietly, smaller, stored, traced_and_fed
from specimen import NotBuilt, Specimen, specimen
from torch import nn
from torch.utils import _pytree as pytree

from prunec.backends.masked import execute_masked
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.output.checking import relative_difference
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling

Row = dict[str, Any]

ALLOWED = 1e-4
OUT = {nn.Embedding: 1, nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 1, nn.ConvTranspose3d: 1,
       nn.Linear: 0, nn.Conv1d: 0, nn.Conv2d: 0, nn.Conv3d: 0}  # fmt: skip
"""Dimension of the weight of each kind of layer that holds what the layer makes."""
GIGABYTES = 8


def main(state: Path, seconds: int, kinds: Sequence[str]) -> None:
    quietly()
    for kind in kinds:
        start = time.perf_counter()
        work = partial(row_of, seconds=seconds)
        row = {"model": kind, **apart(work, kind, 60 + seconds * len(ROLES), GIGABYTES)}
        append(state, row | {"seconds": round(time.perf_counter() - start, 1)})
        told = {role: held["outcome"] for role, held in row.get("roles", {}).items()}
        print(f"{kind:28} {told or row['reason']}", flush=True)


def row_of(kind: str, seconds: int) -> Row:
    """What Torch-Pruning makes of each role of a model type."""
    try:
        traced, found = traced_and_fed(specimen(kind))
    except (NotBuilt, PrunecError) as error:
        return {"status": "no program", "reason": str(error).splitlines()[0]}
    coupling = couple(traced.graph, ATEN)
    weights, feeds = stored(found.model, traced), feeds_of(found)
    exact = {contraction.op for contraction in coupling.contractions}
    roles: Row = {}
    for role in ROLES:
        groups = [g for g in coupling.groups if g.role == role and g.size > 1]
        if not groups:
            continue
        part = smaller(coupling, groups, weights)
        wanted = list(
            execute_masked(coupling, part.selections, part.rewritten, weights, feeds, exact)
        )
        roles[role] = _within(seconds, partial(_outcome, found, coupling, part, feeds, wanted))
    return {"status": "traced", "roles": roles}


def _within(seconds: int, work: Callable[[], Row]) -> Row:
    """What `work` finds, or that it took too long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return work()
    except TimeoutError:
        return {"outcome": "stopped", "reason": f"not done after {seconds} s of processor"}
    except Exception as error:  # whatever it raises, and whatever the model that it left raises
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return {"outcome": "fails", "reason": told[:200]}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _outcome(
    found: Specimen,
    coupling: Coupling,
    part: Smaller,
    feeds: Sequence[Mapping[str, Any]],
    wanted: Sequence[Mapping[str, Any]],
) -> Row:
    model = copy.deepcopy(found.model)
    before = _count(model)
    if reason := _prune(model, found, coupling, part):
        return {"outcome": "fails", "reason": reason}
    if _count(model) == before:
        return {"outcome": "nothing", "reason": "no parameter has left"}
    worst = 0.0
    for feed, outputs in zip(feeds, wanted, strict=True):
        with torch.no_grad():
            ours = named(model(**{**found.inputs, **feed}))
        pairs = {name: value for name, value in outputs.items() if name in ours}
        assert pairs, f"the model has no output {', '.join(outputs)}"
        worst = max(worst, relative_difference({n: ours[n] for n in pairs}, pairs))
    if worst > ALLOWED:
        return {"outcome": "wrong", "reason": f"outputs differ by {worst:.2g}", "difference": worst}
    return {"outcome": "equal", "difference": worst}


def _prune(model: Any, found: Specimen, coupling: Coupling, part: Smaller) -> str:
    """Let Torch-Pruning take the units of every layer that makes some; or why it does not."""
    requests = list(_requests(model, coupling, part))
    if not requests:
        return "they come from no layer that it knows"
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(
            model, example_inputs=dict(found.inputs), output_transform=_tensors, verbose=False
        )
        for layer, dim, size, gone in requests:
            if layer.weight.shape[dim] != size:
                continue  # together with a layer before
            if layer not in graph.module2node:
                return "the layer that makes them is not in its graph"
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            group = graph.get_pruning_group(layer, prune, gone)
            if not graph.check_pruning_group(group):
                return "nothing of some layer would be left"
            group.prune()
    return ""


def _tensors(outputs: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.grad_fn is not None]


def _requests(
    model: nn.Module, coupling: Coupling, part: Smaller
) -> Iterator[tuple[Any, int, int, list[int]]]:
    """The layers that make units which must go: the dimension of the weight that holds them, its
    size, and the indices that must go."""
    first = {
        name: parameter.name
        for parameter in coupling.graph.parameters.values()
        for name in (parameter.name, *parameter.aliases)
    }
    for path, layer in model.named_modules():
        dim = next((dim for kind, dim in OUT.items() if isinstance(layer, kind)), None)
        kept = part.rewritten.kept.get(first.get(f"{path}.weight", ""), {})
        if dim is None or dim not in kept:
            continue
        size = layer.weight.shape[dim]  # type: ignore[union-attr,index,call-overload,unused-ignore]
        gone = np.setdiff1d(np.arange(size), kept[dim])
        yield layer, dim, int(size), [int(i) for i in gone]


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
