"""Weights by name, opened lazily: nothing is read before it is asked for, nothing is copied."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from prunec.frontends.safetensors_reader import Array, SafetensorsFile
from prunec.ir.diagnostics import PrunecError, fail

__all__ = [
    "INDEX",
    "SINGLE",
    "Array",
    "ArrayStore",
    "OverlayStore",
    "RenamedStore",
    "WeightStore",
    "Weights",
    "pickles",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Saved by trainers beside the weights; no checkpoint.
NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*")
SHOWN = 5


class Weights(Mapping[str, Array]):
    """Tensors by name; shapes and dtypes are known without touching data."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self[name].dtype

    def names(self) -> tuple[str, ...]:
        return tuple(self)

    def parted(self, name: str) -> bool:
        """Whether rows can be had without the others."""
        return False

    def rows(self, name: str, where: slice | Array) -> Array:
        """A copy of these indices of the first dimension; numbers are in rising order."""
        return np.array(self[name][where])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(math.prod(self.shape(n)) * self.dtype(n).itemsize for n in self)

    # Two stores are equal when they are the same store: comparing would read every weight.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class WeightStore(Weights):
    """The safetensors of a folder, in one file or in shards named by an index.

    `store[name]` is a read-only view of the memory-mapped file. Raises P101 (no weights),
    P102 (pickle only), P103 (damaged file), P104 (unknown dtype), P105 (bad index).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = tuple(SafetensorsFile(path) for path in _paths(folder))
        self._files: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file:
                if name in self._files:
                    raise fail(
                        "P105",
                        f"tensor {name} is in {self._files[name].path.name} and {file.path.name}",
                        where=str(folder),
                        help="remove the shards that do not belong to this checkpoint",
                    )
                self._files[name] = file
        _check_index(folder, self._files)

    def __getitem__(self, name: str) -> Array:
        return self._files[name][name]

    def parted(self, name: str) -> bool:
        return name in self._files

    def rows(self, name: str, where: slice | Array) -> Array:
        return self._files[name].rows(name, where)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].entries[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._files[name].entries[name].dtype


class ArrayStore(Weights):
    """Tensors held in memory."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class RenamedStore(Weights):
    """Another store under other names; several names may mean one tensor (tied weights)."""

    def __init__(self, base: Weights, stored: Mapping[str, str]) -> None:
        self.base = base
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> Array:
        return self.base[self.stored[name]]

    def parted(self, name: str) -> bool:
        return self.base.parted(self.stored[name])

    def rows(self, name: str, where: slice | Array) -> Array:
        return self.base.rows(self.stored[name], where)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self.stored[name])

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.base.dtype(self.stored[name])

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct tensors together."""
        return sum(
            math.prod(self.base.shape(n)) * self.base.dtype(n).itemsize
            for n in set(self.stored.values())
        )


class OverlayStore(Weights):
    """A store with some tensors replaced; the base stays as it is."""

    def __init__(self, base: Weights, changes: Mapping[str, Array]) -> None:
        self.base = base
        self.changes = dict(changes)

    def __getitem__(self, name: str) -> Array:
        return self.changes[name] if name in self.changes else self.base[name]

    def __contains__(self, name: object) -> bool:
        return name in self.changes or name in self.base

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        yield from (name for name in self.changes if name not in self.base)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.changes[name].shape if name in self.changes else self.base.shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.changes[name].dtype if name in self.changes else self.base.dtype(name)


def pickles(folder: Path) -> tuple[str, ...]:
    """Names of the pickle checkpoints in a folder."""
    found = {p.name for pattern in PICKLES for p in folder.glob(pattern)}
    beside = {p.name for pattern in NOT_WEIGHTS for p in folder.glob(pattern)}
    return tuple(sorted(found - beside))


def _paths(folder: Path) -> list[Path]:
    """The files that make up the checkpoint; a single file wins over an index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [_shard(folder, name) for name in sorted(set(_index(folder).values()))]
    if found := pickles(folder):
        raise fail(
            "P102",
            f"{found[0]} is a pickle checkpoint, which can run code when it is opened",
            where=str(folder),
            help="convert it first, where you trust it: load it with transformers and call"
            " save_pretrained, which writes safetensors",
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    found_instead = f"; it has {', '.join(others[:SHOWN])}" if others else ""
    raise fail(
        "P101",
        f"no weights: neither {SINGLE} nor {INDEX} is in the folder{found_instead}",
        where=str(folder),
        help="give a folder that holds a whole checkpoint (merge adapters into it first)",
    )


def _index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise _bad_index(path, "the index of the shards is not JSON with a weight_map") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index(path, "the weight_map of the index names no tensors")
    if not all(isinstance(value, str) for value in weight_map.values()):
        raise _bad_index(path, "the weight_map of the index must map names to files")
    return weight_map


def _shard(folder: Path, name: str) -> Path:
    """The path of a shard, which must lie in the folder (or in the hub cache behind it)."""
    parts = (PurePosixPath(name), PureWindowsPath(name))
    if not name or any(p.is_absolute() or p.drive or ".." in p.parts for p in parts):
        raise _bad_index(folder / INDEX, f"the index names {name!r}, outside of its folder")
    path = folder / name
    if not _is_file(path):
        raise fail(
            "P105",
            f"the index names the shard {name}, which is missing",
            where=str(folder / INDEX),
            help="fetch the missing shard",
        )
    real = path.resolve()
    if not any(real.is_relative_to(home) for home in _homes(folder)):
        raise _bad_index(path, f"the shard {name} is a link that leaves its folder")
    return path


def _is_file(path: Path) -> bool:
    """Whether there is such a file; there is none of a name that the disk cannot hold."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _homes(folder: Path) -> list[Path]:
    """Where shards may really be; snapshots in the hub's cache are links into `blobs`."""
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append((folder.parent.parent / "blobs").resolve())
    return homes


def _check_index(folder: Path, found: Mapping[str, SafetensorsFile]) -> None:
    if (folder / SINGLE).is_file():
        return
    wrong = [
        n
        for n, file in _index(folder).items()
        if n not in found or found[n].path.name != Path(file).name
    ]
    if wrong:
        raise _bad_index(
            folder / INDEX,
            f"{len(wrong)} tensors are not in the shard that the index names,"
            f" such as {', '.join(wrong[:SHOWN])}",
        )


def _bad_index(path: Path, message: str) -> PrunecError:
    return fail("P105", message, where=str(path), help="fetch or write the checkpoint again")
