"""Models that are ready to take one decoding step: the next token of each sequence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prunec.measuring.feeds import TOKENS, Array, Feeds, InputSpec
from prunec.measuring.runners import Runner, distinct, hf_module, told

__all__ = ["open_exported_step", "open_hf_step"]


def open_hf_step(
    model: str, length: int, threads: int | None = None, *, trust_remote_code: bool = False
) -> Runner:
    """One decoding step of a model in transformers: it reads the next token of each sequence, and
    before each run its own cache holds `length` made-up ones. Raises P868 where it has no cache."""
    import torch

    from prunec.frontends.torch_step import empty_cache, filled, past_shapes

    module, size = hf_module(model, threads, trust_remote_code)
    cache = empty_cache(module)
    past: dict[str, torch.Tensor] = {}

    def run(feeds: Feeds) -> dict[str, Array]:
        tokens = torch.from_numpy(feeds[TOKENS])
        if not past:  # the first run, which warms up
            shapes = past_shapes(cache, len(tokens), length)
            past.update({name: torch.randn(shape) for name, shape in shapes.items()})
        with torch.inference_mode():
            found = module(
                input_ids=tokens, past_key_values=filled(cache, past, length), use_cache=True
            )
        return {k: x.float().numpy() for k, x in found.items() if isinstance(x, torch.Tensor)}

    specs = (InputSpec(TOKENS, "int64", ("batch", 1)),)
    return Runner("hf", model, specs, told(run, model), distinct(module.parameters()), size)


def open_exported_step(
    model: str,
    length: int,
    opener: Callable[[Path, int | None], Runner],
    threads: int | None = None,
    *,
    trust_remote_code: bool = False,
) -> Runner:
    """One decoding step of a checkpoint, traced with its cache and written for an ONNX runtime,
    which `opener` opens. Raises P868 where it has no cache."""
    from prunec.backends.onnx import emit
    from prunec.output.tensor_view import TensorView
    from prunec.progress import Silent
    from prunec.runs.loading import load
    from prunec.timing.step import stepping

    dense = load(model, trust_remote_code=trust_remote_code, need_weights=True, progress=Silent())
    step = stepping(dense, length, Silent())
    folder = tempfile.TemporaryDirectory(prefix="prunec-")
    path = Path(folder.name) / "model.onnx"
    emit(step.graph, TensorView(step.weights, step.graph), path)
    runner = opener(path, threads)

    def run(feeds: Feeds, _kept: object = folder) -> dict[str, Array]:
        return runner.run(feeds)

    return replace(runner, path=model, run=run)
