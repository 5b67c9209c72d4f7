"""Criteria that look at how the loss changes: Taylor expansions in weights or in masks.

They score from slopes measured once on the dense model (`prunec.passes.profile.Gradients`); give
them with `with_slopes` first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from prunec.passes.coupling import Coupling, Group, Place
from prunec.passes.profile import Slopes, Weights
from prunec.passes.score import Observed, Scores, fold, group_shape

__all__ = ["HeadImportance", "Taylor", "gradient_places"]

Form = Literal["unit", "vector", "element", "second", "mixed"]
Reduction = Literal["sum", "prod", "max", "last"]


def gradient_places(coupling: Coupling, group: Group) -> tuple[Place, ...]:
    """The places of a group whose slopes are looked at: those of trained parameters."""
    kinds = coupling.graph.parameters
    return tuple(p for p in group.places if kinds[p.parameter].kind == "parameter")


@dataclass(frozen=True)
class Taylor:
    """What the loss would change by, to first or second order, if the weights of an index went
    to zero. With g_s the gradient of sequence s, g their mean, F the mean of g_s^2:

    - `unit`: mean over s of (sum of g_s w over all weights that leave together)^2 (Molchanov et
      al., CVPR 2019, section 3.1, the group contribution; averaged over batches as there). No
      `reduction`.
    - `vector`: |sum of g w| of each place (LLM-Pruner, NeurIPS 2023, section 3.2, eq. 3 to first
      order).
    - `element`: sum of |g w| of each place (its eq. 5 to first order; its published default).
    - `second`: sum of w^2 F / 2, the second order term alone.
    - `mixed`: sum of |g w - w^2 F / 2| (its eq. 5 whole).

    The last four are combined over the places of the group by `reduction`, as in its section 3.2
    (`last`: the place whose layer runs last, which is where the group is consumed). Departures: F
    is a mean over sequences, as in its code, where eq. 5 writes a sum; a place holds a weight's
    slice along the group's axis, biases included.
    """

    form: Form = "unit"
    reduction: Reduction = "sum"
    given: Mapping[Place, Slopes] = field(default_factory=dict, repr=False, compare=False)
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def with_slopes(self, slopes: Mapping[Place, Slopes]) -> Taylor:
        return replace(self, given=slopes)

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        places = gradient_places(coupling, group)
        if self.form == "unit":
            found: Scores = np.square(_per_sequence(self.given, coupling, group, places)).mean(0)
            return found
        measure = FORMS[self.form]
        parts = [
            measure(_slopes(self.given, place), coupling, group, place)
            for place in _in_order(coupling, places)
        ]
        return REDUCTIONS[self.reduction](np.stack(parts))


@dataclass(frozen=True)
class HeadImportance:
    """Expected sensitivity of the loss to a mask on each unit, E_x |dL/dxi| (Michel et al.,
    NeurIPS 2019, section 4.1, eq. 2), which the paper defines for heads.

    The mask xi scales what the consumers read, so dL/dxi is the sum of g w over the columns of
    the consumers. As in the paper scores are divided by their L2 norm within a layer. A group
    without consumers is masked where it is produced: all its places count.
    """

    given: Mapping[Place, Slopes] = field(default_factory=dict, repr=False, compare=False)
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})

    def with_slopes(self, slopes: Mapping[Place, Slopes]) -> HeadImportance:
        return replace(self, given=slopes)

    def score(
        self, coupling: Coupling, group: Group, weights: Weights, observed: Observed
    ) -> Scores:
        read = {consumer.weight for consumer in group.consumers}
        places = gradient_places(coupling, group)
        places = tuple(p for p in places if p in read) or places
        scores: Scores = np.abs(_per_sequence(self.given, coupling, group, places)).mean(0)
        norm = float(np.linalg.norm(scores))
        return scores / norm if norm > 0 else scores


def _slopes(given: Mapping[Place, Slopes], place: Place) -> Slopes:
    assert place in given, f"no slopes were measured at {place}"
    return given[place]


def _per_sequence(
    given: Mapping[Place, Slopes], coupling: Coupling, group: Group, places: tuple[Place, ...]
) -> Scores:
    """Sum of g_s w over all places, (sequences, *shape of the group's scores)."""
    sums = [(_slopes(given, place).sums, coupling.axes(place.parameter)) for place in places]
    return np.stack(
        [
            sum(
                (
                    fold(of[s], axes[place.dim], group, coupling)
                    for (of, axes), place in zip(sums, places, strict=True)
                ),
                start=np.zeros(group_shape(coupling, group)),
            )
            for s in range(len(sums[0][0]))
        ]
    )


def _in_order(coupling: Coupling, places: tuple[Place, ...]) -> list[Place]:
    """Places by the operation that uses their parameter last."""
    uses, parameters = coupling.graph.uses, coupling.graph.parameters
    return sorted(places, key=lambda p: max(uses.get(parameters[p.parameter].ref, (-1,))))


def _folded(values: Scores, coupling: Coupling, group: Group, place: Place) -> Scores:
    return fold(values, coupling.axes(place.parameter)[place.dim], group, coupling)


Measure = Callable[[Slopes, Coupling, Group, Place], Scores]

FORMS: Mapping[str, Measure] = {
    "vector": lambda s, c, g, p: np.abs(_folded(s.sums.mean(0), c, g, p)),
    "element": lambda s, c, g, p: _folded(s.first, c, g, p),
    "second": lambda s, c, g, p: _folded(s.second, c, g, p),
    "mixed": lambda s, c, g, p: _folded(s.mixed, c, g, p),
}
"""Importance of what each index takes from one place."""

REDUCTIONS: Mapping[str, Callable[[Scores], Scores]] = {
    "sum": lambda parts: parts.sum(0),
    "prod": lambda parts: parts.prod(0),
    "max": lambda parts: parts.max(0),
    "last": lambda parts: parts[-1],
}
"""From the places (first dimension), in the order of the program, to the group."""
