"""An ONNX model in stretches: any run of its nodes as a session of ONNX Runtime of its own.

Weights are inputs of a stretch, so that they can be replaced without building it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper

from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph, Parameter, Ref
from prunec.passes.profile import Weights

__all__ = ["Env", "OrtProgram", "Stretch", "output_names"]

Array = npt.NDArray[Any]
Env = dict[str, Array]
"""Values by their names in the file."""

FED = {
    "f32": onnx.TensorProto.FLOAT,
    "f64": onnx.TensorProto.DOUBLE,
    "f16": onnx.TensorProto.FLOAT16,
    "i8": onnx.TensorProto.INT8,
    "u8": onnx.TensorProto.UINT8,
}
"""Dtypes of weights that are inputs of a stretch; others are built in as they are."""


@dataclass(frozen=True)
class Stretch:
    """Some nodes, ready to run: `weights` are the parameters that it is fed."""

    session: onnxruntime.InferenceSession
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, env: Mapping[str, Array], weights: Weights) -> Env:
        """The outputs for these values; PrunecError P311 when ONNX Runtime fails."""
        feeds = {name: env[name] for name in self.inputs}
        feeds |= {name: np.ascontiguousarray(weights[name]) for name in self.weights}
        try:
            found = self.session.run(list(self.outputs), feeds)
        except Exception as error:  # its exceptions derive from Exception alone
            raise _failed(error, env) from error
        return dict(zip(self.outputs, found, strict=True))


class OrtProgram:
    """A model with the program that was read from it. `nodes` leads from an operation's first
    result to its node, `tensors` from a parameter to the value that holds it."""

    def __init__(
        self,
        model: ir.Model,
        graph: Graph,
        nodes: Mapping[str, ir.Node],
        tensors: Mapping[str, str],
    ) -> None:
        self.model, self.graph, self.tensors = model, graph, tensors
        listed = list(model.graph)
        self.place = {id(node): i for i, node in enumerate(listed)}
        self.at = {result: self.place[id(node)] for result, node in nodes.items()}
        self.protos = [ir.to_proto(node) for node in listed]
        for op in graph.ops:
            if op.result in self.at:
                self._rename(self.protos[self.at[op.result]], op.args)
        self.makers = {name: i for i, p in enumerate(self.protos) for name in p.output if name}
        self.holders = {p.name: p for p in graph.parameters.values()}

    def _rename(self, proto: onnx.NodeProto, args: Sequence[object]) -> None:
        """Readers of one tensor that are parameters of their own read them by their own names."""
        for i, arg in enumerate(args[: len(proto.input)]):
            if isinstance(arg, Ref) and arg.name.startswith("@"):
                proto.input[i] = arg.name[1:]

    @property
    def end(self) -> int:
        return len(self.protos)

    def position(self, result: str) -> int:
        """The node that makes a result of the program. Raises P313 for one inside a function."""
        if result in self.at:
            return self.at[result]
        raise fail(
            "P313",
            f"what {result[1:]} reads cannot be observed: it stands in a function of the model",
            where=result[1:],
            help="use --method magnitude, or inline the functions before (onnx.inliner)",
        )

    # -- what is read -------------------------------------------------------------------

    @cached_property
    def reads(self) -> list[tuple[str, ...]]:
        """For each node the values that it and its bodies read."""
        known = set(self.makers) | {str(v.name) for v in self.model.graph.inputs} | set(self.stored)
        return [tuple(dict.fromkeys(_reads(proto, known))) for proto in self.protos]

    def live(self, position: int, until: int) -> list[str]:
        """Values made before a position, or given, that nodes from there on read."""
        found: dict[str, None] = {}
        for i in range(position, until):
            for name in self.reads[i]:
                if self._computed(name) and self.makers.get(name, -1) < position:
                    found[name] = None
        return list(found)

    def _computed(self, name: str) -> bool:
        """Whether a value is neither stored nor a constant."""
        if name in self.holders or name in self.stored:
            return False
        at = self.makers.get(name)
        return at is None or self.protos[at].op_type != "Constant"

    @cached_property
    def stored(self) -> Mapping[str, ir.TensorProtocol]:
        values = self.model.graph.initializers.values()
        return {str(v.name): v.const_value for v in values if v.const_value is not None}

    # -- stretches ----------------------------------------------------------------------

    def stretch(self, start: int, stop: int, outputs: Sequence[str], env: Env) -> Stretch:
        """Nodes from `start` to `stop` (exclusive) that `outputs` depend on; `env` has a value of
        each input, by which its type is known."""
        chosen = self._behind(start, stop, outputs)
        wanted = dict.fromkeys(n for i in chosen for n in self.reads[i])
        made = {name for i in chosen for name in self.protos[i].output}
        wanted |= dict.fromkeys(name for name in outputs if name not in made)
        inputs, weights, initializers, constants = [], [], [], []
        for name in wanted:
            if name in made:
                continue
            parameter = self.holders.get(name)
            if parameter is not None and _fed(parameter):
                weights.append(name)
            elif parameter is not None or name in self.stored:
                initializers.append(self._tensor(name))
            elif not self._computed(name):
                constants.append(self.protos[self.makers[name]])
            else:
                inputs.append(name)
        given = [_described(name, env[name]) for name in inputs]
        given += [_weight(self.holders[name]) for name in weights]
        graph = helper.make_graph(
            [*constants, *(self.protos[i] for i in chosen)], "stretch", given,
            [onnx.ValueInfoProto(name=name) for name in outputs], initializers,
        )  # fmt: skip
        return Stretch(_session(self._model(graph)), tuple(inputs), tuple(weights), tuple(outputs))

    def _behind(self, start: int, stop: int, outputs: Sequence[str]) -> list[int]:
        needed, chosen = set(outputs), []
        for i in range(stop - 1, start - 1, -1):
            proto = self.protos[i]
            if proto.op_type == "Constant" or needed.isdisjoint(proto.output):
                continue
            chosen.append(i)
            needed.update(self.reads[i])
        return chosen[::-1]

    def _tensor(self, name: str) -> onnx.TensorProto:
        held = self.stored.get(self.tensors.get(name, name))
        if held is None:
            node = self.protos[self.makers[self.tensors[name]]]
            proto = onnx.TensorProto()
            proto.CopyFrom(node.attribute[0].t)
        else:
            tensor = ir.Tensor(np.asarray(held.numpy()), dtype=held.dtype)
            proto = ir.to_proto(tensor)
        proto.name = name
        return proto

    def _model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        model = helper.make_model(graph, functions=self._functions)
        model.ir_version = min(int(self.model.ir_version), int(onnx.IR_VERSION))
        del model.opset_import[:]
        for domain, version in self.model.graph.opset_imports.items():
            model.opset_import.append(helper.make_opsetid(domain, version))
        return model

    @cached_property
    def _functions(self) -> list[onnx.FunctionProto]:
        return [ir.to_proto(function) for function in self.model.functions.values()]


def output_names(model: ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.outputs]


def _reads(proto: onnx.NodeProto, known: set[str]) -> Iterable[str]:
    yield from filter(None, proto.input)
    for attribute in proto.attribute:
        bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for body in bodies:
            for node in body.node:
                yield from (name for name in _reads(node, known) if name in known)
            yield from (value.name for value in body.output if value.name in known)


def _fed(parameter: Parameter) -> bool:
    return parameter.kind != "constant" and parameter.type.dtype in FED


def _described(name: str, value: Array) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, dtype, [None] * value.ndim)


def _weight(parameter: Parameter) -> onnx.ValueInfoProto:
    dtype = FED[parameter.type.dtype]
    return helper.make_tensor_value_info(parameter.name, dtype, list(parameter.type.shape))


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions derive from Exception alone
        raise _failed(error, {}) from error


def _failed(error: Exception, env: Mapping[str, Array]) -> Exception:
    said = " ".join(str(error).split())[:300]
    sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in list(env.items())[:4])
    return fail(
        "P314",
        f"ONNX Runtime cannot run the model{f' on {sizes}' if sizes else ''}: {said}",
        help="check that it runs on such inputs at all, or use --method magnitude",
    )
