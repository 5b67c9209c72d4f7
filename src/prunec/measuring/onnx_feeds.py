"""Seeded inputs that an ONNX file runs on, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations, product

import numpy as np

from prunec.ir.diagnostics import fail
from prunec.ir.graph import Graph
from prunec.ir.sizes import dim_size
from prunec.measuring.feeds import Array, Feeds

__all__ = ["seeded_feeds"]

TRIED = (
    ((2, 17), (3, 29)), ((1, 17), (1, 29)), ((2, 512), (3, 1024)), ((2, 512), (3, 512)),
    ((1, 512), (1, 1024)), ((2, 256), (3, 256)),
)  # fmt: skip
"""Batch sizes and lengths that the file is run at, where its sizes are free: the first two that
it takes."""

MOST_FREE = 4
"""Sizes of which each may be a batch or a length, at most."""

SAFE_TOKENS = 32


def seeded_feeds(
    graph: Graph, run: Callable[[Feeds], object], seed: int, where: str
) -> list[Feeds]:
    """Inputs of a program at two batch sizes and lengths, or at the one that the file allows:
    the first that `run` takes. Raises P866 when it takes none.

    Masks are ones, pictures have bars on them: on plain noise detectors see nothing, and what they
    say of that is all rounding. Sound, which may have any length, lies between -1 and 1.
    """
    free = any(isinstance(d, str) for value in graph.inputs for d in value.type.shape)
    problem: Exception | None = None
    for batches, shapes in product(_batches(graph), TRIED if free else TRIED[:1]):
        feeds = [_seeded(graph, batches, n, length, seed) for n, length in shapes]
        try:
            for feed in feeds:
                run(feed)
        except Exception as error:  # ONNX Runtime's derive from Exception alone
            problem = problem or error
            continue
        return feeds if free else feeds[:1]
    said = " ".join(str(problem).split())[:300]
    raise fail(
        "P866",
        f"the model runs on no inputs that could be made up: {said}",
        where=where,
        help="give real ones: --calibration FILE.npz",
    )


def _batches(graph: Graph) -> list[frozenset[str]]:
    """Which sizes may be batches: those of first dimensions, and then others too, which a file
    that has no names for its sizes does not tell."""
    first = frozenset(d for v in graph.inputs for d in v.type.shape[:1] if isinstance(d, str))
    others = dict.fromkeys(d for v in graph.inputs for d in v.type.shape if isinstance(d, str))
    others = {name: None for name in others if name in graph.symbols and name not in first}
    if len(others) > MOST_FREE:
        return [first]
    some = chain.from_iterable(combinations(others, k) for k in range(len(others) + 1))
    return [first | set(names) for names in some]


def _seeded(graph: Graph, batches: frozenset[str], batch: int, length: int, seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    sizes = _sizes(graph, batches, batch, length)
    feeds: Feeds = {}
    for value in graph.inputs:
        shape = [d if isinstance(d, int) else sizes[d] for d in value.type.shape]
        array = _filled(value.name[1:], value.type.dtype, shape, rng)
        sound = array.dtype.kind == "f" and array.ndim == 2 and isinstance(value.type.shape[1], str)
        feeds[value.name[1:]] = array / array.dtype.type(3) if sound else array
    return feeds


def _sizes(graph: Graph, batches: frozenset[str], batch: int, length: int) -> dict[str, int]:
    """Of every size of run time; pictures are some multiples of what they must be."""
    symbols = {name: batch if name in batches else length for name in graph.symbols}
    pictures = dict.fromkeys(symbols, batch + 3)
    return {
        dim: dim_size(dim, pictures if "*" in dim else symbols)
        for value in graph.inputs
        for dim in value.type.shape
        if isinstance(dim, str)
    }


def _filled(name: str, dtype: str, shape: list[int], rng: np.random.Generator) -> Array:
    kinds = {"f32": "float32", "f16": "float16", "f64": "float64", "i64": "int64", "i32": "int32"}
    kind = np.dtype(kinds.get(dtype, {"u8": "uint8", "i8": "int8"}.get(dtype, "bool")))
    if kind.kind == "b" or "mask" in name:
        return np.ones(shape, kind)
    if kind.kind != "f":
        return rng.integers(0, SAFE_TOKENS, shape).astype(kind)
    noise = rng.standard_normal(shape)
    if len(shape) == 4:
        rows, columns = np.arange(shape[2]) // 24 % 2, np.arange(shape[3]) // 6 % 2
        noise = noise / 10 + 2 - 3.5 * rows[:, None] * columns[None, :]
    return noise.astype(kind)
