"""Decide which groups are pruned and how many indices of each stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prunec.ir.axes import Axis, new_size
from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError, fail
from prunec.options.prune import PruneOptions
from prunec.options.target import Target
from prunec.passes.allocators import Budget, Uniform, least_counts
from prunec.passes.coupling import Group
from prunec.planning.metering import Meter
from prunec.runs.loading import Loaded

__all__ = ["Choice", "choose_groups", "limits", "make_budget", "parameter_axes", "takes_part"]

ALIGNED = 8
"""16 bytes of numbers in half precision."""

DEFAULT_ROLES = ("neuron", "channel", "query_head", "kv_head", "expert")
"""What is pruned when `--groups` does not say: what lies within blocks. `hidden` and `head_dim`
touch every layer at once, and are pruned on request."""


@dataclass(frozen=True)
class Choice:
    """The groups that take part, and for some the only counts that the layout can hold."""

    groups: tuple[Group, ...]
    allowed: Mapping[str, Sequence[int]]
    warnings: tuple[Diagnostic, ...] = ()


def parameter_axes(loaded: Loaded) -> dict[str, tuple[Axis, ...]]:
    """The axes of all parameters, by their names in a checkpoint."""
    parameters = loaded.graph.parameters
    return {loaded.checkpoint_name(name): p.type.axes for name, p in parameters.items()}


def choose_groups(loaded: Loaded, options: PruneOptions) -> Choice:
    """The groups to prune: those asked for, or all that the layout and formats can hold.

    Raises PrunecError (exit 2) when a role that was asked for does not exist or cannot be held.
    """
    wanted = options.groups or DEFAULT_ROLES
    groups = takes_part(loaded, options)
    if options.groups:
        _check_asked(loaded, options.groups, groups)
    if not groups:
        raise _nothing(loaded, wanted)
    if loaded.family is None or "hf" not in options.formats:
        return Choice(tuple(groups), {})
    held = options.layout == "uniform"
    choice = _held(loaded, options, groups) if held else Choice(tuple(groups), {})
    return replace(choice, allowed={**choice.allowed, **_aligned(loaded, choice)})


def takes_part(loaded: Loaded, options: PruneOptions) -> list[Group]:
    """The groups of the roles asked for, or of those that are pruned when none are."""
    wanted = options.groups or DEFAULT_ROLES
    return [g for g in loaded.coupling.groups if g.size > 1 and _plays(g, wanted)]


def _aligned(loaded: Loaded, choice: Choice) -> dict[str, Sequence[int]]:
    """Counts of what lies inside of experts: the kernels that stock classes run them with want
    rows of `ALIGNED` numbers."""
    stacks = {
        place.parameter
        for group in loaded.coupling.groups
        if group.role == "expert"
        for place in group.places
        if len(loaded.graph.parameters[place.parameter].type.shape) > 2
    }
    return {
        group.name: [
            count
            for count in choice.allowed.get(group.name, range(1, group.size))
            if count % ALIGNED == 0
        ]
        for group in choice.groups
        if group.role != "expert" and any(place.parameter in stacks for place in group.places)
    }


def _plays(group: Group, roles: Sequence[str]) -> bool:
    """Whether a group has one of the roles. In multi-head attention each query head has a KV
    head of its own, so both names mean it."""
    if group.role == "query_head" and group.parent is None and "kv_head" in roles:
        return True
    return group.role in roles


def _check_asked(loaded: Loaded, roles: Sequence[str], groups: Sequence[Group]) -> None:
    missing = [role for role in roles if not any(_plays(g, (role,)) for g in groups)]
    if not missing:
        return
    problems = []
    for role in missing:
        pin = next((p for p in loaded.coupling.pinned if p.role == role), None)
        reason = f": {pin.reason} ({pin.where or pin.places[0]})" if pin else ""
        problems.append(
            Diagnostic(
                "P401",
                f"the model has no {role} that can be pruned{reason}",
                "--groups",
                help=f"`prunec inspect {loaded.source.name}` lists what can be",
            )
        )
    raise PrunecError(problems, Exit.USAGE)


def _nothing(loaded: Loaded, roles: Sequence[str]) -> PrunecError:
    others = sorted({g.role for g in loaded.coupling.groups} - set(roles))
    remedy = (
        f"it has {', '.join(others)}: name them with --groups"
        if others
        else (f"`prunec inspect {loaded.source.name}` says why every dimension is pinned")
    )
    return fail(
        "P402", f"nothing to prune: no group is a {' or '.join(roles)}", where=loaded.source.name,
        help=remedy, exit_code=Exit.USAGE,
    )  # fmt: skip


def _held(loaded: Loaded, options: PruneOptions, groups: Sequence[Group]) -> Choice:
    """Leave out what the stock class cannot hold; refuse it when it was asked for by name."""
    from prunec.backends.hf_families import families
    from prunec.backends.hf_fit import allowed_counts, holdable

    axes, family = parameter_axes(loaded), loaded.family
    assert family is not None, "only models with a configuration are held"
    reasons = holdable(family, axes, [g.name for g in groups])
    refused = [g for g in groups if reasons[g.name] is not None]
    told: dict[str, Diagnostic] = {}
    for group in refused:
        reason = reasons[group.name]
        assert reason is not None
        told.setdefault(group.role, reason)
    kept = tuple(g for g in groups if reasons[g.name] is None)
    if refused and (options.groups or not kept):
        raise PrunecError(told.values(), Exit.USAGE)
    allowed: dict[str, Sequence[int]] = {}
    for names in families(family, axes, [g.name for g in kept]):
        counts = allowed_counts(family, axes, names)
        if len(counts) < loaded.coupling.by_name[names[0]].size - 1:
            allowed |= dict.fromkeys(names, counts)
    return Choice(kept, allowed, tuple(told.values()))


def limits(meter: Meter, targets: Sequence[Target]) -> list[tuple[Target, float]]:
    """The most that each target lets remain; refuses targets that leave nothing to do."""
    dense = [meter.measure(t, {}) for t in targets]
    found = [(t, t.limit(n)) for t, n in zip(targets, dense, strict=True)]
    if all(n <= limit for n, (_, limit) in zip(dense, found, strict=True)):
        raise PrunecError([t.needless(n) for t, n in zip(targets, dense, strict=True)], Exit.USAGE)
    return found


def make_budget(loaded: Loaded, options: PruneOptions, choice: Choice) -> Budget:
    """All targets as one: the largest share of its limit that any cost takes."""
    meter = Meter(loaded, options.workload)
    bounds = limits(Meter(loaded.whole, options.workload), options.targets)

    def cost(counts: Mapping[str, int]) -> float:
        return max(meter.measure(t, counts) / limit for t, limit in bounds)

    budget = Budget(cost, 1.0, _multiple(loaded, options, choice), choice.allowed)
    if not budget.met(least_counts(choice.groups, budget)):
        raise _unreachable(meter, options, choice, budget)
    return budget


def _multiple(loaded: Loaded, options: PruneOptions, choice: Choice) -> int:
    """What widths are rounded to: as asked, or as the runtime likes it where time matters."""
    if options.round_to is not None or loaded.clock is None:
        return options.round_to or 1
    from prunec.timing.rounding import liked_multiple

    return liked_multiple(loaded.clock, [group.name for group in choice.groups])


def _unreachable(
    meter: Meter, options: PruneOptions, choice: Choice, budget: Budget
) -> PrunecError:
    """Say how far pruning can go and what holds the rest."""
    loaded = meter.loaded
    least = least_counts(choice.groups, budget)
    problems = []
    for target in options.targets:
        dense = Meter(loaded.whole, options.workload).measure(target, {})
        left = meter.measure(target, least)
        if left <= target.limit(dense):
            continue
        roles = ", ".join(dict.fromkeys(g.role for g in choice.groups))
        problems.append(
            Diagnostic(
                "P403",
                f"target {target.text} cannot be met: at the least width of each {roles},"
                f" {target.show(left)} of {target.show(dense)} {target.measure} remain"
                f" ({left / dense:.1%}); {_holder(loaded, target, least)}",
                "--target",
                help=f"ask for {_reachable(target, left / dense)}"
                + (", or let --groups include hidden" if _more(loaded, choice, "hidden") else ""),
            )
        )
    return PrunecError(problems, Exit.NOT_MET)


def _more(loaded: Loaded, choice: Choice, role: str) -> bool:
    """Whether the model has groups of a role that takes no part."""
    return any(g.role == role and g not in choice.groups for g in loaded.coupling.groups)


def _reachable(target: Target, share: float) -> str:
    """A target that a share of the dense model meets."""
    if target.unit == "factor":
        most = int(100 / share - 2) / 100
        return f"at most {target.metric}={most:.2f}x" if most > 1 else "other groups or formats"
    return f"at least {target.metric}={int(share * 100) + 2}%"


def _holder(loaded: Loaded, target: Target, counts: Mapping[str, int]) -> str:
    """The largest parameter that stays, of those that the target counts."""
    if target.timed:
        return "what no group touches takes its time as before"
    left_out = loaded.cost.outer if target.metric == "blocks" else frozenset()
    sizes = {
        name: math.prod(new_size(axis, counts) for axis in p.type.axes)
        for name, p in loaded.graph.parameters.items()
        if p.kind == "parameter" and name not in left_out
    }
    name = max(sizes, key=lambda n: sizes[n])
    axes = " and ".join(
        a.name.rsplit("/", 1)[-1] for a in loaded.coupling.axes(name) if hasattr(a, "name")
    )
    return f"{name} alone holds {sizes[name]:,} (its axes: {axes})"


def settle_uniform(
    loaded: Loaded, choice: Choice, budget: Budget, check: bool
) -> tuple[dict[str, int], tuple[Diagnostic, ...]]:
    """Uniform counts that the stock class holds all together; groups whose counts do not go
    with the others stay whole, heads shared by the most going first."""
    groups = list(choice.groups)
    warnings: list[Diagnostic] = []
    while True:
        counts = Uniform().allocate(groups, budget)
        full = {g.name: g.size for g in choice.groups} | counts
        found = _misfit(loaded, full) if loaded.family is not None and check else None
        if found is None:
            return full, tuple(warnings)
        warnings += found[:1]
        moved = [g for g in groups if counts[g.name] < g.size]
        role = max({g.role for g in moved}, key=_fragility, default="")
        groups = [g for g in groups if g.role != role]
        if not groups or not budget.met(least_counts(groups, budget)):
            raise PrunecError(found, Exit.NOT_MET)


def _misfit(loaded: Loaded, counts: Mapping[str, int]) -> list[Diagnostic] | None:
    """Why the stock class cannot hold these counts; None when it can."""
    from prunec.backends.hf_fit import fit

    assert loaded.family is not None, "only models with a configuration are held"
    found = fit(loaded.family, parameter_axes(loaded), _changed(loaded, counts))
    return found if isinstance(found, list) else None


def _fragility(role: str) -> int:
    order = ("neuron", "channel", "expert", "query_head", "kv_head", "head_dim", "hidden")
    return order.index(role) if role in order else len(order)


def _changed(loaded: Loaded, counts: Mapping[str, int]) -> dict[str, int]:
    sizes = {g.name: g.size for g in loaded.coupling.groups}
    return {name: k for name, k in counts.items() if k < sizes[name]}
