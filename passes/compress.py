"""Select and restore, site by site along the program, on the already pruned stream.

A site is a set of groups that meet in the same consumers (the KV heads and query heads of one
attention layer, the neurons of one MLP). Sites are visited in the order of the program, so that
each is judged by the inputs it will really see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from prunec.ir.axes import Indices, Selection, atoms, kept_positions
from prunec.ir.diagnostics import fail
from prunec.passes.coupling import Consumer, Coupling, Group
from prunec.passes.profile import Array, Moments, Seen, Stream, Weights
from prunec.passes.readers import bias_of
from prunec.passes.restore import Restorer
from prunec.passes.score import (
    Choosing,
    Criterion,
    Curved,
    Lost,
    Ranked,
    Scores,
    Watching,
    lost_score,
)

__all__ = [
    "Compressed",
    "Finished",
    "Journal",
    "Site",
    "compress",
    "score_all",
    "select",
    "sites",
]

Selections = dict[str, Selection]


@dataclass(frozen=True)
class Site:
    """Groups that share consumers; `consumers` may be empty."""

    groups: tuple[Group, ...]
    consumers: tuple[Consumer, ...]


@dataclass
class Compressed:
    """What stays of each group, the weights that were refitted (full width, zero where pruned),
    the parameters that could not be refitted with the reason, and by group what is lost at every
    count."""

    selections: Selections = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    unrestored: dict[str, str] = field(default_factory=dict)
    lost: dict[str, Lost] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A site that is done: what `Compressed` has of it."""

    selections: Mapping[str, Selection]
    weights: Weights
    lost: Mapping[str, Lost]


class Journal(Protocol):
    """Where finished sites are kept, by their number, so that a run can be resumed."""

    def load(self, site: int) -> Finished | None: ...

    def save(self, site: int, finished: Finished) -> None: ...


def sites(coupling: Coupling, groups: Sequence[Group]) -> list[Site]:
    """Gather groups into sites, in the order in which the program reaches their consumers."""
    owner: dict[str, int] = {}
    gathered: dict[int, list[Group]] = {}
    for i, group in enumerate(groups):
        gathered[i] = [group]
        for op in {c.op for c in group.consumers}:
            other = owner.setdefault(op, i)
            if other != i:
                gathered[i] = gathered.pop(other) + gathered[i]
                owner |= {o: i for o, at in owner.items() if at == other}
    found = [_site(members) for members in gathered.values()]
    position = coupling.graph.producers
    return sorted(found, key=lambda s: min((position[c.op] for c in s.consumers), default=-1))


def _site(groups: Sequence[Group]) -> Site:
    consumers = {(c.op, c.weight): c for group in groups for c in group.consumers}
    return Site(tuple(groups), tuple(consumers.values()))


def score_all(
    coupling: Coupling,
    groups: Sequence[Group],
    criterion: Criterion,
    weights: Weights,
    stream: Stream | None,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Ranked]:
    """Scores of every group on the dense stream, with error curves where the criterion knows
    them, for an allocator that compares groups."""
    found: dict[str, Ranked] = {}
    for site in sites(coupling, groups):
        observed = _moments(_observe(coupling, site, site.groups, criterion, stream, frozenset()))
        for group in site.groups:
            found[group.name] = _ranked(criterion, coupling, group, weights, observed)
        step()
    return found


def compress(
    coupling: Coupling,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    criterion: Criterion,
    weights: Weights,
    stream: Stream | None = None,
    restorer: Restorer | None = None,
    step: Callable[[], None] = lambda: None,
    chosen: Mapping[str, Selection] | None = None,
    journal: Journal | None = None,
    scored: Mapping[str, Scores] | None = None,
) -> Compressed:
    """Choose which indices of each group stay and refit their consumers.

    `counts` says how many stay. Without a stream the criterion must not need one and nothing is
    refitted. With one, each site is scored on the inputs that the pruned program gives it.
    `chosen` are selections already made, which are followed without scoring; `scored` are scores
    already known by group. Sites that the `journal` has are taken from it; the others go into it.
    """
    scored = scored or {}
    result = Compressed(weights=stream.replaced if stream is not None else {})
    current = _Current(weights, result.weights)
    for number, site in enumerate(sites(coupling, groups)):
        known = journal.load(number) if journal is not None else None
        if known is not None:
            result.selections |= known.selections
            result.lost |= known.lost
            if stream is not None:
                stream.replace(known.weights)
            step()
            continue
        open_ = [
            g
            for g in site.groups
            if chosen is None and counts[g.name] < g.size and g.name not in scored
        ]
        wants = restorer.needs if restorer is not None and not _normed(site) else frozenset()
        seen = _observe(coupling, site, open_, criterion, stream, wants)
        for group in site.groups:
            if chosen is not None:
                result.selections[group.name] = chosen[group.name]
            elif counts[group.name] < group.size and group.name in scored:
                found = select(scored[group.name], counts[group.name], group)
                result.selections[group.name] = found
                result.lost[group.name] = lost_score(scored[group.name])
            elif counts[group.name] < group.size:
                count = counts[group.name]
                result.selections[group.name], result.lost[group.name] = _selected(
                    criterion, coupling, group, current, _moments(seen), count
                )
        changed: dict[str, Array] = {}
        if stream is not None and site.consumers:
            changed = _pruned(coupling, site, seen, result, current, restorer)
            stream.replace(changed)
        if journal is not None:
            own = {g.name for g in site.groups}
            chose = {n: x for n, x in result.selections.items() if n in own}
            told = {n: x for n, x in result.lost.items() if n in own}
            journal.save(number, Finished(chose, changed, told))
        step()
    return result


def _normed(site: Site) -> bool:
    return any(group.normed for group in site.groups)


def _observe(
    coupling: Coupling,
    site: Site,
    scored: Sequence[Group],
    criterion: Criterion,
    stream: Stream | None,
    wants: frozenset[str],
) -> dict[Consumer, Seen]:
    """What the site's consumers see, and whatever else the criterion watches for the groups that
    it has to score."""
    if stream is None or not site.consumers:
        return {}
    watched = dict.fromkeys(site.consumers)
    if isinstance(criterion, Watching):
        watched |= dict.fromkeys(c for group in scored for c in criterion.watches(coupling, group))
    needs = wants | (criterion.needs if scored else frozenset())
    return dict(zip(watched, stream.observe(list(watched), needs), strict=True))


def _moments(seen: Mapping[Consumer, Seen]) -> dict[Consumer, Moments]:
    return {consumer: s.whole.moments for consumer, s in seen.items()}


def _selected(
    criterion: Criterion,
    coupling: Coupling,
    group: Group,
    weights: Weights,
    observed: Mapping[Consumer, Moments],
    count: int,
) -> tuple[Selection, Lost]:
    """What stays, and what is lost at every count."""
    if isinstance(criterion, Choosing):
        own = _of(criterion, coupling, group, observed)
        chosen = criterion.choose(coupling, group, weights, own, count)
        return Selection(chosen.kept.astype(np.int64), group.parent), chosen.lost
    ranked = _ranked(criterion, coupling, group, weights, observed, curve=False)
    return select(ranked.scores, count, group), lost_score(ranked.scores)


def _ranked(
    criterion: Criterion,
    coupling: Coupling,
    group: Group,
    weights: Weights,
    observed: Mapping[Consumer, Moments],
    curve: bool = True,
) -> Ranked:
    """Scores that can be ranked; PrunecError when a weight among them is not a number."""
    own = _of(criterion, coupling, group, observed)
    if curve and isinstance(criterion, Curved):
        ranked = criterion.rank(coupling, group, weights, own)
    else:
        ranked = Ranked(criterion.score(coupling, group, weights, own), None)
    if np.isfinite(ranked.scores).all():
        return ranked
    names = dict.fromkeys(place.parameter for place in group.places)
    bad = [name for name in names if not np.isfinite(weights[name].astype(np.float64)).all()]
    raise fail(
        "P311",
        f"{group.name} cannot be scored: {bad[0] if bad else 'a weight'} holds values that are"
        " not finite",
        where=bad[0] if bad else group.name,
        help="check the original checkpoint; it may be damaged, or overflow in its own format",
    )


def select(scores: Scores, count: int, group: Group) -> Selection:
    """Keep the `count` highest scores, ties by lower index; ragged under a parent."""
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    return Selection(np.sort(order, axis=-1).astype(np.int64), group.parent)


class _Current(dict[str, Array]):
    """Weights as they stand: the refitted ones over the dense ones."""

    def __init__(self, base: Weights, changed: Weights) -> None:
        super().__init__()
        self._base, self._changed = base, changed

    def __missing__(self, name: str) -> Array:
        return self._changed[name] if name in self._changed else self._base[name]


def _of(
    criterion: Criterion,
    coupling: Coupling,
    group: Group,
    observed: Mapping[Consumer, Moments],
) -> list[tuple[Consumer, Moments]]:
    """The observations of a group's own consumers, and of what the criterion watches for it."""
    own = {(c.op, c.weight) for c in group.consumers}
    if isinstance(criterion, Watching):
        own |= {(c.op, c.weight) for c in criterion.watches(coupling, group)}
    return [(c, m) for c, m in observed.items() if (c.op, c.weight) in own]


def _pruned(
    coupling: Coupling,
    site: Site,
    seen: Mapping[Consumer, Seen],
    result: Compressed,
    weights: Weights,
    restorer: Restorer | None,
) -> dict[str, Array]:
    """The consumers' weights at full width, zero where pruned, refitted where that is possible."""
    by_weight: dict[tuple[str, int], list[Consumer]] = defaultdict(list)
    for consumer in site.consumers:
        by_weight[consumer.weight.parameter, consumer.weight.dim].append(consumer)
    changed: dict[str, Array] = {}
    for (name, dim), consumers in by_weight.items():
        axis = coupling.axes(name)[dim]
        cut = any(a.name in result.selections for a in atoms(axis))
        compensates = restorer is not None and restorer.compensates
        if not cut and not compensates:
            continue
        reason = _obstacle(coupling, consumers, restorer)
        if restorer is not None and not reason:
            total = _sum([seen[c] for c in consumers])
            kept = kept_positions(axis, result.selections)
            changed |= _refitted(coupling, consumers[0], weights, total, kept, restorer)
        elif cut:
            if reason:
                result.unrestored[name] = reason
            weight = np.array(changed.get(name, weights[name]))
            changed[name] = _zeroed(weight, dim, kept_positions(axis, result.selections))
    return changed


def _sum(seen: Sequence[Seen]) -> Seen:
    return sum(seen[1:], start=seen[0])


def _zeroed(weight: Array, dim: int, kept: Indices) -> Array:
    gone = np.setdiff1d(np.arange(weight.shape[dim]), kept)
    weight[(slice(None),) * dim + (gone,)] = 0
    return weight


def _obstacle(coupling: Coupling, consumers: Sequence[Consumer], restorer: Restorer | None) -> str:
    """Why the consumers of a weight cannot be refitted; empty when they can."""
    if restorer is None:
        return ""
    graph = coupling.graph
    for consumer in consumers:
        parameter = graph.parameters[consumer.weight.parameter]
        op = graph.ops[graph.producers[consumer.op]]
        if parameter.ref not in op.operands:
            return "only layers that hold their weight themselves are refitted"
        inputs = graph.types[consumer.input].axes[consumer.input_dim]
        if inputs != coupling.axes(parameter.name)[consumer.weight.dim]:
            return "grouped convolutions are not refitted"
        names = {a.name for a in atoms(inputs)}
        if any(g.normed for g in coupling.groups if g.name in names):
            return "a statistic is taken over its inputs, which changes when they are pruned"
    return ""


def _refitted(
    coupling: Coupling,
    consumer: Consumer,
    weights: Weights,
    seen: Seen,
    kept: Indices,
    restorer: Restorer,
) -> dict[str, Array]:
    """A convolution has one row for each output and tap: all taps read the same channels."""
    name, dim = consumer.weight.parameter, consumer.weight.dim
    weight = weights[name]
    moved = np.moveaxis(weight, dim, -1)
    matrix = moved.reshape(-1, weight.shape[dim])
    bias_name = bias_of(coupling, consumer)
    bias = None if bias_name is None else weights[bias_name].astype(np.float64)
    restored = restorer.restore(matrix, bias, seen, kept)
    result = np.moveaxis(restored.weight.reshape(moved.shape), -1, dim)
    changed = {name: np.ascontiguousarray(result)}
    if bias_name is not None and restored.bias is not None:
        changed[bias_name] = restored.bias.astype(weights[bias_name].dtype)
    return changed
