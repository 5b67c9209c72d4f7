"""The last operations of a program, as far as they work position by position."""

from __future__ import annotations

from prunec.ir.graph import Graph, Op, Ref

__all__ = ["by_position", "is_product", "value_of"]

LINEAR = "aten.linear.default"


def by_position(graph: Graph) -> tuple[Op, ...]:
    """The last operations, as far as they work position by position on one value of three
    dimensions (batch, position, feature); none when the program has several outputs."""
    if len(graph.outputs) != 1:
        return ()
    found: list[Op] = []
    uses = graph.uses
    for op in reversed(graph.ops):
        wanted = value_of(found[-1]) if found else graph.outputs[0][1]
        once = not uses.get(wanted) if not found else len(uses[wanted]) == 1
        if op.result != wanted or not once or not _by_position(op, graph):
            break
        found.append(op)
    return tuple(reversed(found))


def _by_position(op: Op, graph: Graph) -> bool:
    """Whether each position of the result depends on the same position of one value alone."""
    values = [name for name in op.operands if not name.startswith("@")]
    if len(values) != 1 or len(op.results) != 1:
        return False
    shapes = [graph.types[name].shape for name in (values[0], op.result)]
    if any(len(shape) != 3 for shape in shapes) or not isinstance(shapes[1][-1], int):
        return False
    if op.name == LINEAR:
        return isinstance(op.args[0], Ref) and op.args[0].name == values[0]
    weights = [graph.types[name].shape for name in op.operands if name.startswith("@")]
    return op.pointwise and all(len(shape) <= 1 for shape in weights)


def is_product(op: Op) -> bool:
    """Whether a value meets a stored weight, and a stored bias or none."""
    return op.name == LINEAR and all(name.startswith("@") for name in list(op.operands)[1:])


def value_of(op: Op) -> str:
    """The operand that is no parameter."""
    return next(name for name in op.operands if not name.startswith("@"))
