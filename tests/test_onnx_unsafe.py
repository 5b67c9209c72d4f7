"""Bad ONNX files: one diagnostic each, nothing written, nothing read outside of the folder."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunec.cli import main
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


def mismatch(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((13, 3), np.float32), "d"))


def wrong_length(model: onnx.ModelProto, folder: Path) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def undefined(model: onnx.ModelProto, folder: Path) -> None:
    model.graph.node[1].input[0] = "nowhere"


BAD: dict[str, tuple[Spoil, str]] = {
    "external data above the folder": (beyond, "P241"),
    "external data at an absolute path": (absolute, "P241"),
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
    "sparse initializers": (sparse, "P242"),
    "too few bytes": (wrong_length, "P242"),
    "an undefined value": (undefined, "P242"),
    "an unknown operator set": (unknown_opset, "P243"),
    "an unknown format": (unknown_format, "P243"),
    "an undeclared domain": (undeclared_domain, "P243"),
    "shapes that do not fit": (mismatch, "P244"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_one_diagnostic(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, code = BAD[name]
    folder = tmp_path / "model"
    folder.mkdir()
    model = good()
    spoil(model, folder)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    out = tmp_path / "out"
    command = ["prune", str(folder / "model.onnx"), "-o", str(out), "--target", "params=60%"]
    assert main([*command, "--method", "magnitude"]) == 1
    told = capsys.readouterr().err
    assert told.count("error[") == 1
    assert f"error[{code}]" in told
    assert not out.exists()


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
