"""Calibration data for a run: batches that fit a block's activations, and windows to measure on."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunec.backends.heap import BUDGET, trim
from prunec.ir.diagnostics import Exit, PrunecError, fail
from prunec.ir.graph import TensorType
from prunec.options.run import RunOptions
from prunec.progress import Progress
from prunec.runs.loading import Loaded

if TYPE_CHECKING:
    from prunec.frontends.calibration import Calibration, Share

__all__ = ["Calibrated", "Sample", "calibrate", "given_batches"]

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

TOKENS = "input_ids"
TOKENS_AT_ONCE = 2048
"""Tokens of one batch: enough to keep matrix products efficient, few enough for one block."""

NARROW = {"i32": np.int32, "f16": np.float16, "f64": np.float64, "u8": np.uint8, "i8": np.int8}
"""Dtypes that ONNX files read and no traced program does."""

HELD_OUT, MEASURED = 4, 16
"""Windows held out of each source to measure on, and about how many of all sources together."""


@dataclass(frozen=True)
class Sample:
    """Windows of one source to measure on. Where the source has no more than were asked for,
    they are some of those that the model is calibrated on: then `held_out` is false."""

    source: int
    inputs: Inputs
    held_out: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Calibrated:
    """Batches of program inputs by name; `description` says where the data come from.

    `labels` gives for every window, in the order of the batches, its place in `sources`. Sources
    are interleaved: some of the batches stand for all. `samples` are to measure each source on.
    `budget` is how many bytes of activations may stay in memory while they run.
    """

    batches: tuple[Inputs, ...]
    description: Mapping[str, Any]
    sources: tuple[Share, ...] = ()
    labels: tuple[int, ...] = ()
    samples: tuple[Sample, ...] = ()
    budget: int = BUDGET

    def describe(self) -> Mapping[str, Any]:
        return self.description


def calibrate(loaded: Loaded, options: RunOptions, progress: Progress) -> Calibrated:
    """Read or generate the calibration data that `options` (settled) ask for.

    Raises PrunecError when the data are empty, too short, cannot be tokenised, or are not what
    the program reads.
    """
    found = _read(loaded, options, progress)
    for note in found.notes:
        progress.note(note)
    main = _program_inputs(loaded, found, options)
    rows = found.inputs.get(TOKENS)
    length = options.calibration_length if rows is None else rows.shape[1]
    assert length is not None, "options are settled"
    width = _width(loaded, length)
    batches = [
        {name: array[start : start + width] for name, array in main.items()}
        for start in range(0, len(found), width)
    ]
    if loaded.file is not None and len(batches) > 1:  # a last one that is not full may not fit
        batches = [batch for batch in batches if _rows(batch) == width]
    gc.collect()  # a tokenizer lies in a cycle
    trim()  # tokenising a long text takes hundreds of megabytes
    described = {"origin": found.origin, "windows": len(found), "tokens": found.tokens}
    return Calibrated(
        tuple(batches),
        described | {"notes": list(found.notes)},
        found.sources,
        found.labels,
        _samples(loaded, found, options),
    )


def _width(loaded: Loaded, length: int) -> int:
    """Windows in a batch: as many as the program reads at once, where it says."""
    fixed = [value.type.shape[0] for value in loaded.graph.inputs if value.type.shape]
    sizes = [size for size in fixed if isinstance(size, int)]
    if loaded.file is not None and sizes:
        return min(sizes)
    return max(1, TOKENS_AT_ONCE // length)


def given_batches(loaded: Loaded, batches: Sequence[Inputs], options: RunOptions) -> Calibrated:
    """Calibration data that the caller has; the first windows are measured on.

    Raises P135 when there are none, or they are not what the program reads.
    """
    from prunec.frontends.calibration import Share

    read = [_as_inputs(loaded, batch, options) for batch in batches]
    windows = sum(map(_rows, read))
    if not windows:
        raise _unfit(options, "there is no batch, or only empty ones")
    first = {name: array[:HELD_OUT] for name, array in read[0].items()}
    return Calibrated(
        tuple(read),
        {"origin": "batches given by the caller", "windows": windows, "notes": []},
        (Share("given", "batches given by the caller", 1.0, windows),),
        (0,) * windows,
        (Sample(0, first, held_out=False),),
    )


def _as_inputs(loaded: Loaded, batch: Inputs, options: RunOptions) -> dict[str, Array]:
    """One batch as the program reads it, of sizes that it was traced with."""
    inputs = {}
    for value in loaded.graph.inputs:
        name = value.name[1:]
        if name not in batch:
            raise _unfit(options, f"the model reads {name}, and a batch has no such input")
        inputs[name] = _as_read(name, batch[name], value.type, options)
        if _differs(inputs[name], value.type):
            sizes, traced = list(batch[name].shape), list(value.type.shape)
            raise _unfit(options, f"{name} is of shape {sizes}, and was traced with {traced}")
    return inputs


def _rows(batch: Inputs) -> int:
    return len(next(iter(batch.values())))


def _read(loaded: Loaded, options: RunOptions, progress: Progress) -> Calibration:
    from prunec.frontends.calibration import calibration, gathered

    samples, length = options.calibration_samples, options.calibration_length
    assert samples is not None, "options are settled"
    assert length is not None, "options are settled"
    held_out = max(1, min(HELD_OUT, MEASURED // len(options.mixture)))
    if loaded.file is not None:
        from prunec.frontends.onnx_inputs import OnnxReader

        reader = OnnxReader(loaded.source, loaded.graph, length, options.seed)
        return gathered(reader, options.calibration, samples, held_out=held_out)
    writes = any(part.path is None for part in options.mixture)
    title = "Writing calibration text" if writes else "Reading calibration"
    with progress.step(title, samples * length) as advance:
        done = 0

        def tell(now: int, of: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        return calibration(
            loaded.source,
            loaded.model,
            options.calibration,
            samples,
            length,
            options.seed,
            tell,
            held_out=held_out,
        )


def _samples(loaded: Loaded, found: Calibration, options: RunOptions) -> tuple[Sample, ...]:
    """What each source is measured on."""
    samples = []
    for place, share in enumerate(found.sources):
        apart = found.held_out is not None and share.held_out > 0
        windows = found.held_out.of(place) if apart and found.held_out else found.of(place)
        inputs = _program_inputs(loaded, windows, options)
        few = {name: array[:HELD_OUT] for name, array in inputs.items()}
        samples.append(Sample(place, few, apart))
    return tuple(samples)


def _program_inputs(loaded: Loaded, found: Calibration, options: RunOptions) -> dict[str, Array]:
    """What the program reads of the data, checked against its types."""
    inputs = {}
    for value in loaded.graph.inputs:
        name = value.name[1:]
        if name not in found.inputs:
            raise _unfit(options, f"the model reads {name}, and the data have no such array")
        array = found.inputs[name]
        inputs[name] = _as_read(name, array, value.type, options)
        if loaded.file is not None:
            inputs[name] = inputs[name].astype(NARROW.get(value.type.dtype, inputs[name].dtype))
    if loaded.file is not None:
        return inputs  # ONNX Runtime tells what it cannot read
    if any(_differs(inputs[value.name[1:]], value.type) for value in loaded.graph.inputs):
        _try_shapes(loaded, inputs, options)
    return inputs


def _as_read(name: str, array: Array, type_: TensorType, options: RunOptions) -> Array:
    """An array in the kind of numbers that the program reads: whole ones, floats or booleans."""
    floats = "f" in type_.dtype
    if floats != (array.dtype.kind == "f"):
        wanted = "floats, as the model's processor makes them" if floats else "whole numbers"
        raise _unfit(options, f"{name} is of {array.dtype}, and the model reads {wanted}")
    if floats:
        return array
    return array.astype(np.bool_ if type_.dtype == "bool" else np.int64)


def _differs(array: Array, type_: TensorType) -> bool:
    """Whether a size is another than the program was traced with."""
    if array.ndim != len(type_.shape):
        return True
    pairs = zip(array.shape, type_.shape, strict=True)
    return any(isinstance(dim, int) and dim != size for size, dim in pairs)


def _try_shapes(loaded: Loaded, inputs: Inputs, options: RunOptions) -> None:
    """Other sizes than the traced ones may do, as in a network of convolutions, or may not."""
    from prunec.backends.interpreter import execute

    first = {name: array[:1] for name, array in inputs.items()}
    try:
        for _ in execute(loaded.graph, loaded.weights, [first]):
            return
    except (RuntimeError, IndexError, ValueError) as error:
        sizes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in inputs.items())
        traced = ", ".join(f"{v.name[1:]} {list(v.type.shape[1:])}" for v in loaded.graph.inputs)
        fact = f"the model cannot read samples of {sizes}; it is traced with {traced}"
        raise _unfit(options, fact) from error


def _unfit(options: RunOptions, fact: str) -> PrunecError:
    return fail(
        "P135",
        fact,
        where=f"--calibration {options.calibration}",
        help="save what the model's processor gives for real data, first dimension the samples",
        exit_code=Exit.USAGE,
    )
