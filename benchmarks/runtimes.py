"""Load a written model as a user without prunec would, count its parameters, and run it.

    python -P benchmarks/runtimes.py hf|onnx|torchscript PATH NAMES.json INPUTS.npz OUTPUTS.npz

One process for one format, since the TorchScript file must load where there is neither prunec nor
transformers. NAMES.json lists the parameters of the dense checkpoint; those of the same name are
counted in the written file itself. INPUTS.npz holds arrays called `CASE/INPUT`; each case is run,
and its outputs are saved as `CASE/POSITION`. Prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
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


def hf(path: Path) -> tuple[Shapes, Call, str]:
    import torch
    import transformers

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    own = "auto_map" in config
    named = config["auto_map"] if own else config["architectures"][0]
    causal = "AutoModelForCausalLM" in named if own else named.endswith("ForCausalLM")
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

    return checkpoint(path), call, type(model).__name__ + (" (own code)" if own else "")


def onnx(path: Path) -> tuple[Shapes, Call, str]:
    import onnx as library
    import onnxruntime

    stored = library.load(path, load_external_data=False).graph.initializer
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def call(feeds: Mapping[str, Array]) -> list[Array]:
        return list(session.run(None, {name: feeds[name] for name in names}))

    return {t.name: list(t.dims) for t in stored}, call, f"onnxruntime {onnxruntime.__version__}"


def torchscript(path: Path) -> tuple[Shapes, Call, str]:
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
    return shapes, call, f"torch.jit of torch {torch.__version__}"


OPEN: dict[str, Callable[[Path], tuple[Shapes, Call, str]]] = {
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


def main(kind: str, path: str, names: str, inputs: str, outputs: str) -> None:
    dense: list[str] = json.loads(Path(names).read_text(encoding="utf-8"))
    start = time.perf_counter()
    shapes, call, what = OPEN[kind](Path(path))
    loaded = time.perf_counter() - start
    results = {
        f"{case}/{i}": value
        for case, feeds in _cases(inputs).items()
        for i, value in enumerate(call(feeds))
    }
    np.savez(outputs, **results)  # type: ignore[arg-type]
    alien = {"prunec", "transformers"} & set(sys.modules) - (
        {"transformers"} if kind == "hf" else set()
    )
    document = {
        "loaded_by": what,
        "parameters": {name: shapes[name] for name in dense if name in shapes},
        "missing": [name for name in dense if name not in shapes],
        "load_seconds": round(loaded, 2),
        "imported": sorted(alien),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
