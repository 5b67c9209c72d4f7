"""Let the contractions of an ONNX model sum in float64, to tell rounding from error.

Slicing changes the order in which float32 sums round, and a deep model amplifies that past any
fixed tolerance. Values stay float32: what goes into a MatMul or Gemm is widened right before it,
what comes out is narrowed right behind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

__all__ = ["sum_in_double"]

CONTRACTIONS = {("", "MatMul"), ("", "Gemm")}
"""Those of the standard that ONNX Runtime has for float64."""


def sum_in_double(model: ir.Model, floats: Collection[str]) -> None:
    """Change the contractions of `model`, in place. `floats` names values known to be float32;
    what is multiplied by a stored float32 tensor is so too."""
    widening = _Widening()
    for node in list(model.graph):
        if (node.domain, node.op_type) in CONTRACTIONS and _narrow(node, floats):
            widening.widen(node)


def _narrow(node: ir.Node, floats: Collection[str]) -> bool:
    held = any(v is not None and v.const_value is not None and v.dtype == ir.DataType.FLOAT
               for v in node.inputs)  # fmt: skip
    return held or node.outputs[0].name in floats


@dataclass
class _Widening:
    wide: dict[int, ir.Value] = field(default_factory=dict)
    """By the value they widen."""

    def widen(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value is None:
                continue
            if id(value) not in self.wide:
                cast = self._cast(value, f"{value.name}.wide", ir.DataType.DOUBLE)
                node.prepend(cast)
                self.wide[id(value)] = cast.outputs[0]
            node.replace_input_with(i, self.wide[id(value)])
        (out,) = node.outputs
        cast = self._cast(out, f"{out.name}.narrow", ir.DataType.FLOAT)
        out.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, out)
        out.type = ir.TensorType(ir.DataType.DOUBLE)
        node.append(cast)

    def _cast(self, value: ir.Value, name: str, to: ir.DataType) -> ir.Node:
        out = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
        return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[out])
