"""Hand-written modules: which groups they have, law 1, and that no weight is left out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from coverage_row import law, silent, stored
from modules import MODULES
from programs import randomise
from torch import nn

from prunec.backends import onnx, torchscript
from prunec.frontends.torch import Traced, trace
from prunec.ir.dialects.aten import ATEN
from prunec.ir.verify import verify
from prunec.passes.couple import couple
from prunec.passes.coupling import Coupling

ALLOWED = 1e-5


@cache
def module(name: str) -> nn.Module:
    built = MODULES[name].build().eval()
    randomise(built)
    return built


def feed(name: str, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {"x": torch.randn(batch, *MODULES[name].shape, generator=generator)}


@cache
def traced(name: str) -> Traced:
    return trace(module(name), feed(name, 2), dynamic={"x": {0: "batch"}})


@cache
def coupled(name: str) -> Coupling:
    return couple(traced(name).graph, ATEN)


@pytest.mark.parametrize("name", MODULES)
def test_groups(name: str) -> None:
    found = coupled(name)
    assert tuple(sorted(g.size for g in found.groups if g.size > 1)) == MODULES[name].groups
    assert found.without_rule == {}
    assert verify(found.graph) == []
    reasons = " ".join(pin.reason for pin in found.pinned)
    assert MODULES[name].pinned in reasons


@pytest.mark.parametrize("name", MODULES)
def test_pruning_is_masking(name: str) -> None:
    """Each group alone, and all together."""
    weights = stored(module(name), traced(name))
    feeds = [feed(name, 2), feed(name, 5)]
    groups = [g for g in coupled(name).groups if g.size > 1]
    for chosen in [*([g] for g in groups), groups]:
        found = law(coupled(name), chosen, weights, feeds)
        assert found.difference <= ALLOWED
        assert found.moved > 1e-4, "something was removed"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_left_out(name: str) -> None:
    assert silent(coupled(name)) == []


@pytest.mark.parametrize("name", MODULES)
def test_backends_agree(name: str, tmp_path: Path) -> None:
    """ONNX Runtime and TorchScript compute what the module computes, at two batch sizes."""
    weights = {k: torch.as_tensor(v) for k, v in stored(module(name), traced(name)).items()}
    onnx.emit(traced(name).graph, weights, tmp_path / "model.onnx")
    torchscript.emit(traced(name).graph, weights, tmp_path / "model.pt")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    script = torch.jit.load(tmp_path / "model.pt")
    for batch in (2, 5):
        x = feed(name, batch)["x"]
        with torch.no_grad():
            wanted = module(name)(x)
            torch.testing.assert_close(script(x), wanted, rtol=1e-5, atol=1e-5)
        (found,) = session.run(None, {"x": x.numpy()})
        assert np.abs(found - wanted.numpy()).max() <= 1e-4 * float(wanted.abs().max())
