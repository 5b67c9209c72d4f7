"""Write a pruned ONNX file, check it, and measure it, all with ONNX Runtime alone."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnxruntime import InferenceSession

from prunec.backends.onnx_check import open_session
from prunec.backends.onnx_double import sum_in_double
from prunec.backends.onnx_edit import Original, edit, save
from prunec.backends.onnx_masked import masked_model
from prunec.frontends.onnx import OnnxProgram
from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.measuring.feeds import Array, Feeds
from prunec.measuring.onnx_feeds import seeded_feeds
from prunec.output.interface import Interface
from prunec.output.staging import Formats
from prunec.passes.rewrite import Rewritten, rewrite
from prunec.progress import Progress
from prunec.reports.data import Check, SourceRow

if TYPE_CHECKING:
    from prunec.runs.run import Outcome

__all__ = [
    "examples",
    "output_errors",
    "pruned_model",
    "shortened",
    "unsliced",
    "verify",
    "verify_changed",
    "write",
]

LAW_1 = 1e-5
"""Largest relative difference, of sums in float64 where those in float32 differ by more."""


def shortened(file: OnnxProgram, graph: Graph) -> OnnxProgram:
    """The file as if it had been written without what `graph`, its program without some regions,
    lacks. Weights are shared."""
    whole = Original(file.model, graph, file.nodes, file.tensors)
    model = edit(whole, Rewritten(graph, {}), file.weights, set())
    makers = {value.name: node for node in model.graph for value in node.outputs if value.name}
    nodes = {
        op.result: makers[next(value.name for value in old.outputs if value.name)]
        for op in graph.ops
        if (old := file.nodes.get(op.result)) is not None
    }
    tensors = {name: held for name, held in file.tensors.items() if name in graph.parameters}
    return OnnxProgram(model, graph, file.weights, nodes, tensors)


def _original(pruned: Outcome) -> Original:
    left = pruned.loaded.left
    return Original(left.model, pruned.loaded.graph, left.nodes, left.tensors)


def _rewritten(pruned: Outcome) -> Rewritten:
    """With all that nothing reads: it stands in the file, and follows."""
    return rewrite(pruned.loaded.coupling, pruned.selections)


def pruned_model(pruned: Outcome) -> ir.Model:
    """The smaller model; its weights are cut when they are written."""
    changed = set(pruned.replaced)
    return edit(_original(pruned), _rewritten(pruned), pruned.dense_weights, changed)


def write(pruned: Outcome, path: Path) -> None:
    """Edit the file that was read. Raises P220 when the result is not valid."""
    file = pruned.loaded.file
    assert file is not None, "only files are edited"
    save(pruned_model(pruned), file.model, path)


def verify(pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
    """Law 1 on the file as written: it equals the dense one, without the regions that are gone,
    with the removed indices zeroed.

    Differences are told relative to the outputs of the dense model. Where that of the file is too
    large, both run once more with contractions that sum in float64, which tells an error from
    rounding that a deep model amplifies.
    """
    feeds = examples(pruned, _opened(pruned.loaded.source.path))
    with progress.step("Verifying", len(feeds)) as advance:
        worst = _law_1(pruned, stage, feeds, advance)
    if worst > LAW_1:
        with progress.step("Verifying with sums in float64", len(feeds)) as advance:
            worst = _law_1(pruned, stage, feeds, advance, _floats(pruned))
    return (Check("law 1", worst, LAW_1),)


def _law_1(
    pruned: Outcome,
    stage: Path,
    feeds: Sequence[Feeds],
    advance: Callable[[int], None],
    wide: Collection[str] | None = None,
) -> float:
    """The largest difference; with the contractions that give the values `wide` in float64."""
    dense = _opened(pruned.loaded.source.path)
    found = _opened(stage / Formats.ONNX)
    names = [output.name for output in found.get_outputs()]
    taken = [given.name for given in found.get_inputs()]
    if wide is not None:
        with _as_file(ir.load(stage / Formats.ONNX), stage, wide) as path:
            found = _opened(path)
    worst = 0.0
    interface = Interface(pruned.loaded.graph, pruned.selections)
    for feed in feeds:
        scale = dense.run(names, feed)
        feed = {name: feed[name] for name in taken}
        model = masked_model(
            _original(pruned), pruned.loaded.coupling, pruned.selections,
            _rewritten(pruned), pruned.dense_weights, feed,
        )  # fmt: skip
        with _as_file(model, stage, wide or ()) as path:
            masked = _opened(path).run(None, feed)  # in order: outputs may be masked
        wanted = [interface.output(*pair) for pair in zip(names, masked, strict=True)]
        given = found.run(None, interface.inputs(feed))
        worst = max(worst, _difference(given, wanted, scale))
        advance(1)
    return worst


def _floats(pruned: Outcome) -> set[str]:
    """The names of the float32 values of the file."""
    types = pruned.loaded.graph.types
    made = ((node, types[result]) for result, node in pruned.loaded.left.nodes.items())
    return {str(node.outputs[0].name) for node, type_ in made if type_.dtype == "f32"}


@contextmanager
def unsliced(pruned: Outcome, stage: Path) -> Iterator[Path]:
    """The file without the regions that are gone, and else as it was."""
    with _as_file(pruned.loaded.left.model.clone(), stage, ()) as path:
        yield path


def verify_changed(
    pruned: Outcome, path: Path, run: Callable[[Feeds], Mapping[str, Array]]
) -> tuple[Check, ...]:
    """A file of no other widths beside the program that was read, `run` with the changed weights
    or without the regions that are gone."""
    dense = _opened(pruned.loaded.source.path)
    found = _opened(path)
    names = [output.name for output in found.get_outputs()]
    taken = [given.name for given in found.get_inputs()]
    worst = 0.0
    for feed in examples(pruned, dense):
        wanted = run(feed)
        expected = [wanted[name] for name in names]
        given = found.run(names, {name: feed[name] for name in taken})
        worst = max(worst, _difference(given, expected, expected))
    return (Check("onnx", worst, LAW_1),)


def _opened(path: Path) -> InferenceSession:
    try:
        return open_session(path)
    except Exception as error:  # ONNX Runtime's derive from Exception alone
        said = " ".join(str(error).split())[:300]
        raise fail(
            "P314",
            f"ONNX Runtime cannot open the model, so nothing can be verified: {said}",
            where=str(path),
            help="leave out --verify, and check what is written where the model runs",
        ) from error


@contextmanager
def _as_file(model: ir.Model, stage: Path, wide: Collection[str]) -> Iterator[Path]:
    """A model as a file, as long as it is needed; see `sum_in_double` for `wide`."""
    if wide:
        sum_in_double(model, wide)
    with tempfile.TemporaryDirectory(dir=stage) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data=f"{path.name}.data")
        yield path


def _difference(found: Sequence[Array], wanted: Sequence[Array], dense: Sequence[Array]) -> float:
    """The largest over all outputs, each relative to the largest value of the dense one."""
    worst = 0.0
    for one, other, reference in zip(found, wanted, dense, strict=True):
        if one.dtype.kind not in "fiub":
            continue
        a, b = one.astype(np.float64), other.astype(np.float64)
        if a.shape != b.shape or not np.isfinite(a).all():
            return math.inf
        scale = max(float(np.abs(x).max(initial=0.0)) for x in (b, reference.astype(float))) or 1.0
        worst = max(worst, float(np.abs(a - b).max(initial=0.0)) / scale)
    return worst


def examples(pruned: Outcome, dense: InferenceSession) -> list[Feeds]:
    """Windows of the calibration data where there are any, else seeded inputs."""
    calibrated = pruned.calibrated
    if calibrated is not None and calibrated.samples:
        return [dict(calibrated.samples[0].inputs)]
    source, seed = pruned.loaded.source, pruned.options.seed
    return seeded_feeds(pruned.loaded.graph, lambda f: dense.run(None, f), seed, source.name)


def output_errors(pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
    """How far the outputs move on each source of calibration data, relative to their size."""
    from prunec.engines.ort_engine import OrtEngine

    calibrated = pruned.calibrated
    if calibrated is None or not calibrated.samples:
        return ()
    engine = pruned.loaded.engine
    assert isinstance(engine, OrtEngine), "files are run by ONNX Runtime"
    rows = []
    with progress.step("Measuring each source", len(calibrated.samples)) as advance:
        for sample in calibrated.samples:
            share = calibrated.sources[sample.source]
            error, samples = engine.output_error(pruned, sample.inputs)
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
                    samples=samples,
                )
            )
            advance(1)
    return tuple(rows)
