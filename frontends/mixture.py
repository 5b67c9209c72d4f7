"""What `--calibration` names: sources of data, and the part that each takes in the mixture.

    a.txt                       one source
    a.txt:0.7,b.jsonl:0.3       weights say how the windows are shared out
    self:0.5,news/              `self` is what the model makes by itself; without a weight: 1

Weights are relative: `7` and `3` mean the same as `0.7` and `0.3`. A file whose name is `self`,
`none` or `auto` is named with its folder (`./self`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunec.ir.diagnostics import Diagnostic, Exit, PrunecError

__all__ = ["SELF", "Part", "deal", "interleave", "parse_mixture", "spell_mixture"]

SELF = "self"
WORDS = ("none", "auto")
REMEDY = "for example --calibration a.txt:0.7,b.jsonl:0.3"


@dataclass(frozen=True)
class Part:
    """One source. `place` is what was typed (a path, or `self`), `name` what reports call it:
    the end of the path, as long as it takes to tell the sources apart."""

    place: str
    weight: float = 1.0
    name: str = SELF

    @property
    def path(self) -> Path | None:
        """The file or folder, or None when the model makes the data by itself."""
        return None if self.place == SELF else Path(self.place).expanduser()


def parse_mixture(spec: str) -> tuple[Part, ...]:
    """The sources that `spec` names, in order; their names differ. Nothing is opened.

    Raises P137 (exit 2) with every mistake: an empty or repeated name, a weight that is not a
    positive number.
    """
    problems: list[Diagnostic] = []
    parts: list[Part] = []
    for piece in [spec] if _exists(spec) else _pieces(spec):
        place, weight = _weighted(piece)
        problems += _mistakes(spec, place, weight, parts)
        parts.append(Part(place, _number(weight)))
    if problems:
        raise PrunecError(problems, Exit.USAGE)
    names = _names([part.place for part in parts])
    return tuple(Part(part.place, part.weight, n) for part, n in zip(parts, names, strict=True))


def spell_mixture(parts: Sequence[Part]) -> str:
    """The text that means `parts` from any working directory."""
    places = [SELF if part.path is None else str(part.path.absolute()) for part in parts]
    if len(parts) == 1:
        return places[0]
    return ",".join(f"{place}:{part.weight!r}" for place, part in zip(places, parts, strict=True))


def deal(n: int, weights: Sequence[float]) -> list[int]:
    """`n` windows shared out by weight: largest remainders, and one each where there are enough."""
    assert all(weight > 0 for weight in weights)
    top = max(weights)
    total = sum(weight / top for weight in weights)
    quotas = [n * (weight / top) / total for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - quotas[i], i))
    for i in order[: n - sum(counts)]:
        counts[i] += 1
    while n >= len(counts) and 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def interleave(counts: Sequence[int]) -> list[int]:
    """The source of each window, in an order that mixes them: every stretch has about the shares
    of the whole, so that any few windows stand for all."""
    places = [((k + 0.5) / count, i) for i, count in enumerate(counts) for k in range(count)]
    return [source for _, source in sorted(places)]


def _exists(place: str) -> bool:
    return place not in ("", SELF) and os.path.exists(Path(place).expanduser())


def _pieces(spec: str) -> Iterator[str]:
    """Split at commas, except within the name of a file that exists."""
    words = spec.split(",")
    at = 0
    while at < len(words):
        ends = range(len(words), at + 1, -1)
        joined = (",".join(words[at:end]) for end in ends)
        width = next((e - at for e, p in zip(ends, joined, strict=True) if _is_named(p)), 1)
        yield ",".join(words[at : at + width]).strip()
        at += width


def _is_named(piece: str) -> bool:
    place, _, weight = piece.rpartition(":")
    return _exists(piece) or ("," not in weight and _exists(place))


def _weighted(piece: str) -> tuple[str, str]:
    """A place and the text of its weight; a colon may also belong to a path."""
    if _exists(piece) or ":" not in piece:
        return piece, "1"
    place, _, weight = piece.rpartition(":")
    is_path = not (place == SELF or _exists(place) or _is_number(weight))
    return (piece, "1") if is_path else (place.strip(), weight.strip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return not text.strip()  # a weight that was forgotten
    return True


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _mistakes(spec: str, place: str, weight: str, earlier: Sequence[Part]) -> Iterator[Diagnostic]:
    if not place:
        yield _mistake(spec, "a source has no name", REMEDY)
    elif place in WORDS:
        help_ = f"name a file called so with its folder: ./{place}"
        yield _mistake(spec, f"{place!r} cannot be mixed with other sources", help_)
    elif any(part.place == place for part in earlier):
        yield _mistake(spec, f"{place} is named twice", "name it once, with one weight")
    value = _number(weight)
    if math.isnan(value):
        said = f"is not a number: {weight!r}" if weight else "is missing after the colon"
        yield _mistake(spec, f"the weight of {place} {said}", REMEDY)
    elif not 0 < value < math.inf:
        yield _mistake(
            spec, f"the weight of {place} must be a positive number, not {weight}", REMEDY
        )


def _mistake(spec: str, fact: str, remedy: str) -> Diagnostic:
    return Diagnostic("P137", fact, f"--calibration {spec}", help=remedy)


def _names(places: Sequence[str]) -> list[str]:
    """The last part of each path, with as many folders before it as make all names differ."""
    paths = [Path(place).expanduser().absolute().parts for place in places]
    lengths = [1] * len(places)
    while True:
        names = [
            place if place == SELF else "/".join(parts[-length:])
            for place, parts, length in zip(places, paths, lengths, strict=True)
        ]
        alike = [i for i, name in enumerate(names) if names.count(name) > 1]
        longer = [i for i in alike if lengths[i] < len(paths[i])]
        if not longer:
            return names
        for i in longer:
            lengths[i] += 1
