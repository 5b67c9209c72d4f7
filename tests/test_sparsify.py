"""`prunec sparsify` from a saved checkpoint to files that other tools load, on tiny models."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
import worded
import zoo
from onnx import numpy_helper
from safetensors.numpy import load_file

from prunec.cli.app import main
from prunec.output.masks import read_masks
from prunec.progress import Silent
from prunec.runs import run as runs
from prunec.runs.loading import load

LENGTH, SAMPLES = 32, 6
MODELS = ("llama", "gpt2", "bert")


@dataclass(frozen=True)
class Run:
    """What a run printed with --json, and where it wrote."""

    code: int
    report: dict[str, Any]
    out: Path

    @property
    def written(self) -> dict[str, np.ndarray]:
        return load_file(self.out / "hf" / "model.safetensors")


def called(*arguments: str) -> tuple[int, dict[str, Any]]:
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        code = main(["sparsify", *arguments, "--json"])
    assert printed.getvalue(), told.getvalue()
    return code, json.loads(printed.getvalue())


def sparsify(model: Path, out: Path, *options: str) -> Run:
    code, report = called(str(model), "-o", str(out), *options)
    return Run(code, report, out)


def data(folder: Path) -> tuple[str, ...]:
    return (
        "--calibration", str(folder / "text.txt"), "--calibration-samples", str(SAMPLES),
        "--calibration-length", str(LENGTH),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with a tokenizer of words, and a text."""
    root = tmp_path_factory.mktemp("sparse")
    for name in MODELS:
        zoo.build(name).save_pretrained(root / name)
        worded.tokenizer().save_pretrained(root / name)
    (root / "text.txt").write_text(worded.text(8 * SAMPLES * LENGTH))
    return root


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Any:
    """All runs on a model share its tracing, which takes longer than all the rest."""
    once = lru_cache(maxsize=len(MODELS))(
        lambda model: load(
            model, trust_remote_code=False, need_weights=True, hashed=True, progress=Silent()
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load", lambda model, **_: once(model))
        yield


@pytest.fixture(scope="module", params=MODELS)
def grouped(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Run]:
    """2:4 by SparseGPT in all formats, verified."""
    out = tmp_path_factory.mktemp("grouped") / "out"
    run = sparsify(
        folder / request.param, out, "--sparsity", "2:4", "--method", "sparsegpt", "--verify",
        "--format", "hf,onnx,torchscript", *data(folder),
    )  # fmt: skip
    return request.param, run


def linears(name: str) -> dict[str, int]:
    """Weights of layers within blocks, and the dimension that each sums over."""
    found = {}
    for path, module in zoo.build(name).named_modules():
        if any(part.isdigit() for part in path.split(".")):
            if isinstance(module, torch.nn.Linear):
                found[f"{path}.weight"] = 1
            elif isinstance(module, transformers.pytorch_utils.Conv1D):
                found[f"{path}.weight"] = 0
    return found


def test_every_layer_has_two_of_four(grouped: tuple[str, Run]) -> None:
    """Counted in the checkpoint by hand, along the inputs; nothing else changes but by itself."""
    name, run = grouped
    assert run.code == 0, run.report
    dense = {k: v.numpy() for k, v in zoo.build(name).state_dict().items()}
    wanted = linears(name)
    written = run.written
    for weight, dim in wanted.items():
        groups = np.moveaxis(written[weight], dim, -1).reshape(-1, 4)
        assert ((groups != 0).sum(-1) <= 2).all(), weight
        assert np.count_nonzero(written[weight]) >= 0.49 * written[weight].size
    for weight in written.keys() - wanted.keys():
        np.testing.assert_array_equal(written[weight], dense[weight])
    rows = {row["weight"]: row for row in run.report["layers"]}
    assert {n: row["dim"] for n, row in rows.items() if n in wanted} == wanted
    for row in rows.values():
        assert row["broken"] == {"hf": 0, "onnx": 0, "torchscript": 0}
        assert row["zeros"] == row["shape"][0] * row["shape"][1] // 2
    checks = {check["name"]: check["passed"] for check in run.report["checks"]}
    assert checks == dict.fromkeys(["hf", "onnx", "torchscript"], True)


def test_onnx_has_the_zeros_where_its_products_sum(grouped: tuple[str, Run]) -> None:
    """Each product with a stored matrix, through its transposition, in groups of four."""
    _, run = grouped
    graph = onnx.load(run.out / "onnx" / "model.onnx").graph
    stored = {t.name: t for t in graph.initializer}
    turned = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
    checked = 0
    sparse = {row["weight"] for row in run.report["layers"]}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        name = turned.get(node.input[1], node.input[1])
        if name not in sparse:
            continue
        matrix = numpy_helper.to_array(stored[name])
        rows = matrix if node.input[1] in turned else matrix.T  # (outputs, inputs)
        assert ((rows.reshape(len(rows), -1, 4) != 0).sum(-1) <= 2).all(), name
        checked += 1
    assert checked == len(sparse)


def test_masks_say_where_zeros_are(grouped: tuple[str, Run]) -> None:
    _, run = grouped
    masks = read_masks(run.out / "masks.safetensors", run.written)
    assert set(masks) == {row["weight"] for row in run.report["layers"]}
    for weight, mask in masks.items():
        np.testing.assert_array_equal(mask, run.written[weight] != 0)
    packed = load_file(run.out / "masks.safetensors")
    assert all(p.size == -(-masks[w].size // 8) for w, p in packed.items())


def test_stock_code_loads_it(grouped: tuple[str, Run]) -> None:
    name, run = grouped
    loaded = type(zoo.build(name)).from_pretrained(run.out / "hf")
    written = run.written
    for weight in linears(name):
        np.testing.assert_array_equal(loaded.state_dict()[weight].numpy(), written[weight])


@pytest.fixture(scope="module")
def halved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Half of llama by Wanda."""
    out = tmp_path_factory.mktemp("halved") / "out"
    return sparsify(folder / "llama", out, "--sparsity", "50%", *data(folder))


def test_wanda_zeroes_half_of_each_row_and_changes_nothing_else(halved: Run) -> None:
    dense = {k: v.numpy() for k, v in zoo.build("llama").state_dict().items()}
    written = halved.written
    for weight in linears("llama"):
        zero = written[weight] == 0
        assert (zero.sum(1) == zero.shape[1] // 2).all()
        np.testing.assert_array_equal(written[weight][~zero], dense[weight][~zero])
    assert halved.report["zeros"] == halved.report["entries"] // 2
    assert halved.report["sources"][0]["pruned"] > 0


def test_masks_are_wandas_on_the_sparse_stream(halved: Run, folder: Path) -> None:
    """The model of transformers run on the same text, each layer hooked once all before it are
    sparse: |W| ||X|| by rows."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama").eval()
    ids = [int(w[1:]) + 3 for w in (folder / "text.txt").read_text().split()]
    windows = _windows(halved, ids)
    written = halved.written
    for name, module in _in_order(model):
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
        with torch.no_grad():
            model(input_ids=windows)
        handle.remove()
        x = seen[0].reshape(-1, seen[0].shape[-1]).double().numpy()
        weight = module.weight.detach().numpy()
        scores = np.abs(weight) * np.sqrt((x**2).sum(0))
        kept = np.sort(scores, axis=1)
        margin = np.diff(kept, axis=1)[:, kept.shape[1] // 2 - 1]
        clear = margin > 1e-4 * kept[:, kept.shape[1] // 2]  # float32 sums differ in their order
        wanted = scores < kept[:, kept.shape[1] // 2 :][:, :1]
        found = written[f"{name}.weight"] == 0
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(found[clear], wanted[clear], err_msg=name)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(written[f"{name}.weight"]))


def _windows(run: Run, ids: list[int]) -> torch.Tensor:
    """The windows that the run was calibrated on."""
    from prunec.frontends.calibration import calibration
    from prunec.frontends.hf import build_meta, load_config
    from prunec.frontends.source import resolve

    source = resolve(run.report["model"])
    model = build_meta(load_config(source))
    found = calibration(source, model, run.report["calibration"], SAMPLES, LENGTH, 0, held_out=4)
    assert set(found.inputs["input_ids"].reshape(-1)) <= set(ids)
    return torch.as_tensor(found.inputs["input_ids"])


def _in_order(model: Any) -> list[tuple[str, torch.nn.Linear]]:
    """Layers in the order in which the program runs them."""
    order: list[str] = []
    linear = [
        (n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n
    ]
    handles = [m.register_forward_pre_hook(lambda _, args, n=n: order.append(n)) for n, m in linear]
    model(input_ids=torch.tensor([[3, 4]]))
    for handle in handles:
        handle.remove()
    return [(n, dict(linear)[n]) for n in order]


def test_a_recipe_repeats_the_run(halved: Run, tmp_path: Path) -> None:
    code, _ = called("-o", str(tmp_path / "again"), "--recipe", str(halved.out / "recipe.yaml"))
    assert code == 0
    again = (tmp_path / "again" / "hf" / "model.safetensors").read_bytes()
    assert again == (halved.out / "hf" / "model.safetensors").read_bytes()


def test_a_recipe_of_another_verb(halved: Run, tmp_path: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        code = main(
            ["prune", "-o", str(tmp_path / "o"), "--recipe", str(halved.out / "recipe.yaml")]
        )
    assert code == 2
    assert "P841" in told.getvalue()
    assert "prunec sparsify" in told.getvalue()


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    code, report = called(
        str(folder / "llama"), "--dry-run", "--sparsity", "30%", "--method", "magnitude",
        "--ratios", "global",
    )  # fmt: skip
    assert code == 0
    assert report["out"] is None
    assert report["zeros"] == int(0.3 * report["entries"])
    shares = [row["share"] for row in report["layers"]]
    assert max(shares) > min(shares), "one threshold treats layers unlike"


def test_owl_gives_unlike_shares_and_meets_the_target(folder: Path) -> None:
    code, report = called(
        str(folder / "llama"), "--dry-run", "--sparsity", "60%", "--ratios", "owl", *data(folder)
    )
    assert code == 0
    shares = {row["weight"]: row["share"] for row in report["layers"]}
    blocks = {name.split(".")[2]: share for name, share in shares.items()}
    assert abs(blocks["0"] - blocks["1"]) == pytest.approx(0.16)
    sizes = {row["weight"]: row["shape"][0] * row["shape"][1] for row in report["layers"]}
    asked = sum(shares[name] * size for name, size in sizes.items())
    assert asked / report["entries"] == pytest.approx(0.6)
    assert asked - report["zeros"] < sum(row["shape"][0] for row in report["layers"])  # whole rows


def test_what_is_left_stays(folder: Path) -> None:
    code, report = called(
        str(folder / "llama"), "--dry-run", "--sparsity", "2:4", "--method", "magnitude",
        "--leave", "*.down_proj.weight,model.layers.0.self_attn.*",
    )  # fmt: skip
    assert code == 0
    names = [row["weight"] for row in report["layers"]]
    assert not any("down_proj" in n or "layers.0.self_attn" in n for n in names)
    assert len(names) == 14 - 2 - 4
    assert [n for n, why in report["left"].items() if why == "asked for"]


BAD = {
    "nothing asked for": ((), "P812", 2),
    "no such method": (("--sparsity", "50%", "--method", "luck"), "P810", 2),
    "nothing would stay": (("--sparsity", "100%"), "P850", 2),
    "nothing would go": (("--sparsity", "0%"), "P850", 2),
    "M does not divide": (("--sparsity", "3:7", "--method", "magnitude"), "P851", 1),
    "comparing in a pattern": (("--sparsity", "2:4", "--compare", "row"), "P852", 2),
    "ratios in a pattern": (("--sparsity", "2:4", "--ratios", "owl"), "P852", 2),
    "no common scale": (("--sparsity", "50%", "--ratios", "global"), "P852", 2),
    "no such weight": (("--sparsity", "50%", "--method", "magnitude", "--leave", "x*"), "P853", 2),
    "no data": (("--sparsity", "50%", "--calibration", "none"), "P814", 2),
    "no file": (("--sparsity", "50%", "--calibration", "no.txt"), "P13", 2),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_diagnostic(case: str, folder: Path, tmp_path: Path) -> None:
    options, code, exit_code = BAD[case]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        found = main(["sparsify", str(folder / "llama"), "-o", str(tmp_path / "out"), *options])
    errors = [line for line in told.getvalue().splitlines() if line.startswith("error[")]
    assert len(errors) == 1, told.getvalue()
    assert errors[0].startswith(f"error[{code}")
    assert "help:" in told.getvalue()
    assert found == exit_code
    assert not (tmp_path / "out").exists()
