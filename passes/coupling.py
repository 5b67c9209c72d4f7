"""What coupling found: groups, pins, and how literals and statistics follow from the axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from prunec.ir.axes import Axis
from prunec.ir.graph import Graph

__all__ = ["Consumer", "Coupling", "Group", "Pinned", "Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """A dimension of a parameter."""

    parameter: str
    dim: int

    def __str__(self) -> str:
        return f"{self.parameter}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class Consumer:
    """A linear or convolution layer that sums over the group's axis.

    `op` is the name of its result, `weight` the dimension of its weight, `input` the value whose
    dimension `input_dim` carries the axis.
    """

    op: str
    weight: Place
    input: str
    input_dim: int


@dataclass(frozen=True, slots=True)
class Group:
    """Indices that leave together: index i of every place belongs to the same unit.

    `role` is what the axis is to the model (`neuron`, `query_head`, ...). `parent` names the group
    under each index of which another selection may be made, where only the counts must agree.
    `normed` says that a statistic is taken over the axis, `least` how many indices must stay:
    more than one where the program chooses so many of them.
    """

    name: str
    role: str
    size: int
    places: tuple[Place, ...]
    producers: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    parent: str | None = None
    normed: bool = False
    least: int = 1


@dataclass(frozen=True, slots=True)
class Pinned:
    """An axis of a parameter that cannot be pruned, and why."""

    axis: str
    role: str
    size: int
    places: tuple[Place, ...]
    reason: str
    where: str = ""


@dataclass(frozen=True)
class Coupling:
    """The typed graph with its groups.

    `literals[op result][path]` gives the axes whose sizes add up to that literal.
    `normed` lists the operations that take a statistic over an axis that a group carries.
    `reads` are all places where a layer sums over a dimension of its weight, in the order of the
    program, whether the axis is pinned or not; `weight.dim` counts the dimensions as the layer
    sees them. `positions` names values whose entries are positions in an axis, and that axis.
    `caches` are inputs that hold what came before, each with an output that it grows to, where
    these may change.
    """

    graph: Graph
    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    literals: Mapping[str, Mapping[tuple[int | str, ...], tuple[Axis, ...]]]
    contractions: tuple[Contracted, ...]
    normed: Mapping[str, tuple[Axis, ...]]
    without_rule: Mapping[str, int]
    reads: tuple[Consumer, ...] = ()
    positions: Mapping[str, Axis] = field(default_factory=dict)
    caches: tuple[tuple[str, str], ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of groups and of pinned axes, which may be the parents of groups."""
        return {pin.axis: pin.size for pin in self.pinned} | {g.name: g.size for g in self.groups}

    def axes(self, parameter: str) -> tuple[Axis, ...]:
        """The axes of a parameter's dimensions."""
        return self.graph.parameters[parameter].type.axes


@dataclass(frozen=True, slots=True)
class Contracted:
    """A contraction with its axes resolved: `result` counts the outputs, `steps` the axes that
    are summed over for each of them, one tuple a multiplication (attention has two)."""

    op: str
    steps: tuple[tuple[Axis, ...], ...]
    attention: bool = False
    cached: tuple[tuple[Axis, ...], ...] = ()
