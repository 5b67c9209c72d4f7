"""Calibration data as arrays by input name: an `.npz` file, or a folder of batches.

A folder holds `.npz` files, each a batch with its arrays by input name, or `.npy` files whose name
or folder is the input's: `pixel_values.npy`, `pixel_values-007.npy`, `pixel_values/007.npy`. The
first dimension of every array counts samples. Only the samples that are used are read.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from prunec.ir.diagnostics import Exit, PrunecError, fail

__all__ = ["Array", "bad_arrays", "read_arrays"]

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

T = TypeVar("T")

MOST_PACKED = 1100
"""Bytes that one packed byte may stand for: deflate reaches 1032."""

KINDS = "biuf"
"""Numbers that a model can read."""


@dataclass(frozen=True)
class _Batch:
    """Arrays by input name that are not read before `load` is called."""

    where: Path
    shapes: Mapping[str, tuple[int, ...]]
    load: Callable[[], Arrays]

    def __len__(self) -> int:
        return next(iter(self.shapes.values()))[0]


def read_arrays(path: Path, accepted: Collection[str], n: int) -> tuple[dict[str, Array], int]:
    """At most `n` samples spread evenly over those of `path`, and how many it has.

    Integers become int64 and floats float32. `accepted` are the names of the model's inputs.
    Raises P135: unreadable, an unknown name, arrays without samples or of unlike numbers, values
    that are not finite.
    """
    batches = list(_batches(path, accepted))
    for batch in batches:
        _check(batch, accepted)
    _check_alike(batches)
    total = sum(map(len, batches))
    rows = np.arange(min(n, total)) * total // min(n, total)
    found: dict[str, list[Array]] = {name: [] for name in batches[0].shapes}
    start = 0
    for batch in batches:
        chosen = rows[(rows >= start) & (rows < start + len(batch))] - start
        start += len(batch)
        if not len(chosen):
            continue
        arrays = batch.load()
        for name in found:
            found[name].append(_widened(arrays[name][chosen], name, batch.where))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}, total


def bad_arrays(path: Path, fact: str, remedy: str = "") -> PrunecError:
    return fail(
        "P135",
        fact,
        where=str(path),
        help=remedy
        or "save one array for each input of the model, first dimension the samples:"
        " numpy.savez(file, pixel_values=...)",
        exit_code=Exit.USAGE,
    )


def _batches(path: Path, accepted: Collection[str]) -> Iterator[_Batch]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    files = sorted((p for p in files if p.suffix.lower() in (".npz", ".npy")), key=_numbered)
    yield from (_packed(file) for file in files if file.suffix.lower() == ".npz")
    loose: dict[str, dict[str, Path]] = {}
    for file in files:
        if file.suffix.lower() == ".npy":
            name, batch = _named(file, accepted)
            loose.setdefault(batch, {})[name] = file
    yield from (_loose(path, named) for named in loose.values())


def _numbered(path: Path) -> list[tuple[int, str]]:
    """A key that puts batch 2 before batch 10."""
    return [(int(w or 0), "") if w.isdigit() else (0, w) for w in re.split(r"(\d+)", str(path))]


def _named(file: Path, accepted: Collection[str]) -> tuple[str, str]:
    """The input and the batch that a `.npy` file is named for."""
    if file.parent.name in accepted:
        return file.parent.name, file.stem
    fitting = [
        name for name in accepted if re.fullmatch(rf"{re.escape(name)}([-_.].*)?", file.stem)
    ]
    if fitting:
        name = max(fitting, key=len)
        return name, file.stem.removeprefix(name)
    raise bad_arrays(
        file,
        f"the model has no input that {file.name} is named for",
        "call .npy files after an input, such as "
        + " or ".join(f"{name}.npy" for name in sorted(accepted)[:3]),
    )


def _packed(path: Path) -> _Batch:
    def load() -> Arrays:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def shapes() -> dict[str, tuple[int, ...]]:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _header(archive.open(info), info.file_size)
                for info in archive.infolist()
                if _credible(info)
            }

    return _Batch(path, _told(path, shapes), lambda: _told(path, load))


def _loose(path: Path, named: Mapping[str, Path]) -> _Batch:
    def load() -> Arrays:
        return {name: np.load(file, mmap_mode="r") for name, file in named.items()}

    def shapes() -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in load().items()}

    where = next(iter(named.values()))
    return _Batch(where, _told(path, shapes), lambda: _told(path, load))


def _credible(info: zipfile.ZipInfo) -> bool:
    """Whether so few bytes can unpack to so many; ValueError otherwise."""
    if info.file_size <= MOST_PACKED * (info.compress_size + 1):
        return True
    raise ValueError(f"{info.filename} says that it unpacks to {info.file_size:,} bytes")


def _header(stream: Any, size: int) -> tuple[int, ...]:
    """The shape of an array, read without its values, which must be in the `size` bytes of it."""
    with stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"an array of shape {list(shape)} does not fit into {size:,} bytes")
        return tuple(shape)


def _told(path: Path, run: Callable[[], T]) -> T:
    try:
        return run()
    except Exception as error:  # the readers of headers and of archives raise anything
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad_arrays(path, f"the arrays cannot be read: {said}") from error


def _check(batch: _Batch, accepted: Collection[str]) -> None:
    unknown = sorted(set(batch.shapes) - set(accepted))
    if unknown:
        known = ", ".join(sorted(accepted))
        raise bad_arrays(
            batch.where, f"the model has no input {', '.join(unknown)}", f"its inputs are {known}"
        )
    counts = {shape[0] if shape else 0 for shape in batch.shapes.values()}
    if len(counts) != 1 or 0 in counts:
        fact = "the arrays differ in their first dimension, or are empty"
        raise bad_arrays(batch.where, fact)


def _check_alike(batches: Sequence[_Batch]) -> None:
    """Every batch has the same inputs, and samples of the same shape."""
    first = batches[0]
    for batch in batches:
        if set(batch.shapes) != set(first.shapes):
            odd = ", ".join(sorted(set(batch.shapes) ^ set(first.shapes)))
            raise bad_arrays(batch.where, f"{odd} is in some batches and not in others")
        for name, shape in batch.shapes.items():
            if shape[1:] != first.shapes[name][1:]:
                fact = f"{name} has samples of {list(shape[1:])} here, elsewhere of"
                raise bad_arrays(
                    batch.where,
                    f"{fact} {list(first.shapes[name][1:])}",
                    "pad or cut all samples to one shape",
                )


def _widened(array: Array, name: str, where: Path) -> Array:
    """Integers as int64 and floats as float32, as models expect them."""
    if array.dtype.kind not in KINDS:
        raise bad_arrays(where, f"{name} is of {array.dtype}, and models read numbers")
    if array.dtype == np.bool_:
        return np.asarray(array)
    if array.dtype.kind in "iu":
        return np.asarray(array, np.int64)
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        wide = np.asarray(array, np.float32)
    if not np.isfinite(wide).all():
        raise bad_arrays(where, f"{name} has values that are not finite")
    return wide
