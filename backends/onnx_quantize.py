"""Quantise ONNX files with ONNX Runtime's own tools."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

__all__ = [
    "BLOCKS",
    "QUANTISED",
    "int4",
    "int8",
    "int8_weights",
    "quantised_ops",
    "ready",
    "static_int8",
]

Batches = Iterable[Mapping[str, npt.NDArray[Any]]]

BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes that MatMulNBits has kernels for."""

QUANTISED = frozenset(
    "ConvInteger DequantizeLinear DynamicQuantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul"
    " GatherBlockQuantized MatMulBnb4 MatMulInteger MatMulIntegerToFloat MatMulNBits QAttention"
    " QEmbedLayerNormalization QGemm QLinearAdd QLinearConv QLinearMatMul QMoE"
    " QuantizeLinear".split()
)
"""Operations that only a quantised model has."""

TURNED = ".transposed"
"""Ends the name of a weight that was transposed in the graph."""

LARGE = 2_000_000_000
"""Bytes from which weights lie beside the file."""


def quantised_ops(path: Path) -> dict[str, int]:
    """How many of each quantised operation a file holds."""
    counts: dict[str, int] = {}
    for node in ir.load(path).graph.all_nodes():
        if node.op_type in QUANTISED:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def ready(source: Path, target: Path) -> list[tuple[str, int]]:
    """Write the file with transposed weights as weights of their own, which the tools look for.

    Returns each matrix that data are multiplied with and how many inputs it has.
    """
    model = ir.load(source)
    for node in [n for n in model.graph if n.op_type == "Transpose"]:
        _fold(model, node)
    RemoveUnusedNodesPass()(model)
    large = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    ir.save(model, target, external_data=f"{target.name}.data" if large > LARGE else None)
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.const_value is not None:
            found.append((str(weight.name), weight.const_value.numpy().shape[-2]))
    return found


def _fold(model: ir.Model, node: ir.Node) -> None:
    """Replace the transposition of an initializer by its result."""
    value, result = node.inputs[0], node.outputs[0]
    if value is None or value.const_value is None or not value.is_initializer():
        return
    if result.is_graph_output() or value.shape is None:
        return
    array = value.const_value.numpy()
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
    turned = np.ascontiguousarray(np.transpose(array, order))
    name = f"{value.name}{TURNED}"
    if name in model.graph.initializers:
        made = model.graph.initializers[name]
    else:
        tensor = ir.Tensor(turned, dtype=value.const_value.dtype, name=name)
        made = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(turned.shape),
            const_value=tensor,
        )
        model.graph.register_initializer(made)
    result.replace_all_uses_with(made)
    model.graph.remove(node, safe=True)


def int8(source: Path, target: Path) -> None:
    """Weights of matrix products and tables as int8, one scale for each output; activations as
    int8 too, with scales found while it runs."""
    with _quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_is_large(source),
            extra_options={"MatMulConstBOnly": True},
        )


def static_int8(source: Path, target: Path, batches: Sequence[Mapping[str, Any]]) -> None:
    """Weights and activations of products and convolutions as int8, with the ranges of activations
    that the batches show."""
    with _quiet():
        quantize_static(
            source,
            target,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=_is_large(source),
            extra_options={"MatMulConstBOnly": True},
        )


def int4(source: Path, target: Path, block: int) -> None:
    """Weights of matrix products and tables in 4 bits, with a scale for each `block` of inputs of
    an output; activations stay as they are."""
    products = _one_table(_in_blocks(onnx.load(source), 4, block, "MatMul"))
    model = _in_blocks(ir.to_proto(products), 4, block, "Gather")
    ir.save(model, target, external_data=f"{target.name}.data" if _is_large(source) else None)


def int8_weights(source: Path, target: Path, block: int) -> None:
    """Weights of matrix products in 8 bits, with a scale for each `block` of inputs of an output,
    and other tables as int8 with one scale; activations stay as they are."""
    large = _is_large(source)
    between = target.with_name(f"between-{target.name}")
    products = _one_table(_in_blocks(onnx.load(source), 8, block, "MatMul"))
    ir.save(products, between, external_data=f"{between.name}.data" if large else None)
    with _quiet():
        quantize_dynamic(
            between,
            target,
            op_types_to_quantize=["Gather"],
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    for path in between.parent.glob(f"{between.name}*"):
        path.unlink()


def _in_blocks(source: onnx.ModelProto, bits: int, block: int, operation: str) -> ir.Model:
    """Weights of one kind of operation in blocks along the inputs of a product, or the entries of
    a row of a table."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        made = MatMulNBitsQuantizer(
            source,
            bits=bits,
            block_size=block,
            is_symmetric=True,
            accuracy_level=4,
            op_types_to_quantize=(operation,),
            quant_axes=((operation, 0 if operation == "MatMul" else 1),),
        )
        made.process()
    model: ir.Model = ir.from_proto(made.model.model)
    RemoveUnusedNodesPass()(model)
    return model


def _one_table(model: ir.Model) -> ir.Model:
    """Where an embedding is the head's weight too, let both read the head's blocks, which lie in
    memory as rows of the table do."""
    for head in [node for node in model.graph if node.op_type == "MatMulNBits"]:
        name = str(cast(ir.Value, head.inputs[1]).name).partition(TURNED)[0]
        table = model.graph.initializers.get(name)
        tall, wide, block = (head.attributes[key].as_int() for key in ("N", "K", "block_size"))
        if table is None or table.shape is None or table.shape.numpy() != (tall, wide):
            continue
        if wide % block:  # the last block of a row would be filled up
            continue
        for use in [use for use in table.uses() if use.node.op_type == "Gather" and not use.idx]:
            if use.node.attributes.get_int("axis", 0) == 0:
                _read_blocks(model.graph, use.node, head)
    RemoveUnusedNodesPass()(model)
    return model


def _read_blocks(graph: ir.Graph, gather: ir.Node, head: ir.Node) -> None:
    """Replace the lookup in a table by one in the quantised weight of a product, which holds a row
    as its blocks; the scales are stored once more, in the shape that the lookup asks for."""
    packed, scales = (cast(ir.Value, value) for value in head.inputs[1:3])
    bits, block, wide = (head.attributes[key].as_int() for key in ("bits", "block_size", "K"))
    name = f"{scales.name}.rows"
    if name not in graph.initializers:
        array = cast(ir.TensorProtocol, scales.const_value).numpy()
        own = array.reshape(head.attributes["N"].as_int(), -1, 1)
        held = ir.Value(name=name, type=scales.type, shape=ir.Shape(own.shape))
        held.const_value = ir.tensor(own, name=name)
        graph.register_initializer(held)
    given = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 2}
    lookup = ir.Node(
        "com.microsoft", "GatherBlockQuantized",
        [packed, gather.inputs[1], graph.initializers[name]],
        [ir.AttrInt64(name, value) for name, value in given.items()], name=gather.name,
    )  # fmt: skip
    sizes = ir.Node("", "Shape", [gather.inputs[1]])
    row = ir.Node("", "Constant", [], [ir.AttrInt64s("value_ints", [wide])])
    shape = ir.Node("", "Concat", [sizes.outputs[0], row.outputs[0]], [ir.AttrInt64("axis", 0)])
    rows = ir.Node("", "Reshape", [lookup.outputs[0], shape.outputs[0]])
    made = [lookup, sizes, row, shape, rows]
    ir.convenience.replace_nodes_and_values(
        graph, gather, [gather], made, gather.outputs, rows.outputs
    )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches one after the other, and None at the end."""

    def __init__(self, batches: Batches) -> None:
        self.rest: Iterator[Mapping[str, Any]] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        found = next(self.rest, None)
        return None if found is None else dict(found)


def _is_large(source: Path) -> bool:
    return source.stat().st_size > LARGE or source.with_name(f"{source.name}.data").exists()


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools tell each layer by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
