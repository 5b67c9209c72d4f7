"""The first block of SmolLM2, made sparse: against the papers' formulas in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sparse_papers import sparsegpt, wanda

from prunec.backends.torch_stream import TorchStream
from prunec.passes.sparse import NofM, Pattern, Share, layers
from prunec.passes.sparse import sparsify as run_pass
from prunec.passes.sparse.pruners import SparseGPT, Wanda
from prunec.passes.sparse.ratios import uniform
from prunec.progress import Silent
from prunec.runs.loading import load

BLOCK = "model.layers.0."
CASES: dict[str, tuple[str, Pattern]] = {
    "wanda 40%": ("wanda", Share(0.4)),
    "wanda 2:4": ("wanda", NofM(2, 4)),
    "sparsegpt 2:4": ("sparsegpt", NofM(2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_block_is_the_papers(case: str, smollm2: Path) -> None:
    """Every layer is judged on what the stock model feeds it, once those before it are sparse."""
    method, pattern = CASES[case]
    ids = np.random.default_rng(0).integers(0, 40_000, (16, 128))
    loaded = load(str(smollm2), trust_remote_code=False, need_weights=True, progress=Silent())
    found = layers(loaded.coupling, loaded.cost.outer).found
    own = [layer for layer in found if layer.weight.startswith(BLOCK)]
    assert len(own) == 7
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds = {v.name[1:]: feeds[v.name[1:]] for v in loaded.graph.inputs}
    replaced: dict[str, np.ndarray] = {}
    pruner = Wanda() if method == "wanda" else SparseGPT()
    with TorchStream(loaded.graph, loaded.weights, [feeds], replaced=replaced) as stream:
        run_pass(own, pruner, pattern, uniform(own, 0.4), loaded.weights, stream.replace, stream)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).model
    model.layers = model.layers[:1]
    for layer in own:
        module = model.get_submodule(layer.weight.removeprefix("model.").removesuffix(".weight"))
        x = _inputs(model, module, ids)
        w = module.weight.detach().numpy().astype(np.float64)
        wanted = wanda(w, x, pattern) if method == "wanda" else sparsegpt(w, x, pattern, 128)
        given = replaced[layer.weight]
        # inputs in float32: scores that are equal to seven digits may swap places
        swapped = (given == 0) != (wanted == 0)
        assert swapped.mean() < 1e-4, layer.weight
        # and a swap changes what SparseGPT does to the rest of its row
        alike = ~swapped.any(1)
        assert alike.mean() > 0.99, layer.weight
        assert np.abs(given - wanted)[alike].max() / np.abs(w).max() < 1e-3, layer.weight
        lost, least = (np.square(x @ (w - made).T).sum() for made in (given, wanted))
        assert lost == pytest.approx(least, rel=1e-3), layer.weight
        module.weight.data = torch.from_numpy(given.astype(np.float32))


def _inputs(model: torch.nn.Module, module: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """What a layer reads, one row a token."""
    seen: list[np.ndarray] = []
    hook = module.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach().numpy().astype(np.float64))
    )
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids))
    hook.remove()
    (found,) = seen
    return found.reshape(-1, found.shape[-1])
