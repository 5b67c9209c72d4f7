"""What prunec can do with one small model, proven by law 1: a row of the coverage table.

For every role the groups of the model lose a third of their indices at random, and the smaller
program is compared with the dense one in which the same indices are zeroed wherever they occur:
values are float32, contractions sum in float64, the largest absolute difference of an output is
taken over the largest absolute value of that output, at two shapes.
"""

from __future__ import annotations

import time
import timeit
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from coverage_formats import formats_of
from specimen import NotBuilt, Specimen, specimen
from torch.utils import _pytree as pytree
from transformers.utils import logging

from prunec.backends.interpreter import SEED, execute
from prunec.backends.masked import execute_masked
from prunec.frontends.tensors import to_numpy
from prunec.frontends.torch import Traced
from prunec.frontends.torch_hf import trace_hf
from prunec.frontends.torch_import import path_name
from prunec.ir.axes import Selection
from prunec.ir.diagnostics import PrunecError
from prunec.ir.dialects.aten import ATEN
from prunec.ir.graph import Graph
from prunec.ir.infer import infer
from prunec.output.checking import relative_difference
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling, Group, Pinned
from prunec.passes.dce import dce
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.runs.loading import SlicedWeights

__all__ = [
    "ROLES",
    "Compared",
    "Row",
    "Smaller",
    "coverage_of",
    "examine",
    "feeds_of",
    "law",
    "named",
    "quietly",
    "silent",
    "smaller",
    "stored",
    "traced_and_fed",
    "warm_up",
]

Row = dict[str, Any]
ROLES = ("neuron", "query_head", "kv_head", "head_dim", "channel", "expert", "hidden")
REMOVED = 1 / 3
SHOWN = 6


def quietly() -> None:
    """No warnings of the libraries."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def warm_up() -> None:
    """What every type needs is imported and computed once, before processes part."""
    traced_and_fed(specimen("llama"))


def coverage_of(kind: str) -> Row:
    """The row of a model type. What goes wrong stands in `status` and `reason`."""
    start = time.process_time()
    try:
        found = specimen(kind)
    except NotBuilt as error:
        return {"model": kind, "status": "not built", "reason": str(error)}
    row: Row = {"model": kind, "task": found.task, "class": type(found.model).__name__}
    row["build_seconds"] = round(time.process_time() - start, 3)
    try:
        return row | examine(found)
    except Exception:  # a fault of ours, which must not end the run
        return row | {"status": "crashed", "reason": traceback.format_exc()[-900:]}


def examine(found: Specimen) -> Row:
    """Trace, type and prune a specimen."""
    start = time.process_time()
    try:
        traced, found = traced_and_fed(found)
    except PrunecError as error:
        (fact, *_) = error.diagnostics
        return {
            "status": "not traced",
            "reason": fact.message,
            "where": fact.where.rpartition("site-packages/")[2],
        }
    row: Row = {"status": "traced", "trace_seconds": round(time.process_time() - start, 3)}
    row["type_seconds"] = _seconds(lambda: infer(traced.graph, ATEN))
    coupling = couple(traced.graph, ATEN)
    row["nodes"] = _nodes(traced.graph)
    row["operations"] = len(traced.graph.ops)
    row["static"] = found.resize is None
    row["without_rule"] = dict(coupling.without_rule)
    row |= _shares(coupling)
    row["silent"] = silent(coupling)
    weights = stored(found.model, traced)
    feeds = feeds_of(found)
    row["shapes"] = len(feeds)
    row["program"] = _program(found, coupling, weights, feeds)
    row |= _roles(coupling, weights, feeds)
    return row


def _nodes(graph: Graph) -> int:
    """Nodes as fx counts them: operations, what they read from outside, and the output."""
    return len(graph.ops) + len(graph.parameters) + len(graph.inputs) + 1


def _seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call, without the collection of garbage: the mean over as many as
    take a fifth of a second, for that clock may tick in steps of several milliseconds."""
    number, taken = timeit.Timer(work, timer=time.process_time).autorange()
    return round(taken / number, 7)


def traced_and_fed(found: Specimen) -> tuple[Traced, Specimen]:
    """A model that fixes dimensions is traced at the sizes of its example."""
    traced = trace_hf(found.model, example=found.inputs, dynamic=found.dynamic)
    if not traced.warnings:
        return traced, found
    return trace_hf(found.model, example=found.inputs), replace(found, dynamic={}, resize=None)


def stored(model: Any, traced: Traced) -> dict[str, Any]:
    """The values of all parameters of the program, by name."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False))}
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    return {k: to_numpy(v.detach()) for k, v in tensors.items()} | dict(traced.constants)


def feeds_of(found: Specimen) -> list[dict[str, Any]]:
    """Inputs at the first shape, and at another where the model allows it."""
    feeds = [found.inputs]
    if found.resize is not None:
        names = {name for dims in found.dynamic.values() for name in dims.values()}
        feeds.append(found.resize(3, 9 if len(names) > 1 else 6))
    return [{k: v for k, v in feed.items() if isinstance(v, torch.Tensor)} for feed in feeds]


def _program(
    found: Specimen, coupling: Coupling, weights: Mapping[str, Any], feeds: Sequence[Any]
) -> Row:
    """How far the traced program is from the model itself."""
    worst = 0.0
    for feed in feeds:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=()):
                torch.manual_seed(SEED)
                wanted = named(found.model(**{**found.inputs, **feed}))
            (outputs,) = execute(coupling.graph, weights, [feed])
        except Exception as error:  # any operation of the program or the model may refuse
            return {"reason": f"{type(error).__name__}: {error}"[:300]}
        pairs = {name: wanted[name] for name in outputs if name in wanted}
        if not pairs:
            return {"reason": f"the model has no output {', '.join(outputs)}"}
        worst = max(worst, relative_difference({n: outputs[n] for n in pairs}, pairs))
    return {"difference": worst}


def named(outputs: Any) -> dict[str, Any]:
    """The tensors that a model returns, named as in a traced program."""
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    return {path_name(path): value for path, value in leaves if isinstance(value, torch.Tensor)}


# -- law 1 -----------------------------------------------------------------------------------


def _roles(
    coupling: Coupling, weights: Mapping[str, Any], feeds: Sequence[Mapping[str, Any]]
) -> Row:
    """Law 1 role by role and for all groups together, and that program in all formats."""
    exact = {contraction.op for contraction in coupling.contractions}
    try:
        dense = list(execute(coupling.graph, weights, feeds, exact))
    except Exception as error:  # any operation of the program may refuse
        return {"roles": {}, "together": {"error": _said(error)}}
    roles = {g.role for g in coupling.groups} | {p.role for p in coupling.pinned}
    found: Row = {}
    for role in (*ROLES, "feature"):
        if role in roles:
            found[role] = _role(coupling, role, weights, feeds, dense)
    groups = [g for g in coupling.groups if g.size > 1]
    row: Row = {"roles": found, "together": _judged(coupling, groups, weights, feeds, dense)}
    if "error" not in row["together"]:
        part = smaller(coupling, groups, weights)
        row["formats"] = formats_of(part.rewritten.graph, part.weights, feeds)
    return row


def _role(
    coupling: Coupling,
    role: str,
    weights: Mapping[str, Any],
    feeds: Sequence[Mapping[str, Any]],
    dense: Sequence[Mapping[str, Any]],
) -> Row:
    groups = [g for g in coupling.groups if g.role == role and g.size > 1]
    pins = [p for p in coupling.pinned if p.role == role and _counts(coupling, p)]
    row: Row = {"groups": len(groups), "pinned": len(pins)}
    if pins:
        row["pins"] = [_pin(pin) for pin in pins[:SHOWN]]
    return row | (_judged(coupling, groups, weights, feeds, dense) if groups else {})


def _judged(
    coupling: Coupling,
    groups: Sequence[Group],
    weights: Mapping[str, Any],
    feeds: Sequence[Mapping[str, Any]],
    dense: Sequence[Mapping[str, Any]],
) -> Row:
    try:
        found = law(coupling, groups, weights, feeds, dense)
    except Exception as error:  # what goes wrong in a smaller program is what is looked for
        return {"error": _said(error)}
    return {"difference": found.difference, "moved": found.moved}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


# What no pruner could take: the model's own interface, the windows of kernels, and the numbers of
# parts that are taken one by one (query, key and value; sine and cosine).
INHERENT = (
    "graph input",
    "graph output",
    "a spatial dimension",
    "each index is a part of its own",
    "each index is a stacked value of its own",
)


def _counts(coupling: Coupling, pin: Pinned) -> bool:
    """Whether a pin is of a weight, and for another reason than what the axis is."""
    parameters = coupling.graph.parameters
    return not pin.reason.startswith(INHERENT) and any(
        parameters[place.parameter].kind == "parameter" for place in pin.places
    )


def _pin(pin: Pinned) -> Row:
    places = [str(place) for place in pin.places[:3]]
    return {"size": pin.size, "places": places, "reason": pin.reason, "where": pin.where}


@dataclass(frozen=True)
class Compared:
    """How far the smaller program is from the masked one, and from the dense one."""

    difference: float
    moved: float


@dataclass(frozen=True)
class Smaller:
    """What is left when a part of some groups' indices is gone."""

    selections: Mapping[str, Selection]
    rewritten: Rewritten
    weights: Mapping[str, Any]


def smaller(
    coupling: Coupling, groups: Sequence[Group], weights: Mapping[str, Any], seed: int = 0
) -> Smaller:
    """Prune a third of each group at random."""
    rng = np.random.default_rng(seed)
    selections = {group.name: _some(coupling, group, rng) for group in groups}
    rewritten = rewrite(coupling, selections)
    rewritten = Rewritten(dce(rewritten.graph), rewritten.kept)
    return Smaller(selections, rewritten, SlicedWeights(weights, rewritten.kept))


def law(
    coupling: Coupling,
    groups: Sequence[Group],
    weights: Mapping[str, Any],
    feeds: Sequence[Mapping[str, Any]],
    dense: Sequence[Mapping[str, Any]] | None = None,
) -> Compared:
    """Prune a third of each group at random; compare with masking, and with the dense program,
    whose outputs may be given."""
    part = smaller(coupling, groups, weights)
    exact = {contraction.op for contraction in coupling.contractions}
    found = list(execute(part.rewritten.graph, part.weights, feeds, exact))
    masked = execute_masked(coupling, part.selections, part.rewritten, weights, feeds, exact)
    whole = dense or list(execute(coupling.graph, weights, feeds, exact))
    return Compared(_furthest(found, masked), _furthest(found, whole))


def _furthest(found: Sequence[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]]) -> float:
    return max(relative_difference(a, b) for a, b in zip(found, wanted, strict=True))


def _some(coupling: Coupling, group: Group, rng: np.random.Generator) -> Selection:
    """A random part of a group's indices, another one under each index of its parent."""
    keep = max(group.least, min(group.size - 1, round(group.size * (1 - REMOVED))))
    rows = coupling.by_name[group.parent].size if group.parent in coupling.by_name else 1
    drawn = [np.sort(rng.choice(group.size, keep, replace=False)) for _ in range(rows)]
    parent = group.parent if group.parent in coupling.by_name else None
    return Selection(np.stack(drawn) if parent else drawn[0], parent)


# -- nothing is left out ------------------------------------------------------------------------


def _shares(coupling: Coupling) -> Row:
    """Parameters, those that the program uses, and the share of these that lie in some group."""
    reached = {p.parameter for g in coupling.groups if g.size > 1 for p in g.places}
    used = {name for op in coupling.graph.ops for name in op.operands}
    total = in_use = in_groups = 0
    for parameter in coupling.graph.parameters.values():
        if parameter.kind != "parameter":
            continue
        count = int(np.prod([d for d in parameter.type.shape if isinstance(d, int)]))
        total += count
        in_use += count * (parameter.ref in used)
        in_groups += count * (parameter.ref in used and parameter.name in reached)
    return {"parameters": total, "used": in_use, "reachable": in_groups / max(in_use, 1)}


def silent(coupling: Coupling) -> list[str]:
    """Dimensions of weights of layers that are neither in a group nor pinned with a reason."""
    held = [g.places for g in coupling.groups] + [p.places for p in coupling.pinned]
    known = {(place.parameter, place.dim) for places in held for place in places}
    return [
        f"{parameter.name}[{dim}]"
        for parameter in coupling.graph.parameters.values()
        for dim, size in enumerate(parameter.type.shape)
        if size != 1 and (parameter.name, dim) not in known
    ]
