"""What pruning does to each source of calibration data, on windows held out from it.

A model of language is measured by the mean negative log-likelihood of every token but the first
of each window, dense and pruned; any other model by how far its outputs move. Both programs run on
the executor, a few windows of each source, so that the cost does not grow with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from prunec.backends.forward import Forward, Result
from prunec.engines.logits import logits_of
from prunec.engines.masking import LOGITS
from prunec.engines.outputs import Outputs, SquaredError
from prunec.measuring.samples import first_numbers, next_tokens
from prunec.progress import Progress
from prunec.reports.data import SampleRow, SourceRow
from prunec.runs.calibrating import TOKENS, Sample

if TYPE_CHECKING:
    from prunec.runs.loading import Loaded
    from prunec.runs.run import Outcome

__all__ = [
    "CROSS_ENTROPY",
    "DECODED",
    "OUTPUT_ERROR",
    "counted",
    "source_rows",
    "writes_text",
]

CROSS_ENTROPY, OUTPUT_ERROR = "cross_entropy", "output_error"
MASK, DECODED = "attention_mask", "decoder_input_ids"

Array = npt.NDArray[Any]
Window = Mapping[str, Array]
Windows = Sequence[tuple[int, Window]]
"""Windows of one row with the source of each."""


@dataclass(frozen=True)
class Measured:
    """A metric of one source, dense and pruned, over `count` tokens (or images)."""

    metric: str
    dense: float
    pruned: float
    count: int
    samples: tuple[SampleRow, ...] = ()


def source_rows(pruned: Outcome, progress: Progress) -> tuple[SourceRow, ...]:
    """One row for each source that the run was calibrated on; none without calibration data."""
    calibrated = pruned.calibrated
    if calibrated is None or not calibrated.samples:
        return ()
    windows = [(s.source, window) for s in calibrated.samples for window in _windows(s)]
    measure = _losses if writes_text(pruned.loaded) else _errors
    with progress.step("Measuring each source", 2 * len(windows)) as advance:
        found = measure(pruned, windows, lambda: advance(1))
    return tuple(_row(pruned, sample, found[sample.source]) for sample in calibrated.samples)


def _losses(pruned: Outcome, windows: Windows, advance: Callable[[], None]) -> dict[int, Measured]:
    """Cross-entropies: one program after the other, so that one output head is held at a time."""
    sums = {source: _Loss() for source, _ in windows}
    for side in (0, 1):
        forward = _forward(pruned, side, windows)
        for i, (source, window) in enumerate(windows):
            sums[source].add(side, window, forward.result(i))
            advance()
        del forward
    decode = _decoder(pruned.loaded)
    return {
        source: Measured(CROSS_ENTROPY, *found.means(), found.samples(decode))
        for source, found in sums.items()
    }


def _errors(pruned: Outcome, windows: Windows, advance: Callable[[], None]) -> dict[int, Measured]:
    """Output errors: both programs side by side."""
    sums = {source: SquaredError() for source, _ in windows}
    counts = dict.fromkeys(sums, 0)
    samples: dict[int, tuple[SampleRow, ...]] = {}
    dense, small = (_forward(pruned, side, windows) for side in (0, 1))
    for i, (source, window) in enumerate(windows):
        for wanted, found in zip(dense.pieces(i), small.pieces(i), strict=True):
            sums[source].add(wanted, found)
            if source not in samples:
                samples[source] = first_numbers(_arrays(wanted), _arrays(found))
        tokens = window.get(TOKENS)
        counts[source] += 1 if tokens is None else tokens.size
        advance()
        advance()
    return {
        s: Measured(OUTPUT_ERROR, 0.0, math.sqrt(e.mean()), counts[s], samples[s])
        for s, e in sums.items()
    }


def _forward(pruned: Outcome, side: int, windows: Windows) -> Forward:
    inputs = [window for _, window in windows]
    if side == 0:
        return Forward(pruned.loaded.whole.graph, pruned.loaded.whole.weights, inputs)
    return Forward(pruned.rewritten.graph, pruned.weights, inputs)


def _windows(sample: Sample) -> Iterator[Window]:
    """The windows of a sample one by one, each with a batch dimension."""
    for i in range(len(sample)):
        yield {name: array[i : i + 1] for name, array in sample.inputs.items()}


def writes_text(loaded: Loaded) -> bool:
    """Whether the model gives each next token a probability."""
    reads = {value.name[1:] for value in loaded.graph.inputs}
    gives = {name for name, _ in loaded.graph.outputs}
    can = getattr(loaded.model, "can_generate", lambda: False)()
    return bool(can and LOGITS in gives and reads & {TOKENS, DECODED})


def _row(pruned: Outcome, sample: Sample, found: Measured) -> SourceRow:
    assert pruned.calibrated is not None
    share = pruned.calibrated.sources[sample.source]
    return SourceRow(
        name=share.name,
        origin=share.origin,
        weight=share.weight,
        windows=share.windows,
        measured=len(sample),
        held_out=sample.held_out,
        tokens=found.count,
        metric=found.metric,
        dense=found.dense,
        pruned=found.pruned,
        samples=found.samples,
    )


def _arrays(outputs: Outputs) -> dict[str, Array]:
    return {
        name: value.float().numpy() for name, value in outputs.items() if value.is_floating_point()
    }


def _decoder(loaded: Loaded) -> Callable[[Sequence[int]], str]:
    """Token ids as text, or as numbers where there is no tokenizer."""
    from prunec.frontends.text import load_tokenizer

    if not loaded.source.tokenizer:
        return lambda ids: " ".join(map(str, ids))
    tokenizer = load_tokenizer(loaded.source)
    return lambda ids: str(tokenizer.decode(ids))


class _Loss:
    """Sums of negative log-likelihoods of the next tokens, dense and pruned, and the likeliest
    tokens of the first window."""

    def __init__(self) -> None:
        self.sums, self.counts = [0.0, 0.0], [0, 0]
        self.written: list[int] = []
        self.likeliest: tuple[list[int], list[int]] = ([], [])

    def add(self, side: int, window: Window, result: Result) -> None:
        written = window[DECODED if DECODED in window else TOKENS][0]
        counts = counted(window, written)
        first = not self.counts[side]
        if first:
            self.written = written.tolist()
        at = 0
        for logits in logits_of(result):
            if first:
                self.likeliest[side].extend(logits.likeliest().tolist())
            norm = logits.norm()
            targets = torch.from_numpy(written[at + 1 : at + 1 + len(norm)]).long()
            used = counts[at + 1 : at + 1 + len(norm)]
            losses = (norm[: len(targets)] - logits.at(targets)).double()
            self.sums[side] += float(losses[used].sum())
            self.counts[side] += int(used.sum())
            at += len(norm)

    def means(self) -> tuple[float, float, int]:
        dense, small = (
            s / n if n else math.nan for s, n in zip(self.sums, self.counts, strict=True)
        )
        return dense, small, self.counts[0]

    def samples(self, decode: Callable[[Sequence[int]], str]) -> tuple[SampleRow, ...]:
        return next_tokens(self.written, *self.likeliest, decode)


def counted(window: Window, written: Array) -> torch.Tensor:
    """Which tokens count: those that the model reads, after one that it reads."""
    mask = window.get(MASK)
    if mask is None or DECODED in window:
        return torch.ones(len(written), dtype=torch.bool)
    read = torch.from_numpy(mask[0] != 0)
    return read & read.roll(1)
