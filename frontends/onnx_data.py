"""What an ONNX file says of itself, and the files beside it that may be read.

Nothing is read outside of the model's folder, through a link, or from a file that has another name
elsewhere. Needs `onnx` alone: whoever wants no more than this waits for no more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from prunec.ir.diagnostics import Diagnostic, PrunecError, fail

__all__ = [
    "MEND",
    "bodies",
    "data_files",
    "graphs_of",
    "misplaced",
    "named",
    "parse_model",
    "sparse_tensors_of",
    "tensors_of",
    "unreadable",
]

MEND = "export the model again, or fetch the file again"


def data_files(path: Path, proto: onnx.ModelProto | None = None) -> list[Path]:
    """The files beside an ONNX file that hold its weights, by name.

    Raises PrunecError: P240 (no ONNX model), P241 (one of them is missing or must not be read).
    """
    proto = parse_model(path) if proto is None else proto
    found: dict[str, Path] = {}
    for tensor in tensors_of(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        # readers differ in which of two they take, so that all are checked
        told = {entry.value for entry in tensor.external_data if entry.key == "location"}
        for location in sorted((told or {""}) - found.keys()):
            problem = misplaced(location, path, named(tensor, path))
            if problem is not None:
                raise PrunecError([problem])
            found[location] = path.parent / location
    return [found[location] for location in sorted(found)]


def parse_model(path: Path) -> onnx.ModelProto:
    """The file without its external data; raises P100 and P240."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise fail("P100", f"cannot be read: {error.strerror}", where=str(path)) from error
    except Exception as error:  # protobuf's own types differ by its implementation
        raise unreadable(path, error) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise fail(
            "P240",
            "this is no ONNX model: it has no graph",
            where=str(path),
            help="give a file that was written as ONNX; " + MEND,
        )
    return proto


def unreadable(path: Path, error: Exception) -> PrunecError:
    said = " ".join(str(error).split())[:200]
    return fail(
        "P240", f"this is no whole ONNX model: {said}", where=str(path),
        help="the file is damaged or was cut short: " + MEND,
    )  # fmt: skip


def graphs_of(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph, all bodies in it, and those in functions."""
    functions = (node for function in proto.functions for node in function.node)
    pending = [proto.graph, *bodies(functions)]
    while pending:
        graph = pending.pop()
        yield graph
        pending += bodies(graph.node)


def bodies(nodes: Iterable[onnx.NodeProto]) -> list[onnx.GraphProto]:
    """The graphs that nodes hold in their attributes."""
    found = []
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, those in attributes, and the parts of sparse ones."""
    for graph in graphs_of(proto):
        yield from graph.initializer
    for attribute in _attributes(proto):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for sparse in sparse_tensors_of(proto):
        yield from (sparse.values, sparse.indices)


def sparse_tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Those among the initializers and in attributes."""
    for graph in graphs_of(proto):
        yield from graph.sparse_initializer
    for attribute in _attributes(proto):
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def _attributes(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    """Those of all nodes."""
    for holder in (*proto.functions, *graphs_of(proto)):
        for node in holder.node:
            yield from node.attribute


def named(tensor: onnx.TensorProto, path: Path) -> str:
    """A tensor of the model at `path`, as diagnostics say it."""
    return f"{path}: {tensor.name or 'a constant'}"


def misplaced(location: str, path: Path, where: str) -> Diagnostic | None:
    """Why the data of a tensor of the model at `path` must not be read; None when they may."""
    problem = _problem(location, path.parent)
    if not problem:
        return None
    remedy = "put the data into the folder of the model, as a file of its own"
    return Diagnostic("P241", f"its data are said to be in {location!r}, {problem}", where,
                      help=remedy)  # fmt: skip


def _problem(location: str, folder: Path) -> str:
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
