"""The Python API: modules in memory and checkpoints, pruned, called, trained, saved."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
import zoo
from torch import nn

import prunec


class Attention(nn.Module):
    """Heads as people write them: their number and width are attributes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, self.size).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, self.heads * self.size))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dropout(self.down(torch.relu(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(53, 48)
        self.blocks = nn.ModuleList(Block(48, 6, 80) for _ in range(2))
        self.head = nn.Linear(48, 53, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Convolutions(nn.Module):
    """Batch norm with running statistics, a depthwise layer, a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
        self.wide = nn.Conv2d(10, 22, 1)
        self.depth = nn.Conv2d(22, 22, 3, padding=1, groups=22)
        self.narrow = nn.Conv2d(22, 10, 1)
        self.head = nn.Linear(10, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + self.narrow(torch.relu(self.depth(torch.relu(self.wide(x)))))
        return self.head(x.mean((2, 3)))


class Stubborn(nn.Module):
    """States its width in a tuple, where no integer attribute can be corrected."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 40), nn.Linear(40, 12)
        self.sizes = (10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)).reshape(-1, *self.sizes).flatten(1))


EXAMPLES = {
    "transformer": (Transformer, lambda: torch.randint(0, 53, (2, 9))),
    "convolutions": (Convolutions, lambda: torch.randn(2, 3, 16, 16)),
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot hold these sizes")
        yield


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def names(module: nn.Module) -> list[str]:
    return list(module.state_dict())


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_module_keeps_its_class_and_names_and_computes_what_the_passes_say(kind: str) -> None:
    make, example = EXAMPLES[kind]
    net = make()
    x = example()
    before = shapes(net)
    small = prunec.load(net, x).prune("params=70%", method="magnitude")
    made = small.module
    assert type(made) is type(net)
    assert names(made) == names(net)
    assert shapes(net) == before, "the dense one is as it was"
    assert made.training
    assert sum(p.numel() for p in made.parameters()) == small.report.pruned.params
    assert small.report.pruned.params <= 0.705 * small.report.dense.params
    assert small.check().passed
    made.eval()
    with torch.no_grad():
        found = made(x).numpy()
    from prunec.backends.interpreter import execute

    graph = small._pruned.rewritten.graph
    (wanted,) = execute(graph, small._pruned.weights, [{graph.inputs[0].name[1:]: x.numpy()}])
    np.testing.assert_allclose(found, next(iter(wanted.values())).numpy(), atol=1e-6)


def test_batches_calibrate_and_the_result_beats_magnitude_on_them() -> None:
    net = Convolutions().eval()
    batches = [torch.randn(4, 3, 16, 16) for _ in range(6)]
    model = prunec.load(net, batches[0])
    fitted = model.prune("flops=60%", calibration=batches, method="osscar")
    plain = model.prune("flops=60%", method="magnitude")
    with torch.no_grad():
        held = torch.randn(16, 3, 16, 16)
        wanted = net(held)
        errors = [float((s.module.eval()(held) - wanted).norm()) for s in (fitted, plain)]
    assert errors[0] < errors[1]
    (row,) = fitted.report.sources
    assert (row.metric, row.windows, row.held_out) == ("output_error", 24, False)


def test_the_module_can_be_fine_tuned() -> None:
    made = prunec.load(Transformer(), torch.zeros(1, 4, dtype=torch.long)).prune(
        "params=60%", method="magnitude"
    )
    net = made.module
    assert net.head.weight is net.embed.weight
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    tokens = torch.randint(0, 53, (8, 12))
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(
            net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None for p in net.parameters())


def test_a_class_that_cannot_hold_the_sizes_becomes_its_program_with_a_warning() -> None:
    net = Stubborn()
    small = prunec.load(net, torch.randn(3, 12)).prune("params=60%", method="magnitude")
    with pytest.warns(UserWarning, match="Stubborn cannot hold these sizes"):
        made = small.module
    assert names(made) == names(net)
    assert small.check().passed
    assert made(torch.randn(5, 12)).shape == (5, 12)
    assert all(p.requires_grad for p in made.parameters())


def test_small_floats_stay_what_they_are() -> None:
    net = Convolutions().to(torch.bfloat16)
    net.narrow.weight.requires_grad_(False)
    x = torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)
    made = prunec.load(net, [x]).prune("params=60%", method="magnitude").module
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert not made.narrow.weight.requires_grad
    assert made.wide.weight.requires_grad
    assert made(x).dtype is torch.bfloat16


def test_save_writes_onnx_of_a_module(tmp_path: Path) -> None:
    net = Convolutions().eval()
    x = torch.randn(2, 3, 16, 16)
    small = prunec.load(net, {"image": x}).prune("flops=70%", method="magnitude")
    report = small.save(tmp_path / "out", verify=True)
    assert {check.name for check in report.checks} == {"law 1", "onnx"}
    assert report.exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    images = torch.randn(5, 3, 16, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, small.module(images).numpy(), atol=1e-5)
    again = prunec.load(net, x).prune(plan=tmp_path / "out" / "plan.json", method="magnitude")
    assert shapes(again.module) == shapes(small.module)


def test_a_stock_model_in_memory_stays_one(tmp_path: Path) -> None:
    dense = zoo.build("llama")
    small = prunec.load(dense).prune("params=80%", method="magnitude", groups="neuron")
    made = small.module
    assert type(made) is type(dense)
    assert names(made) == names(dense)
    assert made.config.intermediate_size < dense.config.intermediate_size
    made.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    tokens = torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, made(tokens).logits)
    report = small.save(tmp_path / "out", verify=True)
    assert [check.name for check in report.checks if check.passed] == ["law 1", "hf"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir())[:2] == ["README.md", "hf"]
    assert not list((tmp_path / "out" / "hf").glob("LICENSE*")), "of the working directory"


def test_a_folder_is_pruned_as_on_the_command_line(tmp_path: Path) -> None:
    zoo.build("llama").save_pretrained(tmp_path / "model")
    model = prunec.load(tmp_path / "model")
    found = model.inspect()
    assert {"neuron", "query_head", "kv_head"} <= {group.role for group in found.groups}
    small = model.prune("params=80%", method="magnitude", layout="per-layer")
    small.save(tmp_path / "api")
    assert (tmp_path / "api" / "recipe.yaml").is_file()
    command = ("prune", "-o", "command", "--recipe", "api/recipe.yaml")
    run = subprocess.run(
        [sys.executable, "-m", "prunec", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    api, line = (tmp_path / n / "hf" / "model.safetensors" for n in ("api", "command"))
    assert api.read_bytes() == line.read_bytes()


def refused(code: str, *model: object, **options: object) -> str:
    with pytest.raises(prunec.PrunecError) as caught:
        prunec.load(*model).prune(**options)  # type: ignore[arg-type]
    assert caught.value.diagnostics[0].code == code
    assert caught.value.diagnostics[0].help
    return str(caught.value)


def test_what_the_caller_can_mend_is_said() -> None:
    net, x = Convolutions(), torch.randn(2, 3, 16, 16)
    assert "give batches" in refused("P814", net, x, target="params=70%")
    assert "example inputs" in refused("P134", net)
    assert "no option 'ratio'" in refused("P810", net, x, target="params=70%", ratio=0.5)
    assert "stock model" in refused(
        "P810", net, x, target="params=70%", method="magnitude", formats=["hf"]
    )
    wrong = [torch.randn(2, 3, 8, 8)]
    assert "was traced with" in refused("P135", net, x, target="params=70%", calibration=wrong)
    assert "takes 1 inputs" in refused("P134", net, (x, x))
    assert "params=75%" in refused("P801", net, x, target="75%", method="magnitude")
    refused("P100", "/nowhere/at/all", target="params=70%", method="magnitude")


def test_public_names() -> None:
    assert len(prunec.__all__) <= 10
    assert all(getattr(prunec, name) is not None for name in prunec.__all__)
    assert set(prunec.__all__) == {*prunec.HOMES, "__version__"}
    undocumented = [n for n in prunec.HOMES if not (getattr(prunec, n).__doc__ or "").strip()]
    assert undocumented == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prunec.nothing  # noqa: B018


def test_help_is_quick() -> None:
    """0.3 s is promised, of the processor, since the machine may be busy with other things."""
    took = []
    for _ in range(3):
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "prunec", "--help"], check=True, capture_output=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    assert min(took) < 0.3
