"""Write a pruned ONNX file, check it, and measure it, all with ONNX Runtime alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from prunec.backends.onnx_check import open_session
from prunec.backends.onnx_edit import Original, edit, save
from prunec.backends.onnx_masked import masked_model
from prunec.feeds import Array, Feeds
from prunec.output import Formats
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.progress import Progress
from prunec.reports import Check, SourceRow

if TYPE_CHECKING:
    from prunec.pipeline import Pruned

__all__ = ["examples", "output_errors", "pruned_model", "verify", "write"]

LAW_1 = 1e-5
"""Largest relative difference: slicing changes the order of float32 sums."""

SHAPES = ((2, 17), (3, 29))
"""Batch sizes and lengths that the file is run at, where its sizes are free."""

SAFE_TOKENS = 32


def _original(pruned: Pruned) -> Original:
    file = pruned.loaded.file
    assert file is not None, "only files are edited"
    return Original(file.model, pruned.loaded.graph, file.nodes, file.tensors)


def _rewritten(pruned: Pruned) -> Rewritten:
    """With all that nothing reads: it stands in the file, and follows."""
    return rewrite(pruned.loaded.coupling, pruned.compressed.selections)


def pruned_model(pruned: Pruned) -> ir.Model:
    """The smaller model; its weights are cut when they are written."""
    changed = set(pruned.compressed.weights)
    return edit(_original(pruned), _rewritten(pruned), pruned.dense_weights, changed)


def write(pruned: Pruned, path: Path) -> None:
    """Edit the file that was read. Raises P220 when the result is not valid."""
    file = pruned.loaded.file
    assert file is not None, "only files are edited"
    save(pruned_model(pruned), file.model, path)


def verify(pruned: Pruned, stage: Path, progress: Progress) -> tuple[Check, ...]:
    """Law 1 on the file as written: it equals the dense one with the removed indices zeroed."""
    path = stage / Formats.ONNX
    feeds = examples(pruned)
    worst = 0.0
    with progress.step("Verifying", len(feeds)) as advance:
        session = open_session(path)
        names = [output.name for output in session.get_outputs()]
        for feed in feeds:
            found = session.run(names, feed)
            wanted = _masked(pruned, feed, stage)
            worst = max(worst, *(_difference(a, b) for a, b in zip(found, wanted, strict=True)))
            advance(1)
    return (Check("law 1", worst, LAW_1),)


def _masked(pruned: Pruned, feeds: Feeds, stage: Path) -> list[Array]:
    model = masked_model(
        _original(pruned), pruned.loaded.coupling, pruned.compressed.selections,
        _rewritten(pruned), pruned.dense_weights, feeds,
    )  # fmt: skip
    folder = stage / "masked"
    folder.mkdir()
    try:
        ir.save(model, folder / "masked.onnx", external_data="masked.onnx.data")
        session = open_session(folder / "masked.onnx")
        found: list[Array] = session.run([o.name for o in session.get_outputs()], feeds)
        return found
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _difference(found: Array, wanted: Array) -> float:
    if found.shape != wanted.shape or not np.isfinite(found.astype(np.float64)).all():
        return math.inf
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    scale = float(np.abs(b).max(initial=0.0)) or 1.0
    return float(np.abs(a - b).max(initial=0.0)) / scale


def examples(pruned: Pruned) -> list[Feeds]:
    """Seeded inputs at two shapes, or at the one that the file allows; masks are ones."""
    graph = pruned.loaded.graph
    rng = np.random.default_rng(pruned.options.seed)
    found = []
    free = [d for value in graph.inputs for d in value.type.shape if isinstance(d, str)]
    for batch, length in SHAPES if free else SHAPES[:1]:
        sizes = _sizes(pruned, batch, length)
        feeds: Feeds = {}
        for value in graph.inputs:
            shape = [d if isinstance(d, int) else sizes[d] for d in value.type.shape]
            feeds[value.name[1:]] = _filled(value.name[1:], value.type.dtype, shape, rng)
        found.append(feeds)
    return found


def _sizes(pruned: Pruned, batch: int, length: int) -> dict[str, int]:
    """First dimensions are batches; sizes that must be multiples are two or three of them."""
    from prunec.ir.sizes import dim_size

    sizes: dict[str, int] = {}
    symbols = dict.fromkeys(pruned.loaded.graph.symbols, length)
    for value in pruned.loaded.graph.inputs:
        for i, dim in enumerate(value.type.shape):
            if isinstance(dim, str) and dim in symbols and i == 0:
                symbols[dim] = batch
    for value in pruned.loaded.graph.inputs:
        for dim in value.type.shape:
            if isinstance(dim, str):
                small = dict.fromkeys(symbols, batch) if "*" in dim else symbols
                sizes[dim] = dim_size(dim, small)
    return sizes


def _filled(name: str, dtype: str, shape: list[int], rng: np.random.Generator) -> Array:
    kinds = {"f32": "float32", "f16": "float16", "f64": "float64", "i64": "int64", "i32": "int32"}
    kind = np.dtype(kinds.get(dtype, {"u8": "uint8", "i8": "int8"}.get(dtype, "bool")))
    if kind.kind == "b" or "mask" in name:
        return np.ones(shape, kind)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    return rng.integers(0, SAFE_TOKENS, shape).astype(kind)


def output_errors(pruned: Pruned, progress: Progress) -> tuple[SourceRow, ...]:
    """How far the outputs move on each source of calibration data, relative to their size."""
    from prunec.ort_engine import OrtEngine

    calibrated = pruned.calibrated
    if calibrated is None or not calibrated.samples:
        return ()
    engine = pruned.loaded.engine
    assert isinstance(engine, OrtEngine), "files are run by ONNX Runtime"
    rows = []
    with progress.step("Measuring each source", len(calibrated.samples)) as advance:
        for sample in calibrated.samples:
            share = calibrated.sources[sample.source]
            error = engine.output_error(pruned, sample.inputs)
            rows.append(
                SourceRow(
                    name=share.name,
                    origin=share.origin,
                    weight=share.weight,
                    windows=share.windows,
                    measured=len(sample),
                    held_out=sample.held_out,
                    tokens=len(sample),
                    metric="output_error",
                    dense=0.0,
                    pruned=error,
                )
            )
            advance(1)
    return tuple(rows)
