"""Write the smaller program in the formats asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunec.backends.safetensors_writer import Entry, Sliced
from prunec.output.staging import Formats
from prunec.progress import Progress
from prunec.reports.data import WrittenFormat

if TYPE_CHECKING:
    from prunec.runs.run import Outcome

__all__ = ["emit"]


def emit(pruned: Outcome, stage: Path, progress: Progress) -> tuple[WrittenFormat, ...]:
    """Write every format into the stage folder; returns what was written, with its bytes."""
    found = []
    for name in pruned.options.formats:
        write, path = WRITERS[name]
        target = stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with progress.step(f"Writing {name}"):
            write(pruned, target)
        size = _bytes(target if target.is_dir() else target.parent)
        found.append(WrittenFormat(name, path, size))
        progress.note(f"wrote {path} ({size / 1e6:,.0f} MB)")
    return tuple(found)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _torchscript(pruned: Outcome, path: Path) -> None:
    from prunec.backends.torchscript import emit as write
    from prunec.output.tensor_view import TensorView

    write(pruned.rewritten.graph, TensorView(pruned.weights, pruned.rewritten.graph), path)


def _onnx(pruned: Outcome, path: Path) -> None:
    if pruned.loaded.file is not None:
        from prunec.output.onnx_file import write as edit

        edit(pruned, path)
        return
    from prunec.backends.onnx import emit as write
    from prunec.output.tensor_view import TensorView

    write(pruned.rewritten.graph, TensorView(pruned.weights, pruned.rewritten.graph), path)


def entries(pruned: Outcome) -> list[Entry]:
    """Every stored tensor once, in its stored dtype, sliced when its turn to be written comes."""
    stored, changed, kept = (
        pruned.loaded.stored,
        pruned.replaced,
        pruned.rewritten.kept,
    )
    loaded, graph = pruned.loaded, pruned.loaded.graph
    aliases = {alias for p in graph.parameters.values() for alias in p.aliases}
    found = []
    for name in stored:
        if name in aliases or (loaded.shallower is not None and loaded.shallower.gone(name)):
            continue
        dtype = stored[name].dtype

        def produce(name: str = name) -> Sliced:
            base = changed[name].astype(stored[name].dtype) if name in changed else stored[name]
            return Sliced(base, kept.get(name, {}))

        shape = tuple(
            len(kept.get(name, {}).get(d, range(n))) for d, n in enumerate(stored[name].shape)
        )
        found.append(Entry(loaded.checkpoint_name(name), dtype, shape, produce))
    return found


def _hf(pruned: Outcome, folder: Path) -> None:
    from prunec.output.emission_hf import write_hf

    write_hf(pruned, folder, entries(pruned))


WRITERS: Mapping[str, tuple[Callable[[Outcome, Path], None], str]] = {
    "hf": (_hf, Formats.HF),
    "onnx": (_onnx, Formats.ONNX),
    "torchscript": (_torchscript, Formats.TORCHSCRIPT),
}
