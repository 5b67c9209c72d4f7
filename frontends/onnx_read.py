"""Open an ONNX file safely: everything that can be wrong with it is one diagnostic each.

External data are memory-mapped by onnx-ir when a tensor is first used; before that, every place
they are said to be is checked: nothing is read outside of the model's folder, through a link, or
from a file that has another name elsewhere.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from prunec.ir.diagnostics import Diagnostic, PrunecError, fail

__all__ = ["open_model"]

NEWEST_IR = int(onnx.IR_VERSION)
REMEDY = "export the model again, or fetch the file again"


def open_model(path: Path) -> ir.Model:
    """The model at `path`, its external data opened lazily.

    Raises PrunecError: P240 (no ONNX model), P241 (external data), P242 (a graph that is none),
    P243 (unknown versions).
    """
    proto = _parsed(path)
    problems = [*_versions(proto, path), *_sparse(proto, path)]
    problems += _graph(proto.graph, path, frozenset())
    for function in proto.functions:
        problems += _nodes(function.node, set(function.input), path, f"function {function.name}")
    for tensor in tensors_of(proto):
        problems += _tensor(tensor, path)
        if problems:
            break
    if problems:
        raise PrunecError(problems[:1])  # the others may follow from it
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # of many types, for what no check above has thought of
        raise _unreadable(path, error) from error
    for held in stored_tensors(model):
        if isinstance(held, ir.ExternalTensor):
            held.base_dir = str(path.parent)
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise fail("P100", f"cannot be read: {error.strerror}", where=str(path)) from error
    except Exception as error:  # protobuf's own types differ by its implementation
        raise _unreadable(path, error) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise fail(
            "P240",
            "this is no ONNX model: it has no graph",
            where=str(path),
            help="give a file that was written as ONNX; " + REMEDY,
        )
    return proto


def _unreadable(path: Path, error: Exception) -> PrunecError:
    said = " ".join(str(error).split())[:200]
    return fail(
        "P240", f"this is no whole ONNX model: {said}", where=str(path),
        help="the file is damaged or was cut short: " + REMEDY,
    )  # fmt: skip


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
            yield Diagnostic("P243", fact, str(path), help=REMEDY)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            fact = f"it uses version {entry.version} of ONNX's operators; known are 1 to {newest}"
            yield Diagnostic("P243", fact, str(path), help=update)
    used = {_domain(node.domain) for graph in graphs_of(proto) for node in graph.node}
    for domain in sorted(used - {_domain(name) for name in declared}):
        fact = f"operators of {domain!r} are used and no version of them is declared"
        yield Diagnostic("P243", fact, str(path), help=REMEDY)


def _domain(name: str) -> str:
    return name or "ai.onnx"


def _sparse(proto: onnx.ModelProto, path: Path) -> Iterator[Diagnostic]:
    for graph in graphs_of(proto):
        for tensor in graph.sparse_initializer:
            yield Diagnostic(
                "P242",
                "sparse initializers cannot be pruned",
                f"{path}: {tensor.values.name}",
                help="export the weights as dense tensors",
            )


# Graphs


def graphs_of(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, all bodies in it, and those in functions."""
    functions = (node for function in proto.functions for node in function.node)
    pending = [proto.graph, *_bodies(functions)]
    while pending:
        graph = pending.pop()
        yield graph
        pending += _bodies(graph.node)


def _bodies(nodes: Iterable[onnx.NodeProto]) -> list[onnx.GraphProto]:
    found = []
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


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
        for body in _bodies([node]):
            yield from _graph(body, path, around | known)
        for name in filter(None, node.output):
            if name in known:
                yield _wrong(f"{name!r} is defined twice", path, node.name or where)
            known.add(name)


def _wrong(fact: str, path: Path, where: str) -> Diagnostic:
    return Diagnostic("P242", fact, f"{path}: {where}", help=REMEDY)


# Tensors


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and those in attributes."""
    nodes = [node for function in proto.functions for node in function.node]
    for graph in graphs_of(proto):
        yield from graph.initializer
        nodes += graph.node
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _tensor(tensor: onnx.TensorProto, path: Path) -> Iterator[Diagnostic]:
    where = f"{path}: {tensor.name or 'a constant'}"
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 0 if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) else dtype.bitwidth
    except (ValueError, TypeError):
        fact = f"its type {tensor.data_type} is unknown"
        yield Diagnostic("P242", fact, where, help="update the packages onnx and onnx-ir")
        return
    if any(size < 0 for size in tensor.dims):
        yield Diagnostic("P242", f"its shape {list(tensor.dims)} is none", where, help=REMEDY)
        return
    wanted = math.ceil(math.prod(tensor.dims) * bits / 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        yield from _external(tensor, path, where, wanted)
        return
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if held is not None and held != wanted and bits:
        fact = f"it holds {held} bytes and its shape and type need {wanted}"
        yield Diagnostic("P242", fact, where, help=REMEDY)
    if held is None and bits and not _listed(tensor, bits):
        yield Diagnostic("P242", "it holds another number of values than its shape says", where,
                         help=REMEDY)  # fmt: skip


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
    except (KeyError, ValueError):
        yield Diagnostic("P241", "where its data are is not said", where, help=REMEDY)
        return
    problem = _misplaced(location, path.parent)
    if problem:
        remedy = "put the data into the folder of the model, as a file of its own"
        yield Diagnostic("P241", f"its data are said to be in {location!r}, {problem}", where,
                         help=remedy)  # fmt: skip
        return
    size = (path.parent / location).stat().st_size
    if length != wanted or offset < 0:
        fact = f"its data have {length} bytes at {offset}; its shape and type need {wanted}"
        yield Diagnostic("P241", fact, where, help=REMEDY)
    elif offset + length > size:
        fact = f"{location} ends at {size}, before its data do at {offset + length}"
        yield Diagnostic("P241", fact, where, help="fetch the data file again: it is cut short")


def _misplaced(location: str, folder: Path) -> str:
    """Why external data must not be read from there; empty when they may."""
    parts = (PurePosixPath(location), PureWindowsPath(location))
    if not location or "\0" in location:
        return "which names no file"
    if any(p.is_absolute() or p.drive or ".." in p.parts for p in parts):
        return "outside of the folder of the model"
    try:
        found = os.lstat(folder / location)
        real = (folder / location).resolve()
    except (OSError, ValueError):
        return "which is missing"
    if not any(real.is_relative_to(home) for home in _homes(folder)):
        return "a link that leaves the folder of the model"
    if stat.S_ISLNK(found.st_mode) and len(_homes(folder)) == 1:
        return "a link"
    if not real.is_file():
        return "which is no file"
    if found.st_nlink > 1:
        return "a file that has another name elsewhere (a hard link)"
    return ""


def _homes(folder: Path) -> list[Path]:
    """Where data may really be; snapshots in the hub's cache are links into `blobs`."""
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append((folder.parent.parent / "blobs").resolve())
    return homes


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
