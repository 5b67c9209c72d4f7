"""Open an ONNX file safely: everything that can be wrong with it is one diagnostic each.

External data are memory-mapped by onnx-ir when a tensor is first used; before that, every place
they are said to be is checked (see `onnx_data`), and that they are as many as the tensor needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from prunec.frontends.onnx_data import (
    MEND,
    bodies,
    graphs_of,
    misplaced,
    named,
    parse_model,
    sparse_tensors_of,
    tensors_of,
    unreadable,
)
from prunec.ir.diagnostics import Diagnostic, PrunecError

__all__ = ["open_model"]

NEWEST_IR = int(onnx.IR_VERSION)
CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators, of which there is one version."""


def open_model(path: Path) -> ir.Model:
    """The model at `path`, its external data opened lazily.

    Raises PrunecError: P240 (no ONNX model), P241 (external data), P242 (a graph that is none),
    P243 (unknown versions).
    """
    proto = parse_model(path)
    problems = [*_versions(proto, path), *_sparse(proto, path)]
    problems += _graph(proto.graph, path, frozenset())
    problems += _functions(proto, path)
    for tensor in tensors_of(proto):
        problems += _tensor(tensor, path)
        if problems:
            break
    if problems:
        raise PrunecError(problems[:1])  # the others may follow from it
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # of many types, for what no check above has thought of
        raise unreadable(path, error) from error
    for held in stored_tensors(model):
        if isinstance(held, ir.ExternalTensor):
            held.base_dir = str(path.parent)
    return model


# Versions


def _versions(proto: onnx.ModelProto, path: Path) -> Iterator[Diagnostic]:
    update = "update the package onnx, or export for an older version"
    if not 3 <= proto.ir_version <= NEWEST_IR:
        fact = f"its format has version {proto.ir_version}; known are 3 to {NEWEST_IR}"
        yield Diagnostic("P243", fact, str(path), help=update)
    newest = int(onnx.defs.onnx_opset_version())
    declared = Counter(entry.domain for entry in proto.opset_import)
    for domain, count in declared.items():
        if count > 1:
            fact = f"two versions of the operator set {domain or 'ai.onnx'!r} are declared"
            yield Diagnostic("P243", fact, str(path), help=MEND)
    for entry in proto.opset_import:
        owner, last = ("ONNX Runtime", 1) if entry.domain == CONTRIB else ("ONNX", newest)
        if entry.domain in ("", "ai.onnx", CONTRIB) and not 1 <= entry.version <= last:
            fact = f"it uses version {entry.version} of {owner}'s operators; known are 1 to {last}"
            yield Diagnostic("P243", fact, str(path), help=update)
    used = {_domain(node.domain) for graph in graphs_of(proto) for node in graph.node}
    for domain in sorted(used - {_domain(name) for name in declared}):
        fact = f"operators of {domain!r} are used and no version of them is declared"
        yield Diagnostic("P243", fact, str(path), help=MEND)


def _domain(name: str) -> str:
    return name or "ai.onnx"


def _sparse(proto: onnx.ModelProto, path: Path) -> Iterator[Diagnostic]:
    for tensor in sparse_tensors_of(proto):
        yield Diagnostic(
            "P242",
            "sparse initializers and constants cannot be pruned",
            named(tensor.values, path),
            help="export the weights as dense tensors",
        )


# Graphs


def _graph(graph: onnx.GraphProto, path: Path, around: frozenset[str]) -> Iterator[Diagnostic]:
    """Names of a graph; those in `around` are known to a body too."""
    stored = Counter(tensor.name for tensor in graph.initializer)
    given = Counter(value.name for value in graph.input)
    for name in [n for n, k in (*stored.items(), *given.items()) if k > 1]:
        yield _wrong(f"{name!r} is defined twice", path, graph.name)
    if "" in stored or "" in given:
        yield _wrong("an input or initializer has no name", path, graph.name)
    known = {*stored, *given}
    yield from _nodes(graph.node, known, path, graph.name, around)
    for name, count in Counter(value.name for value in graph.output).items():
        if count > 1:
            yield _wrong(f"two outputs are named {name!r}", path, graph.name)
        if name not in known and name not in around:
            yield _wrong(f"output {name!r} is made by no node", path, graph.name)


def _functions(proto: onnx.ModelProto, path: Path) -> Iterator[Diagnostic]:
    named = Counter((f.domain, f.name, f.overload) for f in proto.functions)
    for (_, name, _), count in named.items():
        if count > 1:
            yield _wrong(f"two functions are named {name!r}", path, f"function {name}")
    for function in proto.functions:
        yield from _nodes(function.node, set(function.input), path, f"function {function.name}")


def _nodes(
    nodes: Iterable[onnx.NodeProto],
    known: set[str],
    path: Path,
    where: str,
    around: frozenset[str] = frozenset(),
) -> Iterator[Diagnostic]:
    """Checks nodes in order, and adds what they make to `known`."""
    nodes = list(nodes)
    later = {name for node in nodes for name in node.output}
    for node in nodes:
        for name in node.input:
            if not name or name in known or name in around:
                continue
            if name in later:
                fact = f"{node.op_type} reads {name!r} before it is made: nodes form a cycle"
                yield _wrong(fact + " or are out of order", path, node.name or where)
            else:
                yield _wrong(f"{node.op_type} reads {name!r}, which is not defined", path, where)
        for body in bodies([node]):
            yield from _graph(body, path, around | known)
        for name in filter(None, node.output):
            if name in known:
                yield _wrong(f"{name!r} is defined twice", path, node.name or where)
            known.add(name)


def _wrong(fact: str, path: Path, where: str) -> Diagnostic:
    return Diagnostic("P242", fact, f"{path}: {where}", help=MEND)


# Tensors


def _tensor(tensor: onnx.TensorProto, path: Path) -> Iterator[Diagnostic]:
    where = named(tensor, path)
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 0 if dtype is ir.DataType.STRING else dtype.bitwidth
    except (ValueError, TypeError):  # UNDEFINED has no width
        fact = f"its type {tensor.data_type} is unknown"
        yield Diagnostic("P242", fact, where, help="update the packages onnx and onnx-ir")
        return
    if any(size < 0 for size in tensor.dims):
        yield Diagnostic("P242", f"its shape {list(tensor.dims)} is none", where, help=MEND)
        return
    wanted = math.ceil(math.prod(tensor.dims) * bits / 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        yield from _external(tensor, path, where, wanted)
        return
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if held is not None and held != wanted and bits:
        fact = f"it holds {held} bytes and its shape and type need {wanted}"
        yield Diagnostic("P242", fact, where, help=MEND)
    if held is None and bits and not _listed(tensor, bits):
        yield Diagnostic("P242", "it holds another number of values than its shape says", where,
                         help=MEND)  # fmt: skip


def _listed(tensor: onnx.TensorProto, bits: int) -> bool:
    """Whether the lists of a tensor hold as many numbers as its shape says."""
    count = math.prod(tensor.dims)
    fields = (
        tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data,
        tensor.uint64_data,
    )  # fmt: skip
    held = max(len(field) for field in fields)
    # complex numbers take two; numbers of four bits and less share a byte
    return held in (count, 2 * count) or (bits < 8 and held == math.ceil(count * bits / 8))


def _external(
    tensor: onnx.TensorProto, path: Path, where: str, wanted: int
) -> Iterator[Diagnostic]:
    try:
        told = {entry.key: entry.value for entry in tensor.external_data}
        offset = int(told.get("offset", 0))
        length = int(told["length"]) if "length" in told else wanted
        location = told["location"]
        once = len(told) == len(tensor.external_data) and isinstance(location, str)
    except (KeyError, ValueError):
        once = False
    if not once:
        yield Diagnostic("P241", "where its data are is not said, or twice", where, help=MEND)
        return
    problem = misplaced(location, path, where)
    if problem is not None:
        yield problem
        return
    size = (path.parent / location).stat().st_size
    if length != wanted or offset < 0:
        fact = f"its data have {length} bytes at {offset}; its shape and type need {wanted}"
        yield Diagnostic("P241", fact, where, help=MEND)
    elif offset + length > size:
        fact = f"{location} ends at {size}, before its data do at {offset + length}"
        yield Diagnostic("P241", fact, where, help="fetch the data file again: it is cut short")


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor that an opened model stores."""
    graphs = [model.graph, *model.graph.subgraphs(), *(f.graph for f in model.functions.values())]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for attribute in (a for node in graph for a in node.attributes.values()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()
