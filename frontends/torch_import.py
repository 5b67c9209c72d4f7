"""Turn an exported program into the IR: names, types, places, ties, canonical operations."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from prunec.frontends.tensors import to_numpy
from prunec.frontends.torch_canon import Call, canonical
from prunec.frontends.torch_fold import folded
from prunec.frontends.torch_inplace import rename_in_place
from prunec.frontends.torch_sizes import own_sizes
from prunec.frontends.torch_symbols import Symbols, name_symbols
from prunec.ir.diagnostics import Diagnostic, fail
from prunec.ir.graph import Arg, Attr, Graph, Loc, Op, Parameter, Ref, TensorType, Value

__all__ = ["DTYPES", "Imported", "first_names", "import_program", "path_name"]

DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}

# Checks of what is known already, or of what holds for any input the graph is asked to serve.
_CHECKS = (
    "aten._assert",
    "aten.sym_constrain",
    "aten._functional_sym_constrain",
    "aten._functional_assert",
)


@dataclass(frozen=True)
class Imported:
    """A graph with the values of its constants and what the export gave up on."""

    graph: Graph
    constants: Mapping[str, npt.NDArray[Any]]
    warnings: tuple[Diagnostic, ...]

    @property
    def static_sizes(self) -> set[int]:
        """Every static dimension of every value."""
        types = self.graph.types.values()
        return {dim for t in types for dim in t.shape if isinstance(dim, int)}


def import_program(
    program: ExportedProgram,
    module: nn.Module,
    *,
    name: str,
    dynamic: Mapping[str, Mapping[int, str]],
    sizes: Mapping[str, int],
) -> Imported:
    """Import `program`, exported from `module`.

    `dynamic` names the dimensions that were asked to vary, `sizes` the example size of each name.
    """
    if not rename_in_place(program.graph):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of torch for torch
            program = program.run_decompositions({})  # an empty table: functionalises, no more
    symbols = Symbols(sizes, program.range_constraints)
    fixed = name_symbols(program, dynamic, symbols)
    importer = _Importer(program, module, symbols)
    graph = importer.run(name)
    return Imported(graph, importer.constants, tuple(fixed))


class _Importer:
    """One import; `run` walks the nodes in order."""

    def __init__(self, program: ExportedProgram, module: nn.Module, symbols: Symbols) -> None:
        self.program = program
        self.symbols = symbols
        self.stored = _stored_names(module)
        self.aliases = _aliases(self.stored)
        self.module = module
        self.env: dict[fx.Node, Arg] = {}
        self.types: dict[str, TensorType] = {}
        self.inputs: list[Value] = []
        self.parameters: dict[str, Parameter] = {}
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.ops: list[Op] = []
        self.folded = folded(program)

    def run(self, name: str) -> Graph:
        self._declare_stored()
        self._placeholders()
        for node in self.program.graph.nodes:
            if node in self.folded:
                self._fold(node)
            elif node.op == "call_function":
                self._call(node)
        outputs = self._outputs()
        ops = _live(own_sizes(self.ops), [value for _, value in outputs])
        used = {ref for op in ops for ref in op.operands} | {value for _, value in outputs}
        keep = set(self._persistent())
        return Graph(
            name=name,
            inputs=tuple(self.inputs),
            parameters={k: p for k, p in self.parameters.items() if p.ref in used or k in keep},
            ops=ops,
            outputs=tuple(outputs),
            symbols=self.symbols.examples(),
        )

    def _declare_stored(self) -> None:
        """Every stored tensor, in the module's own order, used or not."""
        parameters = {n for n, _ in self.module.named_parameters(remove_duplicate=False)}
        for name, tensor in self.stored.items():
            if self.aliases[name] != name:
                continue
            kind = "parameter" if name in parameters else "buffer"
            tied = tuple(n for n, to in self.aliases.items() if to == name and n != name)
            self._declare(Parameter(name, self._tensor_type(tensor), kind, tied))

    def _declare(self, parameter: Parameter) -> None:
        self.parameters[parameter.name] = parameter
        self.types[parameter.ref] = parameter.type

    def _persistent(self) -> list[str]:
        hidden = {
            f"{path}.{key}" if path else key
            for path, owner in self.module.named_modules()
            for key in owner._non_persistent_buffers_set
        }
        return [name for name in self.stored if name not in hidden]

    def _placeholders(self) -> None:
        specs = {s.arg.name: s for s in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            match spec.kind:
                case InputKind.USER_INPUT if isinstance(spec.arg, ConstantArgument):
                    self.env[node] = spec.arg.value
                case InputKind.USER_INPUT:
                    self._input(node)
                case InputKind.PARAMETER | InputKind.BUFFER:
                    self.env[node] = Ref("@" + self.aliases[str(spec.target)])
                case InputKind.CONSTANT_TENSOR:
                    self._constant(node, str(spec.target))
                case _:
                    raise fail("P132", f"the exported program takes a {spec.kind.name.lower()}")

    def _input(self, node: fx.Node) -> None:
        value = Value("%" + node.name, self._type(node.meta["val"]))
        self.inputs.append(value)
        self.types[value.name] = value.type
        self.env[node] = Ref(value.name)

    def _constant(self, node: fx.Node, name: str) -> None:
        tensor = self.program.constants[name]
        self._declare(Parameter(name, self._type(tensor), "constant"))
        self.env[node] = Ref("@" + name)
        if not node.users:
            return
        if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
            raise fail(
                "P133",
                f"the value of the constant {name} is not known: it was made on the meta device",
                where=name,
                help="register the tensor as a buffer, or build the module on the CPU",
            )
        self.constants[name] = to_numpy(tensor)

    def _fold(self, node: fx.Node) -> None:
        """A value that is computed once, if anything else needs it."""
        if all(user in self.folded for user in node.users):
            return
        name = f"constant_{node.name}"
        self._declare(Parameter(name, self._type(node.meta["val"]), "constant"))
        self.env[node] = Ref("@" + name)
        self.constants[name] = to_numpy(self.folded[node])

    def _call(self, node: fx.Node) -> None:
        target = node.target
        value = node.meta.get("val")
        if target is operator.getitem:
            source = self.env[node.args[0]]  # type: ignore[index]
            assert isinstance(source, tuple)
            self.env[node] = source[int(node.args[1])]  # type: ignore[arg-type]
            return
        name = _op_name(target)
        if name.startswith(_CHECKS):
            return
        if isinstance(value, bool | int | float):
            self.env[node] = value
            return
        self._emit(node, name, value)

    def _emit(self, node: fx.Node, name: str, value: Any) -> None:
        many = isinstance(value, list | tuple)
        types = tuple(self._type(v) for v in (value if many else [value]))
        overload = node.target if isinstance(node.target, torch._ops.OpOverload) else None
        call = Call(
            name=name,
            args=tuple(self._arg(a) for a in node.args),
            kwargs={k: self._arg(a) for k, a in node.kwargs.items()},
            types=types,
            operand=self.types.get,
            schema=overload._schema if overload is not None else None,
            constant=lambda ref: self.constants.get(ref[1:]),
        )
        found = canonical(call)
        if isinstance(found, Ref):
            self.env[node] = found
            return
        stem = "%" + node.name
        results = tuple(f"{stem}__{i}" for i in range(len(types))) if many else (stem,)
        self.types |= dict(zip(results, types, strict=True))
        refs = tuple(Ref(r) for r in results)
        self.env[node] = refs if many else refs[0]
        self.ops.append(
            Op(
                name=found.name,
                args=found.args,
                kwargs=tuple(found.kwargs.items()),
                results=results,
                types=types,
                loc=_loc(node),
                pointwise=_pointwise(found.name),
            )
        )

    def _arg(self, arg: Any) -> Arg:
        match arg:
            case fx.Node():
                return self.env[arg]
            case list() | tuple():
                return tuple(self._arg(a) for a in arg)
            case None | bool() | int() | float() | str():
                return arg
            case torch.dtype():
                return Attr("dtype", str(arg).removeprefix("torch."))
            case torch.device():
                return Attr("device", str(arg))
            case torch.layout():
                return Attr("layout", str(arg).removeprefix("torch."))
            case torch.memory_format():
                return Attr("memory_format", str(arg).removeprefix("torch."))
            case complex():
                return Attr("complex", repr(arg))
        raise fail("P132", f"an argument of type {type(arg).__name__} cannot be represented")

    def _type(self, value: Any) -> TensorType:
        if not isinstance(value, torch.Tensor):
            return TensorType("index")  # a size, or a number computed from sizes
        return self._tensor_type(value)

    def _tensor_type(self, tensor: torch.Tensor) -> TensorType:
        return TensorType(DTYPES[tensor.dtype], tuple(self.symbols.dim(d) for d in tensor.shape))

    def _outputs(self) -> list[tuple[str, str]]:
        spec = self.program.call_spec.out_spec
        assert spec is not None
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        paths, _ = pytree.tree_flatten_with_path(tree)
        nodes = {node.name: node for node in self.program.graph.nodes}
        taken = {value.name[1:] for value in self.inputs}
        found = []
        for (path, _), wanted in zip(paths, self.program.graph_signature.user_outputs, strict=True):
            if not isinstance(wanted, str):
                continue  # None, or a number that does not depend on the input
            ref = self.env[nodes[wanted]]
            if isinstance(ref, Ref):
                name = path_name(path)  # formats know a name once, as an input or as an output
                found.append((f"{name}_out" if name in taken else name, ref.name))
        return found


def _live(ops: list[Op], roots: list[str]) -> tuple[Op, ...]:
    """The operations that the roots need, in order."""
    needed = set(roots)
    kept = []
    for op in reversed(ops):
        if needed.isdisjoint(op.results):
            continue
        needed.update(op.operands)
        kept.append(op)
    return tuple(reversed(kept))


def _stored_names(module: nn.Module) -> dict[str, torch.Tensor]:
    found = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


def _aliases(stored: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Canonical name of each stored name: the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in stored.items()}


def first_names(module: nn.Module) -> dict[int, str]:
    """First name of each parameter and buffer, by the tensor's identity, in the module's order."""
    first: dict[int, str] = {}
    for prefixed in (module.named_parameters, module.named_buffers):
        for name, tensor in prefixed(remove_duplicate=False):
            first.setdefault(id(tensor), name)
    return first


def _op_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise fail(
            "P132",
            f"the exported program contains control flow ({target})",
            help="trace a module whose forward pass is straight-line code",
        )
    return "py." + str(target.__name__).rstrip("_").removeprefix("sym_")


@cache
def _pointwise(name: str) -> bool:
    # A change of dtype acts entry by entry but is a composite, so that torch does not tag it.
    if name == "aten.to.dtype":
        return True
    namespace, packet, overload = name.split(".") if name.count(".") == 2 else ("", "", "")
    if not namespace or namespace == "py":
        return False
    found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    return torch.Tag.pointwise in found.tags


def _loc(node: fx.Node) -> Loc:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = stack[-1][0].split("@")[0] if stack else ""
    if module.startswith("_empty_nn_module_stack"):  # sizes of inputs, which no module computes
        return Loc()
    return Loc(module, _source(node.meta.get("stack_trace") or ""))


def _source(trace: str) -> str:
    """`file:line` of the innermost frame outside torch."""
    found = ""
    for line in trace.splitlines():
        if not line.startswith('  File "') and not line.startswith('File "'):
            continue
        path, _, rest = line.strip().removeprefix('File "').partition('", line ')
        if "/torch/" in path:
            continue
        found = f"{Path(path).name}:{rest.split(',')[0]}"
    return found


def path_name(path: tuple[Any, ...]) -> str:
    """The name of an output by its place: `logits`, `hidden_states_3`; a bare tensor is called
    `output`."""
    parts = []
    for key in path:
        inner = getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))
        parts.append(str(inner))
    text = "_".join(parts)
    return f"output_{text}" if text.isdigit() else text or "output"
