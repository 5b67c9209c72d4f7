"""Bad ONNX files: one diagnostic each, nothing written, nothing read outside of the folder."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from worded import tokenizer

from prunec.cli.app import main
from prunec.frontends.onnx import read_onnx
from prunec.ir.diagnostics import PrunecError

Spoil = Callable[[onnx.ModelProto, Path], None]


def good() -> onnx.ModelProto:
    """relu(x @ u) @ d, its first weight outside the file."""
    rng = np.random.default_rng(0)
    arrays = {"u": rng.standard_normal((6, 12)), "d": rng.standard_normal((12, 3))}
    stored = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "u"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "d"], ["y"]),
        ],
        "good",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outside(model: onnx.ModelProto, folder: Path, location: str = "weights.bin") -> Path:
    """Move the first weight to `location`; returns the file."""
    tensor = model.graph.initializer[0]
    path = folder / "weights.bin"
    path.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(6 * 12 * 4))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return path


def beyond(model: onnx.ModelProto, folder: Path) -> None:
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(6 * 12 * 4))
    outside(model, folder, "../secret.bin")


def absolute(model: onnx.ModelProto, folder: Path) -> None:
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(6 * 12 * 4))
    outside(model, folder, str(secret))


def told_twice(model: onnx.ModelProto, folder: Path) -> None:
    """Readers differ in which of the two they take."""
    (folder.parent / "secret.bin").write_bytes(bytes(6 * 12 * 4))
    outside(model, folder)
    model.graph.initializer[0].external_data.add(key="location", value="../secret.bin")


def beyond_in_windows(model: onnx.ModelProto, folder: Path) -> None:
    outside(model, folder, "..\\secret.bin")


def pipe(model: onnx.ModelProto, folder: Path) -> None:
    outside(model, folder, "pipe")
    os.mkfifo(folder / "pipe")


def secret_constant() -> onnx.NodeProto:
    """Stores its value above the folder."""
    tensor = TensorProto(
        name="c", data_type=TensorProto.FLOAT, dims=[6, 12], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret.bin")
    return helper.make_node("Constant", [], ["c"], value=tensor)


def beyond_in_a_constant(model: onnx.ModelProto, folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(6 * 12 * 4))
    model.graph.node.insert(0, secret_constant())


def beyond_in_a_branch(model: onnx.ModelProto, folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(6 * 12 * 4))
    result = helper.make_tensor_value_info("c", TensorProto.FLOAT, [6, 12])
    branch = helper.make_graph([secret_constant()], "branch", [], [result])
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    node = helper.make_node("If", ["which"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def function(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """A local function of these nodes from `a` to `b`, called instead of Relu."""
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], nodes, sets))
    if len(model.opset_import) == 1:
        model.opset_import.append(sets[1])
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "own"


def beyond_in_a_function(model: onnx.ModelProto, folder: Path) -> None:
    (folder.parent / "secret.bin").write_bytes(bytes(6 * 12 * 4))
    function(model, secret_constant(), helper.make_node("Relu", ["a"], ["b"]))


def endless(model: onnx.ModelProto, folder: Path) -> None:
    function(model, helper.make_node("F", ["a"], ["b"], domain="own"))


def doubled_function(model: onnx.ModelProto, folder: Path) -> None:
    function(model, helper.make_node("Relu", ["a"], ["b"]))
    function(model, helper.make_node("Sigmoid", ["a"], ["b"]))


def linked(model: onnx.ModelProto, folder: Path) -> None:
    path = outside(model, folder)
    path.rename(folder.parent / "secret.bin")
    path.symlink_to(folder.parent / "secret.bin")


def linked_folder(model: onnx.ModelProto, folder: Path) -> None:
    path = outside(model, folder, "sub/secret.bin")
    (folder.parent / "else").mkdir()
    path.rename(folder.parent / "else" / "secret.bin")
    (folder / "sub").symlink_to(folder.parent / "else")


def hard_linked(model: onnx.ModelProto, folder: Path) -> None:
    os.link(outside(model, folder), folder.parent / "elsewhere.bin")


def missing(model: onnx.ModelProto, folder: Path) -> None:
    outside(model, folder).unlink()


def short(model: onnx.ModelProto, folder: Path) -> None:
    path = outside(model, folder)
    path.write_bytes(path.read_bytes()[:100])


def misdeclared(model: onnx.ModelProto, folder: Path) -> None:
    outside(model, folder)
    model.graph.initializer[0].external_data[2].value = "12"


def negative_offset(model: onnx.ModelProto, folder: Path) -> None:
    outside(model, folder)
    model.graph.initializer[0].external_data[1].value = "-4"


def cycle(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[0].input[0] = "y"


def doubled(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[1].output[0] = "h"


def doubled_weight(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer[1].name = "u"


def unknown_opset(model: onnx.ModelProto, folder: Path) -> None:
    model.opset_import[0].version = 999


def unknown_format(model: onnx.ModelProto, folder: Path) -> None:
    model.ir_version = 999


def undeclared_domain(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[1].domain = "com.example"


def sparse(model: onnx.ModelProto, folder: Path) -> None:
    added = model.graph.sparse_initializer.add()
    added.values.name = "s"


def sparse_constant(model: onnx.ModelProto, folder: Path) -> None:
    node = helper.make_node("Constant", [], ["c"])
    held = onnx.SparseTensorProto(dims=[6, 12])
    held.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    held.indices.CopyFrom(numpy_helper.from_array(np.zeros((1, 2), np.int64)))
    kind = onnx.AttributeProto.SPARSE_TENSOR
    node.attribute.append(onnx.AttributeProto(name="sparse_value", type=kind, sparse_tensor=held))
    model.graph.node.insert(0, node)


def misdeclared_output(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def doubled_output(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.output.append(model.graph.output[0])


def unknown_contrib(model: onnx.ModelProto, folder: Path) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 999))


def mismatch(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((13, 3), np.float32), "d"))


def wrong_length(model: onnx.ModelProto, folder: Path) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def untyped(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer[0].data_type = onnx.TensorProto.UNDEFINED


def undefined(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[1].input[0] = "nowhere"


BAD: dict[str, tuple[Spoil, str]] = {
    "external data above the folder": (beyond, "P241"),
    "external data at an absolute path": (absolute, "P241"),
    "external data above the folder, Windows": (beyond_in_windows, "P241"),
    "external data above the folder, of a constant": (beyond_in_a_constant, "P241"),
    "external data above the folder, in a branch": (beyond_in_a_branch, "P241"),
    "external data above the folder, in a function": (beyond_in_a_function, "P241"),
    "external data in two places": (told_twice, "P241"),
    "external data in a pipe": (pipe, "P241"),
    "external data through a link": (linked, "P241"),
    "external data in a linked folder": (linked_folder, "P241"),
    "external data with another name elsewhere": (hard_linked, "P241"),
    "external data missing": (missing, "P241"),
    "external data cut short": (short, "P241"),
    "external data of another length": (misdeclared, "P241"),
    "external data at a negative offset": (negative_offset, "P241"),
    "a cycle": (cycle, "P242"),
    "a name twice": (doubled, "P242"),
    "a weight twice": (doubled_weight, "P242"),
    "an output twice": (doubled_output, "P242"),
    "a function twice": (doubled_function, "P242"),
    "a function that calls itself": (endless, "P242"),
    "sparse initializers": (sparse, "P242"),
    "sparse constants": (sparse_constant, "P242"),
    "too few bytes": (wrong_length, "P242"),
    "a weight of no type": (untyped, "P242"),
    "an undefined value": (undefined, "P242"),
    "an unknown operator set": (unknown_opset, "P243"),
    "an unknown operator set of ONNX Runtime": (unknown_contrib, "P243"),
    "an unknown format": (unknown_format, "P243"),
    "an undeclared domain": (undeclared_domain, "P243"),
    "shapes that do not fit": (mismatch, "P244"),
    "an output of another shape": (misdeclared_output, "P244"),
}

MEANT = ("params=60%", "--method", "magnitude")
VERBS: dict[str, tuple[str, ...]] = {
    "prune": ("prune", "-o", "OUT", "--target", *MEANT),
    "prune over": ("prune", "-o", "OUT", "--target", *MEANT, "--overwrite"),
    "prune on": ("prune", "-o", "OUT", "--target", *MEANT, "--resume"),
    "inspect": ("inspect",),
    "quantize": ("quantize", "-o", "OUT", "--quantize", "int8", "--calibration", "none"),
    "sparsify": ("sparsify", "-o", "OUT", "--sparsity", "50%", "--calibration", "DATA"),
    "sensitivity": ("sensitivity", "--calibration", "DATA"),
}
"""Commands that look into a file, a file OUT beside them."""

RUNS = {"bench": ("bench", "--repeat", "1"), "eval": ("eval", "--data", "TEXT")}
"""Commands that let ONNX Runtime read it."""


@pytest.fixture(scope="session")
def opened() -> list[str]:
    """The real paths of all files that this process opens from now on."""
    found: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            found.append(os.path.realpath(os.fsdecode(arguments[0])))

    sys.addaudithook(hook)
    return found


def spoiled(name: str, folder: Path) -> Path:
    folder.mkdir()
    model = good()
    BAD[name][0](model, folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def told(
    command: tuple[str, ...], model: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and messages of a command, which leaves every file as it is."""
    verb, *rest = command
    before = {path: path.stat().st_mtime_ns for path in model.parent.parent.rglob("*")}
    code = main([verb, str(model), *rest])
    assert {path: path.stat().st_mtime_ns for path in model.parent.parent.rglob("*")} == before
    return code, capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", BAD)
def test_refused_with_one_diagnostic(
    name: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    model = spoiled(name, tmp_path / "model")
    out = tmp_path / "out"
    if "--overwrite" in VERBS[verb]:
        out.mkdir()
        (out / "mine.txt").write_text("stays")
    places = {"OUT": str(out), "DATA": str(tmp_path / "data.npz")}
    np.savez(places["DATA"], x=np.ones((4, 6), np.float32))
    opened.clear()
    code, messages = told(tuple(places.get(w, w) for w in VERBS[verb]), model, capsys)
    assert code == 1
    assert messages.count("error[") == 1
    assert f"error[{BAD[name][1]}]" in messages
    assert not [path for path in opened if path.endswith(("secret.bin", "elsewhere.bin"))]


def test_a_place_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """protobuf gives text that is not UTF-8 as bytes."""
    model = good()
    outside(model, tmp_path, "data.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"data.bin", b"data.b\xff\xfe"))
    assert main(["inspect", str(path)]) == 1
    assert "P241" in capsys.readouterr().err


@pytest.mark.parametrize("verb", RUNS)
@pytest.mark.parametrize("name", [name for name, (_, code) in BAD.items() if code == "P241"])
def test_no_runtime_reads_what_may_not_be_read(
    name: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = spoiled(name, tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("w1 w2 w3 w4 " * 64)
    places = {"TEXT": str(tmp_path / "text.txt")}
    command = [places.get(word, word) for word in RUNS[verb]]
    if verb == "eval":
        command += ["--tokenizer", str(tmp_path / "tokenizer"), "--window", "8"]
    code, messages = told(tuple(command), model, capsys)
    assert code == 1
    assert messages.count("error[") == 1
    assert re.search("error.P(241|861).", messages)


def test_external_data_that_are_fine(tmp_path: Path) -> None:
    model = good()
    wanted = numpy_helper.to_array(model.graph.initializer[0])
    outside(model, tmp_path)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(read_onnx(tmp_path / "model.onnx").weights["u"], wanted)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short(share: float, tmp_path: Path) -> None:
    whole = good().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(PrunecError) as caught:
        read_onnx(path)
    assert len(caught.value.diagnostics) == 1


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    """A few hundred of what benchmarks/onnx_fuzz.py does at length."""
    from prunec.ir.dialects.onnx import ONNX
    from prunec.passes.couple import couple

    whole = bytearray(good().SerializeToString())
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] = struct.pack("B", rng.integers(0, 256))[0]
        path.write_bytes(bytes(data))
        try:
            couple(read_onnx(path).graph, ONNX)
        except PrunecError:
            refused += 1
    assert 0 < refused < 400
