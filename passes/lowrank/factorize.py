"""Rewrite layers of a program into two: x W' becomes (x A') B' with W = B A.

The new axis between the two is an atom of its own; once the program is coupled again it is a group,
whose indices are sliced as any other's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from prunec.ir.graph import Arg, Graph, Op, Parameter, Ref, TensorType
from prunec.passes.coupling import Coupling
from prunec.passes.sparse import Layer, Layers, layers

__all__ = ["Factored", "factorable", "factorize", "names_of"]

LINEAR = "aten.linear.default"
CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
TURNED = {"aten.addmm.default": 2, "aten.mm.default": 1}
"""Products with a weight [in, out], and where it stands; what they become has [out, in]."""
GROUPS = 6
"""Where a convolution's number of groups stands among its arguments."""


@dataclass(frozen=True)
class Factored:
    """A program with some layers in two; `weights` names the two parameters for each that went."""

    graph: Graph
    weights: Mapping[str, tuple[str, str]]


def names_of(weight: str) -> tuple[str, str]:
    """What the parameters of the two layers are called."""
    module, _, last = weight.rpartition(".")
    stem = f"{module}." if module else ""
    return f"{stem}first.{last}", f"{stem}second.{last}"


def factorable(coupling: Coupling, outer: frozenset[str]) -> Layers:
    """The linear layers and 1x1 convolutions within blocks, and why other matrices are left."""
    found = layers(coupling, outer)
    reasons = {y.weight: _obstacle(coupling.graph, y) for y in found.found}
    return Layers(
        tuple(y for y in found.found if not reasons[y.weight]),
        {**found.left, **{name: why for name, why in reasons.items() if why}},
    )


def _obstacle(graph: Graph, layer: Layer) -> str:
    """Why a layer cannot become two, or nothing."""
    parameter = graph.parameters[layer.weight]
    if parameter.aliases:
        return "it is tied to another weight"
    ops = [graph.ops[i] for i in graph.uses[parameter.ref]]
    other = next((op for op in ops if not _is_layer(op, parameter)), None)
    if other is None:
        return ""
    if other.name in CONVOLUTIONS:
        return "a convolution of more than one tap or group"
    return f"{other.name} is neither a linear layer nor a convolution"


def _is_layer(op: Op, parameter: Parameter) -> bool:
    if _weight(op) != parameter.name:
        return False
    if op.name in TURNED:
        return all(value == 1 for _, value in op.kwargs)  # alpha and beta of addmm
    if op.name == LINEAR:
        return True
    if op.name not in CONVOLUTIONS or any(n != 1 for n in parameter.type.shape[2:]):
        return False
    groups = op.args[GROUPS] if len(op.args) > GROUPS else op.kwarg("groups", 1)
    return groups == 1


def factorize(graph: Graph, ranks: Mapping[str, int]) -> Factored:
    """Write each weight in `ranks`, which `factorable` found, as two of that rank."""
    turned = {_weight(op) for op in graph.ops if op.name in TURNED}
    parameters: dict[str, Parameter] = {}
    for name, parameter in graph.parameters.items():
        made = _split(parameter, ranks[name], name in turned) if name in ranks else (parameter,)
        parameters |= {p.name: p for p in made}
    ops: list[Op] = []
    for op in graph.ops:
        weight = _weight(op)
        ops += _pair(op, weight, ranks[weight]) if weight in ranks else (op,)
    made_graph = replace(graph, parameters=parameters, ops=tuple(ops))
    return Factored(made_graph, {name: names_of(name) for name in ranks})


def _weight(op: Op) -> str:
    """The parameter that stands where a layer has its weight, or nothing."""
    at = TURNED.get(op.name, 1)
    found = op.args[at] if len(op.args) > at else None
    return found.name[1:] if isinstance(found, Ref) and found.name.startswith("@") else ""


def _split(parameter: Parameter, rank: int, turned: bool) -> tuple[Parameter, Parameter]:
    outputs, inputs, *taps = parameter.type.shape
    if turned:
        outputs, inputs = inputs, outputs
    first, second = names_of(parameter.name)
    shapes = {first: (rank, inputs, *taps), second: (outputs, rank, *taps)}
    one, other = (
        Parameter(name, TensorType(parameter.type.dtype, shape)) for name, shape in shapes.items()
    )
    return one, other


def _pair(op: Op, weight: str, rank: int) -> tuple[Op, Op]:
    """The layer without its bias, and one that adds it; a stride is taken by the first."""
    first, second = (f"@{name}" for name in names_of(weight))
    between = f"{op.result}_rank"
    at = 1 if op.name in CONVOLUTIONS else len(op.types[0].shape) - 1
    shape = tuple(rank if d == at else n for d, n in enumerate(op.types[0].shape))
    if op.name in TURNED:
        bias, data = op.args[0] if op.name == "aten.addmm.default" else None, op.args[-2]
        op = replace(op, name=LINEAR, args=(data, None, bias), kwargs=())
    bias = op.args[2] if len(op.args) > 2 else op.kwarg("bias")
    given: tuple[Arg, ...] = (op.args[0], Ref(first), None, *op.args[3:])
    own = tuple((name, value) for name, value in op.kwargs if name != "bias")
    inner = replace(
        op, args=given, kwargs=own, results=(between,),
        types=(TensorType(op.types[0].dtype, shape),),
    )  # fmt: skip
    outer = replace(op, args=(Ref(between), Ref(second), bias), kwargs=())
    return inner, outer
