"""Give in-place operations of an exported graph their functional form, where that is a renaming.

`x.add_(y)` is `x + y` for all later uses of `x` as long as nothing else that is used later shares
the memory of `x`. Everything else is left to torch, which traces the program anew for it.
"""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["mutates", "rename_in_place"]

# In-place in name only: their operand is a constant that nothing else sees.
_HARMLESS = ("aten.detach_.default", "aten.lift_fresh.default")
# They write at indices, whose dtype is not that of the result.
_AT_PLACES = ("scatter", "index_")


def mutates(node: fx.Node) -> bool:
    """Whether the node writes to one of its operands."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or str(target) in _HARMLESS:
        return False
    return bool(target._schema.is_mutable)


def rename_in_place(graph: fx.Graph) -> bool:
    """Rename what can be renamed, changing `graph`; tells whether nothing in-place is left."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    sharing = _sharing(graph)
    whole = True
    for node in graph.nodes:
        if not mutates(node):
            continue
        form = _functional(node)
        written = node.args[0]
        if form is None or not isinstance(written, fx.Node) or written.op == "placeholder":
            whole = False
            continue
        at = position[node]
        others = [n for n in sharing[written] if position[n] < at and n is not written]
        if any(_used_after(other, at, position) for other in others):
            whole = False
            continue
        node.target = form
        for user in [u for u in written.users if position[u] > at]:
            user.replace_input_with(written, node)
    return whole


def _sharing(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """For each node the nodes that may share its memory, itself included."""
    groups: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        groups[node] = {node}
        for source in _aliased(node):
            merged = groups[node] | groups[source]
            for member in merged:
                groups[member] = merged
    return groups


def _aliased(node: fx.Node) -> list[fx.Node]:
    """The operands whose memory the results may share; all of them when that is not known."""
    if node.op != "call_function":
        return []
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return list(node.all_input_nodes)
    formals = target._schema.arguments
    found = [
        arg
        for formal, arg in zip(formals, node.args, strict=False)
        if formal.alias_info is not None
    ]
    return [node for arg in found for node in _nodes(arg)]


def _nodes(arg: object) -> list[fx.Node]:
    if isinstance(arg, fx.Node):
        return [arg]
    if isinstance(arg, list | tuple):
        return [node for item in arg for node in _nodes(item)]
    return []


def _used_after(node: fx.Node, at: int, position: dict[fx.Node, int]) -> bool:
    if node.op == "placeholder":
        return True  # the caller, or the state dict, sees the change
    return any(position[user] > at for user in node.users)


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operation without the underscore, if it gives a value of the same dtype."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    form = getattr(packet, target._overloadname, None)
    if not name.endswith("_") or form is None or name == "copy_":
        return None
    dtypes = [arg.meta["val"].dtype for arg in node.all_input_nodes if _is_tensor(arg)]
    own = dtypes[0] if dtypes else None
    same = name.startswith(_AT_PLACES) or all(dtype in (own, torch.bool) for dtype in dtypes)
    return form if same else None


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
