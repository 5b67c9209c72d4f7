"""Calibration data: batches of inputs that show the model what it is used on.

They come from one source or from a mixture (`mixture`), each read as `inputs` says. Windows of all
sources are interleaved, so that any stretch of them stands for the whole, and each knows where it
comes from. A few windows of each source can be held out, to measure on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prunec.frontends.arrays import Array
from prunec.frontends.given import ARRAYS, TOKENS, Inputs, Progress, Reads
from prunec.frontends.mixture import SELF, Part, deal, interleave, parse_mixture
from prunec.frontends.source import Source
from prunec.frontends.text import detokenise_wikitext, windows
from prunec.ir.diagnostics import Exit, fail

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "SELF",
    "Calibration",
    "Progress",
    "Share",
    "calibration",
    "detokenise_wikitext",
    "gathered",
    "windows",
]


@dataclass(frozen=True)
class Share:
    """One source in the mixture: its `weight` of all (they sum to 1), how many windows it gives
    to calibrate on, and how many more are held out."""

    name: str
    origin: str
    weight: float = 1.0
    windows: int = 0
    held_out: int = 0


@dataclass(frozen=True)
class Calibration:
    """Inputs by name, each with one row a window (or image) in the first dimension.

    `labels` gives for each window its place in `sources`. `origin` says where the data come from,
    for reports; `notes` what the user should know of them. `held_out` are windows of the same
    sources, and none of these.
    """

    inputs: Mapping[str, Array]
    origin: str
    notes: tuple[str, ...] = ()
    sources: tuple[Share, ...] = ()
    labels: tuple[int, ...] = ()
    held_out: Calibration | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def tokens(self) -> int:
        """Tokens (or images) in all windows."""
        first = next(iter(self.inputs.values()))
        return first.size if TOKENS in self.inputs else len(first)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Inputs of at most `size` windows at a time, in order."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def of(self, source: int) -> Calibration:
        """The windows of one source."""
        return self._taken([i for i, label in enumerate(self.labels) if label == source])

    def split(self, held_out: int) -> tuple[Calibration, Calibration]:
        """All but the last `held_out` windows, and those."""
        assert 0 < held_out < len(self), f"{held_out} of {len(self)} windows cannot be held out"
        cut = len(self) - held_out
        return self._taken(range(cut)), self._taken(range(cut, len(self)))

    def _taken(self, rows: Sequence[int]) -> Calibration:
        """Some of the windows."""
        chosen = list(rows)
        inputs = {name: array[chosen] for name, array in self.inputs.items()}
        labels = tuple(self.labels[i] for i in chosen) if self.labels else ()
        return replace(self, inputs=inputs, labels=labels, held_out=None)


def calibration(
    source: Source,
    model: PreTrainedModel,
    spec: str,
    n: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
    *,
    held_out: int = 0,
) -> Calibration:
    """`n` windows of `length` tokens (or n images) for a model, from what `spec` names, and of
    each source `held_out` more where it has them.

    `model` may be on the meta device: it is asked what it reads, and loaded only to write text.
    Token ids and masks are int64, images float32. Fewer windows than asked for, or shorter ones,
    are noted. Raises P130 to P141, and P101 to P124 where the model has to be loaded.
    """
    from prunec.frontends.inputs import Reader

    reader = Reader(source, model, length, seed, progress)
    return gathered(reader, spec, n, held_out=held_out)


def gathered(reader: Reads, spec: str, n: int, *, held_out: int = 0) -> Calibration:
    """`n` windows of what `spec` names, and of each source `held_out` more where it has them."""
    parts = parse_mixture(spec)
    counts = deal(n, [part.weight for part in parts])
    found = [
        _read(reader, part, count, held_out)
        for part, count in zip(parts, counts, strict=True)
        if count + held_out
    ]
    _check_alike(found)
    total = sum(part.weight for part in parts)
    shares = tuple(
        Share(f.part.name, f.inputs.origin, f.part.weight / total, len(f.kept), len(f.rest))
        for f in found
    )
    notes = _notes(parts, counts, found, held_out)
    main = _mixed(found, [f.kept for f in found], shares, notes)
    assert main is not None, "every source has at least one window"
    return replace(main, held_out=_mixed(found, [f.rest for f in found], shares, ()))


@dataclass(frozen=True)
class _Found:
    """Windows of one source, in those to calibrate on (`kept`) and those held out (`rest`)."""

    part: Part
    inputs: Inputs
    kept: list[int]
    rest: list[int]


def _read(reader: Reads, part: Part, count: int, held_out: int) -> _Found:
    """Windows beyond `count` are held out, from places spread evenly over the source."""
    inputs = reader.read(part, count + held_out)
    spare = max(0, len(inputs) - count)
    rest = {(2 * i + 1) * len(inputs) // (2 * spare) for i in range(spare)}
    kept = [i for i in range(len(inputs)) if i not in rest]
    if len(kept) < count:
        length = inputs.arrays[TOKENS].shape[1] if TOKENS in inputs.arrays else 0
        what = f"windows of {length} tokens" if length else "samples"
        inputs.notes.append(f"{part.name} holds {len(kept)} {what}, not {count}")
    return _Found(part, inputs, kept, sorted(rest))


def _check_alike(found: Sequence[_Found]) -> None:
    """Windows of one shape can be in one batch."""
    first = found[0]
    for other in found[1:]:
        for name in _common(found):
            shapes = [list(f.inputs.arrays[name].shape[1:]) for f in (first, other)]
            if shapes[0] == shapes[1]:
                continue
            raise fail(
                "P141",
                f"{name} of {other.part.name} has windows of shape {shapes[1]}, of"
                f" {first.part.name} of {shapes[0]}",
                where="--calibration",
                help=_remedy(name, first, other),
                exit_code=Exit.USAGE,
            )


def _remedy(name: str, *found: _Found) -> str:
    """Texts can be cut to the length of arrays, arrays only by whoever saved them."""
    fixed = [f.inputs.arrays[name] for f in found if f.inputs.origin.startswith(ARRAYS)]
    if name == TOKENS and len(fixed) == 1:
        return f"cut the text alike: --calibration-length {fixed[0].shape[1]}"
    return "pad or cut all samples to one shape"


def _common(found: Sequence[_Found]) -> list[str]:
    """Inputs that every source gives."""
    return [name for name in found[0].inputs.arrays if all(name in f.inputs.arrays for f in found)]


def _mixed(
    found: Sequence[_Found],
    rows: Sequence[list[int]],
    shares: tuple[Share, ...],
    notes: tuple[str, ...],
) -> Calibration | None:
    labels = interleave([len(chosen) for chosen in rows])
    if not labels:
        return None
    order = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
    inputs = {}
    for name in _common(found):
        taken = [f.inputs.arrays[name][some] for f, some in zip(found, rows, strict=True)]
        inputs[name] = np.concatenate(taken)[order]
    return Calibration(inputs, _origin(shares), notes, shares, tuple(labels))


def _origin(shares: Sequence[Share]) -> str:
    if len(shares) == 1:
        return shares[0].origin
    total = sum(share.windows for share in shares)
    return ", ".join(f"{share.windows / total:.0%} {share.origin}" for share in shares)


def _notes(
    parts: Sequence[Part], counts: Sequence[int], found: Sequence[_Found], held_out: int
) -> tuple[str, ...]:
    unused = "measured and not calibrated on" if held_out else "not used"
    lost = [
        f"{part.name} is {unused}: there are more sources than windows"
        for part, count in zip(parts, counts, strict=True)
        if not count
    ]
    return tuple(dict.fromkeys([*(note for f in found for note in f.inputs.notes), *lost]))
