"""Give each operation a computation of its own for the sizes that it is told.

torch.export computes `batch * 6` once for all layers that ask for it. The 6 may be the heads of one
layer here and of another there, which have nothing to do with one another: each gets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from prunec.ir.graph import Op, renamed

__all__ = ["own_sizes"]


def own_sizes(ops: Sequence[Op]) -> list[Op]:
    """The operations with a copy of every shared size in which a number stands, for each user.

    What nobody uses any more is left in place.
    """
    made = {op.result: op for op in ops if _computes_size(op)}
    users: dict[str, int] = {}
    for op in ops:
        if op.result not in made:
            for name in _chain(op, made):
                users[name] = users.get(name, 0) + 1
    shared = {name for name, count in users.items() if count > 1}
    found: list[Op] = []
    for i, op in enumerate(ops):
        own = [name for name in _chain(op, made) if name in shared] if op.result not in made else []
        if own:
            naming = _named(own, f"_o{i}")
            copies = (replace(renamed(made[name], naming), loc=op.loc) for name in own)
            found += copies
            op = replace(renamed(op, naming), results=op.results)
        found.append(op)
    return found


def _computes_size(op: Op) -> bool:
    return op.name.startswith("py.") and len(op.results) == 1


def _chain(op: Op, made: dict[str, Op]) -> list[str]:
    """The sizes behind an operation in which a number stands, first computed first."""
    return list(dict.fromkeys(_numbers(op, made)))


def _numbers(op: Op, made: dict[str, Op]) -> Iterator[str]:
    for name in op.operands:
        source = made.get(name)
        if source is None:
            continue
        before = list(_numbers(source, made))
        yield from before
        if before or any(type(arg) is int for arg in source.args):
            yield name


def _named(names: Sequence[str], mark: str) -> Callable[[str], str]:
    return lambda name: name + mark if name in names else name
