"""Run a model, whatever its format, behind one interface: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunec.ir.diagnostics import PrunecError, fail
from prunec.measuring.feeds import TOKENS, Array, Feeds, InputSpec
from prunec.output.own_code import find_source

__all__ = [
    "Runner",
    "distinct",
    "fixed_length",
    "hf_module",
    "open_hf",
    "open_onnx",
    "open_openvino",
    "open_torchscript",
    "takes_cache",
    "told",
]

DTYPES = {
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
"""What ONNX Runtime calls the types that NumPy has too."""

ERRORS_ONLY = 3
"""ONNX Runtime's log severity."""


Run = Callable[[Feeds], dict[str, Array]]


@dataclass(frozen=True)
class Runner:
    """A model that is ready to run. `bytes` are those of its files on disk; `params` counts
    distinct parameters. `run` returns every output in the order of the model."""

    kind: str
    path: str
    inputs: tuple[InputSpec, ...]
    run: Run
    params: int
    bytes: int


def open_onnx(path: Path, threads: int | None = None) -> Runner:
    """An ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = ERRORS_ONLY
    if threads is not None:
        settings.intra_op_num_threads = threads
    _may_be_read(path)
    try:
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions derive from Exception alone
        raise _unreadable(path, "ONNX Runtime", error) from error
    specs = tuple(
        InputSpec(i.name, _dtype(i.type, path), _dims(i.shape)) for i in session.get_inputs()
    )
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, Array]:
        return dict(zip(names, session.run(names, feeds), strict=True))

    params, size = _onnx_sizes(path)
    return Runner("onnx", str(path), specs, told(run, str(path)), params, size)


def takes_cache(path: Path) -> bool:
    """Whether keys and values of earlier tokens are among the inputs of an ONNX file."""
    return any(InputSpec(value.name, "", ()).holds_past for value in _inputs(path))


def fixed_length(path: Path) -> int | None:
    """How many tokens the inputs of an ONNX file hold, when it says so many and no others."""
    for value in _inputs(path):
        dims = value.type.tensor_type.shape.dim
        if value.name.endswith(TOKENS) and len(dims) == 2 and dims[1].HasField("dim_value"):
            return int(dims[1].dim_value)
    return None


def _inputs(path: Path) -> list[Any]:
    """Those of an ONNX file; none of one that cannot be read, which is told when it is opened."""
    import onnx

    try:
        return list(onnx.load(path, load_external_data=False).graph.input)
    except Exception:  # of protobuf, whose types differ by its implementation
        return []


def open_openvino(path: Path, threads: int | None = None) -> Runner:
    """An ONNX file in OpenVINO on the CPU, in float32."""
    try:
        import openvino
    except ModuleNotFoundError:
        raise fail(
            "P862",
            "OpenVINO is not installed",
            help="pip install openvino, or --runtime onnxruntime",
        ) from None
    _may_be_read(path)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.compile_model(path, "CPU", settings)
    except Exception as error:  # any of its own, and RuntimeError
        raise _unreadable(path, "OpenVINO", error) from error
    specs = tuple(
        InputSpec(
            port.any_name,
            str(np.dtype(port.element_type.to_dtype())),
            tuple("?" if d.is_dynamic else d.get_length() for d in port.partial_shape),
        )
        for port in compiled.inputs
    )
    names = [port.any_name for port in compiled.outputs]

    def run(feeds: Feeds) -> dict[str, Array]:
        return dict(zip(names, compiled(feeds).values(), strict=True))

    params, size = _onnx_sizes(path)
    return Runner("openvino", str(path), specs, told(run, str(path)), params, size)


def open_hf(
    model: str,
    threads: int | None = None,
    *,
    trust_remote_code: bool = False,
    as_traced: bool = False,
) -> Runner:
    """A Hugging Face folder, hub id or .gguf in transformers, in float32 on the CPU. With
    `as_traced` experts run as they were traced; the kernels of the stock class round otherwise."""
    import torch

    from prunec.frontends.torch_adapters import batched_experts
    from prunec.frontends.torch_hf import example_inputs

    module, size = hf_module(model, threads, trust_remote_code)
    _no_cache(module.config)
    examples, dynamic = example_inputs(module)
    specs = tuple(_spec(name, x, dynamic.get(name) or {}) for name, x in examples.items())

    def run(feeds: Feeds) -> dict[str, Array]:
        experts = batched_experts(module) if as_traced else nullcontext()
        with torch.inference_mode(), experts:
            outputs = module(**{name: torch.from_numpy(x) for name, x in feeds.items()})
        return {k: x.float().numpy() for k, x in outputs.items() if isinstance(x, torch.Tensor)}

    return Runner("hf", model, specs, told(run, model), distinct(module.parameters()), size)


def hf_module(model: str, threads: int | None, trust_remote_code: bool) -> tuple[Any, int]:
    """A model of transformers, and the bytes of its files."""
    import torch

    from prunec.frontends.hf import load_model

    source = find_source(model, trust_remote_code=trust_remote_code)
    module: Any = load_model(source)
    if threads is not None:
        torch.set_num_threads(threads)
    files = source.folder.glob("*.safetensors") if source.kind == "hf" else [source.path]
    return module, sum(file.stat().st_size for file in files)


def open_torchscript(path: Path, threads: int | None = None) -> Runner:
    """A TorchScript file on the CPU. Its inputs are told by the names of its arguments."""
    import torch

    jit: Any = torch.jit
    _must_exist(path)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        module: Any = jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise _unreadable(path, "TorchScript", error) from error
    module.eval()
    arguments = [a for a in module.forward.schema.arguments if a.name != "self"]
    specs = tuple(_argument(argument.name) for argument in arguments)

    def run(feeds: Feeds) -> dict[str, Array]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(feeds[spec.name]) for spec in specs))
        return {k: x.float().numpy() for k, x in _named(outputs) if isinstance(x, torch.Tensor)}

    params, size = distinct(module.parameters()), path.stat().st_size
    return Runner("torchscript", str(path), specs, told(run, str(path)), params, size)


def told(run: Run, where: str) -> Run:
    """As `run`, with a diagnostic when the model cannot take the inputs."""

    def telling(feeds: Feeds) -> dict[str, Array]:
        try:
            return run(feeds)
        except MemoryError:
            raise
        except Exception as error:  # runtimes raise types of their own
            said = " ".join(str(error).split())[:300]
            if "allocat" in said:  # no memory, in the words of one runtime or another
                raise
            sizes = ", ".join(f"{name} {list(x.shape)}" for name, x in feeds.items())
            raise fail(
                "P866",
                f"the model fails on {sizes}: {said}",
                where=where,
                help="it may be made for other sizes: try another --batch, --length or --window",
            ) from error

    return telling


def _named(outputs: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(outputs, dict):
        return list(outputs.items())
    if isinstance(outputs, tuple | list):
        return [(str(i), x) for i, x in enumerate(outputs)]
    return [("0", outputs)]


def _argument(name: str) -> InputSpec:
    """TorchScript names its arguments and says no more; pictures and sound need static sizes."""
    if not name.endswith(("_ids", "_mask")):
        raise fail(
            "P863",
            f"the size of input {name} is not known from a TorchScript file",
            help="measure the hf or onnx format of the same model",
        )
    return InputSpec(name, "int64", ("batch", "length"))


def _spec(name: str, example: Any, dynamic: Any) -> InputSpec:
    sizes = enumerate(example.shape)
    dtype = str(example.dtype).removeprefix("torch.")
    return InputSpec(name, dtype, tuple(dynamic.get(i, int(size)) for i, size in sizes))


def _no_cache(config: Any) -> None:
    """A forward pass over a whole text needs no cache of keys and values."""
    for holder in (config, *vars(config).values()):
        if hasattr(holder, "use_cache"):
            holder.use_cache = False


def distinct(parameters: Iterable[Any]) -> int:
    """Number of parameters, tied ones counted once."""
    found = {(p.data_ptr(), p.numel()): p.numel() for p in parameters}
    return sum(found.values())


def _onnx_sizes(path: Path) -> tuple[int, int]:
    """Parameters in an ONNX file, and its bytes with those of its external data."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    from prunec.frontends.onnx_data import graphs_of

    graphs = list(graphs_of(onnx.load(path, load_external_data=False)))
    nodes = (node for graph in graphs for node in graph.node if node.op_type == "Constant")
    constants = [attribute.t for node in nodes for attribute in node.attribute]
    stored = [tensor for graph in graphs for tensor in graph.initializer]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    held = [t for t in (*stored, *constants) if t.data_type in floats and t.dims]
    outside = {ExternalDataInfo(t).location for t in held if uses_external_data(t)}
    files = [path, *(path.parent / name for name in outside)]
    params = sum(int(np.prod(t.dims)) for t in held)
    return params, sum(file.stat().st_size for file in files)


def _dims(shape: Iterable[int | str | None]) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in shape)


def _dtype(name: str, path: Path) -> str:
    if name in DTYPES:
        return DTYPES[name]
    raise fail("P863", f"the model has an input of type {name}", where=str(path))


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise fail("P100", "no such file or folder", where=str(path))


def _may_be_read(path: Path) -> None:
    """Runtimes look for the weights of an ONNX file wherever it says that they are."""
    from prunec.frontends.onnx_data import data_files

    _must_exist(path)
    data_files(path)


def _unreadable(path: Path, runtime: str, error: Exception) -> PrunecError:
    said = " ".join(str(error).rpartition("Summary:")[2].split())[:300]  # OpenVINO: what it lacks
    return fail(
        "P861",
        f"{runtime} cannot load the model: {said}",
        where=str(path),
        help="where another runtime loads it, this one lacks an operation; else the file is damaged"
        " or incomplete: write it again",
    )
