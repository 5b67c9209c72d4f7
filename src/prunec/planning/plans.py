"""Between selections and plan files: what stays, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.ir.axes import Axis, Indices, Selection, positions
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.passes.coupling import Coupling, Group, Place
from prunec.passes.regions import Region
from prunec.passes.rewrite import kept_indices

if TYPE_CHECKING:
    from prunec.runs.loading import Loaded
    from prunec.verbs.pipeline import Pruned

__all__ = ["plan_document", "regions_of", "selections_of"]


def plan_document(pruned: Pruned) -> dict[str, Any]:
    """The content of `plan.json`: regions that went, kept indices by parameter and dimension,
    groups and pins."""
    coupling, kept = pruned.loaded.coupling, pruned.rewritten.kept
    parameters = coupling.graph.parameters
    selections = pruned.compressed.selections
    return {
        "removed": [region.name for region in pruned.loaded.removed],
        "parameters": {
            name: {str(dim): indices.tolist() for dim, indices in dims.items()}
            for name, dims in kept.items()
        },
        "shapes": {name: list(parameters[name].type.shape) for name in kept},
        "groups": [
            {
                "name": group.name,
                "role": group.role,
                "size": group.size,
                "kept": selections[group.name].count if group.name in selections else group.size,
                "parent": group.parent,
                "where": [str(place) for place in group.places],
            }
            for group in coupling.groups
        ],
        "pinned": [
            {
                "axis": pin.axis,
                "where": [str(place) for place in pin.places],
                "reason": pin.reason,
                "source": pin.where,
            }
            for pin in coupling.pinned
        ],
    }


def regions_of(loaded: Loaded, plan: Mapping[str, Any], path: Path) -> list[Region]:
    """The regions that a plan removes; raises PrunecError (exit 2) for one that is not there."""
    names = plan.get("removed", [])
    unknown = [name for name in names if name not in loaded.regions]
    if not unknown:
        return [loaded.regions[name] for name in names]
    raise fail(
        "P836",
        f"the plan removes {unknown[0]}, and the model has no region of that name, with one"
        " entry and one exit of the same type",
        where=str(path),
        help=f"`prunec inspect {loaded.source.name}` lists what can go as a whole",
        exit_code=Exit.USAGE,
    )


def selections_of(coupling: Coupling, plan: Mapping[str, Any], path: Path) -> dict[str, Selection]:
    """What stays of each group, read back from the kept indices of its parameters.

    Raises PrunecError (exit 2) when the plan removes an index of one parameter and keeps what is
    coupled to it elsewhere, or removes what is pinned.
    """
    kept = {
        (name, int(dim)): np.asarray(indices, dtype=np.int64)
        for name, dims in plan["parameters"].items()
        for dim, indices in dims.items()
    }
    found = {}
    for group in coupling.groups:
        place = next((p for p in group.places if (p.parameter, p.dim) in kept), None)
        if place is None:
            continue
        axis = coupling.axes(place.parameter)[place.dim]
        selection = _selection(axis, group, kept[place.parameter, place.dim], coupling)
        if selection is None or selection.count < group.least:
            raise _uneven(group, place, path)
        if selection.count < group.size:
            found[group.name] = selection
    _check(coupling, found, kept, path)
    return found


def _selection(axis: Axis, group: Group, kept: Indices, coupling: Coupling) -> Selection | None:
    """The indices of a group that survive somewhere in a dimension; by parent when ragged. None
    when not as many survive under every index of the parent."""
    where = positions(axis, group.name)[0][kept]
    whole = np.unique(where[where >= 0])
    if group.parent is None:
        return Selection(whole)
    outer = positions(axis, group.parent)[0][kept]
    rows = [
        np.unique(where[(outer == p) & (where >= 0)]) for p in range(coupling.sizes[group.parent])
    ]
    present = [row for row in rows if len(row)]
    if len({len(row) for row in present}) != 1:
        return None
    if all(np.array_equal(row, present[0]) for row in present):
        return Selection(present[0])
    # a parent that is gone has no row of its own; any of the right length will do
    return Selection(np.stack([row if len(row) else present[0] for row in rows]), group.parent)


def _uneven(group: Group, place: Place, path: Path) -> PrunecError:
    under = f" under each index of {group.parent}" if group.parent else ""
    return fail(
        "P835",
        f"the plan does not keep one {group.role} or more{', equally many' if under else ''}"
        f"{under}: {place}",
        where=str(path),
        help=f"keep between {group.least} and {group.size} of {group.name}{under}",
        exit_code=Exit.USAGE,
    )


def _check(
    coupling: Coupling,
    found: Mapping[str, Selection],
    kept: Mapping[tuple[str, int], Indices],
    path: Path,
) -> None:
    ours = {
        (name, dim): indices
        for name, dims in kept_indices(coupling, found).items()
        for dim, indices in dims.items()
    }
    for place in dict.fromkeys([*kept, *ours]):
        if place in ours and place in kept and np.array_equal(ours[place], kept[place]):
            continue
        name, dim = place
        if place in kept and len(kept[place]) == coupling.graph.parameters[name].type.shape[dim]:
            continue
        raise fail(
            "P835",
            f"the plan keeps other indices of {name}, dimension {dim}, than what is coupled to it",
            where=str(path),
            help="keep the same units in every parameter of a group; `prunec inspect` lists them",
            exit_code=Exit.USAGE,
        )
