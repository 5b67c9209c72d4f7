"""Check that zeros lie where they should in every format that was written.

Each format is read back from its file. An N:M pattern is looked for along the dimension that is
summed over: in an ONNX file the one that its own operations sum over, in the others, which hold the
layers of the model as they are, the one that the program sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunec.output.staging import Formats
from prunec.passes.sparse import NofM, violations

if TYPE_CHECKING:
    from prunec.verbs.sparsifying import Sparsified

__all__ = ["Broken", "check_zeros"]

Array = npt.NDArray[Any]
Broken = Mapping[str, Mapping[str, int]]
"""For each format and weight, the entries that should be zero and are not, and the groups of N:M
with too many that are not."""

Stored = Mapping[str, Array]


def check_zeros(found: Sparsified, stage: Path, step: Callable[[], None] = lambda: None) -> Broken:
    """Count what is wrong in each format; the zeros of a correct one."""
    result = {}
    for name in found.options.formats:
        stored, dims = OPEN[name](stage)
        result[name] = {
            layer.weight: _wrong(found, layer.weight, layer.dim, stored, dims)
            for layer in found.layers.found
        }
        step()
    return result


def _wrong(
    found: Sparsified, name: str, dim: int, stored: Stored, dims: Mapping[str, frozenset[int]]
) -> int:
    names = (name, *found.loaded.graph.parameters[name].aliases)
    own = next((n for n in names if n in stored), None)
    if own is None:
        return found.replaced[name].size
    array = stored[own]
    count = int(np.count_nonzero(array[found.replaced[name] == 0]))
    if isinstance(found.pattern, NofM):
        for along in dims.get(own, frozenset({dim})):
            count += violations(array, along, found.pattern)
    return count


def _hf(stage: Path) -> tuple[Stored, Mapping[str, frozenset[int]]]:
    from prunec.frontends.safetensors_reader import SafetensorsFile

    return SafetensorsFile(stage / Formats.HF / "model.safetensors"), {}


def _onnx(stage: Path) -> tuple[Stored, Mapping[str, frozenset[int]]]:
    from prunec.backends.onnx_summed import open_initializers, summed

    path = stage / Formats.ONNX
    return open_initializers(path), summed(path)


def _torchscript(stage: Path) -> tuple[Stored, Mapping[str, frozenset[int]]]:
    import torch

    from prunec.backends.tensors import as_array

    module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
        str(stage / Formats.TORCHSCRIPT), map_location="cpu"
    )
    return {name: as_array(tensor) for name, tensor in module.state_dict().items()}, {}


OPEN: Mapping[str, Callable[[Path], tuple[Stored, Mapping[str, frozenset[int]]]]] = {
    "hf": _hf,
    "onnx": _onnx,
    "torchscript": _torchscript,
}
"""What opens a format: its weights by name, and for ONNX the dimensions summed over."""
