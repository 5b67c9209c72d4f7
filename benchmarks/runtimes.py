"""Load a written model as a user without prunec would, count its parameters, and run it.

    python -P benchmarks/runtimes.py hf|onnx|torchscript PATH NAMES.json INPUTS.npz OUTPUTS.npz

One process for one format, since the TorchScript file must load where there is neither prunec nor
transformers. NAMES.json lists the parameters of the dense checkpoint; those of the same name are
counted in the written file itself. INPUTS.npz holds arrays called `CASE/INPUT`; each case is run,
and its outputs are saved as `CASE/POSITION`; those of a Hugging Face model that computes in
float64 go to OUTPUTS.exact.npz beside them. Prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Call = Callable[[Mapping[str, Array]], list[Array]]
Shapes = dict[str, list[int]]
FLOATS = ("F64", "F32", "F16", "BF16")


def header(path: Path) -> Shapes:
    """Shapes of the floating-point tensors in a safetensors file, read from its first bytes."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        fields = json.loads(stream.read(size))
    return {n: f["shape"] for n, f in fields.items() if f.get("dtype") in FLOATS}


def checkpoint(folder: Path) -> Shapes:
    """Shapes of the tensors in a Hugging Face folder."""
    found: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= header(path)
    return found


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run; `widen`, where there is one, makes it compute in float64."""

    shapes: Shapes
    call: Call
    loaded_by: str
    widen: Callable[[], object] | None = None


def hf(path: Path) -> Opened:
    import torch
    import transformers

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    own = "auto_map" in config
    causal = config["architectures"][0].endswith("ForCausalLM")
    auto: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    model, info = auto.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=own, output_loading_info=True
    )
    wrong = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys") if info[name]}
    wrong |= {"mismatched_keys": list(info["mismatched_keys"])} if info["mismatched_keys"] else {}
    if wrong:
        raise SystemExit(f"the checkpoint does not fit its model: {wrong}")
    model.eval()

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        with torch.inference_mode():
            outputs = model(**{k: torch.from_numpy(x) for k, x in feeds.items()}, use_cache=False)
        return [x.numpy() for x in outputs.values() if isinstance(x, torch.Tensor)]

    what = type(model).__name__ + (" (own code)" if own else "")
    return Opened(checkpoint(path), call, what, model.double)


def onnx(path: Path) -> Opened:
    import onnx as library
    import onnxruntime

    stored = library.load(path, load_external_data=False).graph.initializer
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        return list(session.run(None, {name: feeds[name] for name in names}))

    shapes = {tensor.name: list(tensor.dims) for tensor in stored}
    return Opened(shapes, call, f"onnxruntime {onnxruntime.__version__}")


def torchscript(path: Path) -> Opened:
    import torch

    warnings.filterwarnings("ignore", message=".*torch.jit.*")
    jit: Any = torch.jit
    model = jit.load(str(path), map_location="cpu").eval()
    names = [a.name for a in model.forward.schema.arguments if a.name != "self"]

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        with torch.inference_mode():
            outputs = model(*(torch.from_numpy(feeds[name]) for name in names))
        several = isinstance(outputs, tuple | list)
        return [x.numpy() for x in (outputs if several else [outputs])]

    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    return Opened(shapes, call, f"torch.jit of torch {torch.__version__}")


OPEN: dict[str, Callable[[Path], Opened]] = {
    "hf": hf,
    "onnx": onnx,
    "torchscript": torchscript,
}


def _cases(path: str) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            case, name = key.split("/")
            found.setdefault(case, {})[name] = stored[key]
    return found


def _results(model: Opened, cases: Mapping[str, dict[str, Array]]) -> dict[str, Array]:
    return {
        f"{case}/{i}": value
        for case, feeds in cases.items()
        for i, value in enumerate(model.call(feeds))
    }


def main(kind: str, path: str, names: str, inputs: str, outputs: str) -> None:
    dense: list[str] = json.loads(Path(names).read_text(encoding="utf-8"))
    start = time.perf_counter()
    model = OPEN[kind](Path(path))
    loaded = time.perf_counter() - start
    cases = _cases(inputs)
    np.savez(outputs, **_results(model, cases))  # type: ignore[arg-type]
    if model.widen is not None:
        model.widen()
        exact = _results(model, cases)
        np.savez(Path(outputs).with_suffix(".exact.npz"), **exact)  # type: ignore[arg-type]
    alien = {"prunec", "transformers"} & set(sys.modules) - (
        {"transformers"} if kind == "hf" else set()
    )
    document = {
        "loaded_by": model.loaded_by,
        "parameters": {n: model.shapes[n] for n in dense if n in model.shapes},
        "missing": [name for name in dense if name not in model.shapes],
        "load_seconds": round(loaded, 2),
        "imported": sorted(alien),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
