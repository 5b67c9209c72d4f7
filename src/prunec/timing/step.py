"""One decoding step as a program of its own: the next token of each sequence, against a cache.

It is traced anew, from the same module, and reads and gives the cache. Its parameters have the
same names, so that its groups and regions do too, and what is planned for the model as it reads
whole sequences can be carried out on the step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.passes.cost import Cost
from prunec.passes.couple import couple
from prunec.passes.dce import dce
from prunec.passes.overlaid import Overlaid
from prunec.passes.rewrite import rewrite
from prunec.planning.widths import takes_part
from prunec.progress import Progress
from prunec.runs.loading import Loaded, ProgramWeights, SlicedWeights

if TYPE_CHECKING:
    from prunec.options.prune import PruneOptions
    from prunec.runs.run import Outcome
    from prunec.timing.clock import Clock

__all__ = ["decoding_step", "smaller_step", "stepping"]


def decoding_step(loaded: Loaded, options: PruneOptions, progress: Progress) -> Loaded:
    """The step of a whole model, with as many tokens in its cache as `options` say.

    Raises PrunecError when the model keeps no cache, or when the step cannot lose what the model
    can.
    """
    step = loaded.step or stepping(loaded, options.length, progress)
    _same_groups(loaded, step, options)
    _same_regions(loaded, step, options)
    return step


def stepping(loaded: Loaded, length: int, progress: Progress) -> Loaded:
    """The step of a model, in which nothing is looked for yet."""
    from prunec.frontends.torch_step import grown, trace_step
    from prunec.ir.dialects.aten import ATEN

    with progress.step("Tracing a decoding step"):
        traced = trace_step(loaded.model, length)
        coupling = couple(traced.graph, ATEN, caches=grown(traced.graph))
    weights = ProgramWeights(traced.graph, Overlaid(loaded.weights, traced.constants), {})
    for warning in traced.warnings:
        progress.warn(warning)
    return replace(loaded, coupling=coupling, cost=Cost(coupling), weights=weights, clock=None)


def smaller_step(clock: Clock, pruned: Outcome) -> Loaded | None:
    """The step of what is left of a model, where its clock times one."""
    loaded = pruned.loaded
    timed = clock.timed(loaded)
    if timed is loaded:
        return None
    from prunec.frontends.torch_step import grown
    from prunec.ir.dialects.aten import ATEN

    left = {n: s for n, s in pruned.selections.items() if n in timed.coupling.by_name}
    smaller = rewrite(timed.coupling, left)
    graph = dce(smaller.graph)
    coupling = couple(graph, ATEN, caches=grown(graph))
    weights = SlicedWeights(Overlaid(timed.weights, pruned.replaced), smaller.kept)
    return replace(
        timed, coupling=coupling, cost=Cost(coupling), weights=weights, removed=(), before=None
    )


def _same_groups(loaded: Loaded, step: Loaded, options: PruneOptions) -> None:
    """What the model can lose the step can lose too."""
    for group in takes_part(loaded, options):
        twin = step.coupling.by_name.get(group.name)
        if twin is None or set(twin.places) != set(group.places):
            pin = next((p for p in step.coupling.pinned if set(p.places) & set(group.places)), None)
            reason = f": {pin.reason} ({pin.where})" if pin else ""
            raise _unlike(f"{group.name} cannot be pruned there{reason}")


def _same_regions(loaded: Loaded, step: Loaded, options: PruneOptions) -> None:
    for region in loaded.regions.values():
        if any(map(region.is_a, options.depth_roles)) and region.name not in step.regions:
            raise _unlike(f"{region.name} is no region of it")


def _unlike(reason: str) -> PrunecError:
    return fail(
        "P869",
        f"a decoding step cannot be planned for: {reason}",
        where="--groups",
        help="choose other --groups, or use --phase prefill",
        exit_code=Exit.USAGE,
    )
