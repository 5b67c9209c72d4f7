"""Check a pruned model: law 1 (prune = mask) and law 5 (all formats agree), on real runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from prunec.backends.interpreter import SEED, execute
from prunec.backends.masked import execute_masked
from prunec.ir.axes import atoms
from prunec.measuring.feeds import TOKENS
from prunec.measuring.runners import Runner, open_hf, open_onnx, open_torchscript
from prunec.output.staging import Formats
from prunec.progress import Progress
from prunec.reports.data import Check

if TYPE_CHECKING:
    from prunec.runs.run import Outcome

__all__ = ["SHAPES", "examples", "law_1", "relative_difference", "verify"]

Array = npt.NDArray[Any]

SHAPES = ((2, 17), (3, 29))
"""Batch sizes and lengths that every format is run at."""

ALLOWED = {"law 1": 1e-5, "hf": 0.0, "torchscript": 1e-5, "onnx": 1e-4}
"""Largest relative difference: stock code runs the same kernels, ONNX Runtime has its own. For
law 1 all values are float32 and contractions sum in float64: slicing changes the order of float32
sums, and a deep model amplifies that rounding (of either program) past any fixed tolerance."""


def examples(pruned: Outcome) -> list[dict[str, Array]]:
    """The inputs that a module came with, or seeded ones at two shapes; masks are all ones."""
    if pruned.loaded.examples:
        return [dict(feeds) for feeds in pruned.loaded.examples]
    graph = pruned.loaded.graph
    rng = np.random.default_rng(pruned.options.seed)
    vocab = int(getattr(pruned.loaded.config.get_text_config(), "vocab_size", 2))
    vocab = vocab if pruned.tokens is None else len(pruned.tokens)
    found = []
    for batch, length in SHAPES:
        feeds: dict[str, Array] = {}
        for value in graph.inputs:
            name = value.name[1:]
            shape = [
                d if isinstance(d, int) else batch if d == "batch" else length
                for d in value.type.shape
            ]
            if "mask" in name:
                feeds[name] = np.ones(shape, dtype=np.int64)
            elif value.type.dtype.startswith("i"):
                feeds[name] = rng.integers(0, vocab, shape)
            else:
                feeds[name] = rng.standard_normal(shape).astype(np.float32)
        found.append(feeds)
    return found


def relative_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest absolute difference of any output over the largest absolute value of it.
    Infinities, as scores that are masked, have to stand at the same places."""
    worst = 0.0
    in_order = list(found.values())
    for i, (name, value) in enumerate(wanted.items()):
        # TorchScript's outputs have places, not names
        a, b = _array(found[name] if name in found else in_order[i]), _array(value)
        finite = np.isfinite(b)
        if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite]):
            return float("inf")
        a, b = a[finite], b[finite]
        if not np.isfinite(a).all():
            return float("inf")
        scale = float(np.abs(b).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / scale)
    return worst


def _array(value: Any) -> Array:
    array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array.astype(np.float64)


def verify(pruned: Outcome, stage: Path, progress: Progress) -> tuple[Check, ...]:
    """Run every format beside the executor, and the executor beside the masked dense program
    where something was sliced."""
    feeds = examples(pruned)
    with progress.step("Verifying", 1 + len(pruned.options.formats)) as advance:
        wanted = list(execute(pruned.rewritten.graph, pruned.weights, feeds))
        checks = [law_1(pruned, feeds)] if pruned.sliced else []
        advance(1)
        for name in pruned.options.formats:
            runner = OPEN[name](stage)
            found = [_drawn_alike(runner, f) for f in feeds]
            checks.append(_check(name, list(zip(found, wanted, strict=True))))
            advance(1)
    return tuple(checks)


def law_1(pruned: Outcome, feeds: Sequence[Mapping[str, Array]]) -> Check:
    """Prune = mask: the smaller program beside the dense one with the removed indices zeroed."""
    contractions = {c.op for c in pruned.loaded.coupling.contractions}
    sliced = execute(pruned.rewritten.graph, pruned.weights, feeds, contractions)
    masked = execute_masked(
        pruned.loaded.coupling,
        pruned.selections,
        pruned.rewritten,
        pruned.dense_weights,
        [_before(pruned, given) for given in feeds],
        contractions,
    )
    shown = (_left(pruned, found) for found in masked)
    return _check("law 1", list(zip(sliced, shown, strict=True)))


def _before(pruned: Outcome, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """The same inputs for the dense program, whose tokens have other ids."""
    tokens = pruned.tokens
    if tokens is None:
        return feeds
    return {n: tokens[x] if n.endswith(TOKENS) else x for n, x in feeds.items()}


def _left(pruned: Outcome, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the dense program's outputs what the smaller one gives: logits of the tokens that stay."""
    if pruned.tokens is None:
        return outputs
    found = dict(outputs)
    for name, value in pruned.loaded.graph.outputs:
        axes = pruned.loaded.graph.types[value].axes
        if axes and any(a.name in pruned.selections for a in atoms(axes[-1])):
            found[name] = found[name][..., torch.from_numpy(pruned.tokens)]
    return found


def _drawn_alike(runner: Runner, feeds: Mapping[str, Array]) -> Mapping[str, Any]:
    """The outputs of a format; what it draws at random it draws as the executor does."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        return runner.run(_fed(runner, feeds))


def _fed(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [spec.name for spec in runner.inputs]
    return {name: feeds[name] for name in names if name in feeds}


def _check(name: str, pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Check:
    difference = max(relative_difference(found, wanted) for found, wanted in pairs)
    return Check(name, difference, ALLOWED[name])


OPEN: Mapping[str, Callable[[Path], Runner]] = {
    "hf": lambda stage: open_hf(str(stage / Formats.HF), as_traced=True),
    "onnx": lambda stage: open_onnx(stage / Formats.ONNX),
    "torchscript": lambda stage: open_torchscript(stage / Formats.TORCHSCRIPT),
}
