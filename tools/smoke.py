"""Use an installed prunec as a user would, from outside of the checkout; `.ci/run` runs it.

python -P tools/smoke.py core      without torch: the command answers, nothing pulls torch in
python -P tools/smoke.py torch     with it: a tiny random Llama is inspected, pruned and loaded
python -P tools/smoke.py tools     and in tools of others that install in seconds, by the scripts in
                                   benchmarks/integrations
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("torchao",)
"""Tools that install in seconds."""

TARGET = 0.80
TOLERANCE = 0.005
"""Of the dense model's parameters, as the project promises."""

LOAD_TORCHSCRIPT = """
import sys, torch
torch.jit.load(sys.argv[1])
assert not {"prunec", "transformers"} & set(sys.modules), "TorchScript pulled in a library"
"""


def prunec(*arguments: str) -> str:
    """Run the installed command; its standard output."""
    command = Path(sys.executable).parent / "prunec"
    print("$ prunec", *arguments, flush=True)
    run = subprocess.run([command, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    print(run.stdout, flush=True)
    if run.returncode != 0:
        sys.exit(f"prunec {arguments[0]} ended with exit code {run.returncode}")
    return run.stdout


def check_origin() -> None:
    """The installed package, not a checkout, is what runs."""
    for name in ("prunec", "prunec.ir.axes", "prunec.passes"):
        origin = importlib.import_module(name).__file__
        assert origin is not None, name
        assert Path(origin).is_relative_to(sys.prefix), f"{name} comes from {origin}"


def core() -> None:
    """What `pip install prunec` gives."""
    assert importlib.util.find_spec("torch") is None, "torch came along with the core"
    check_origin()
    prunec("--help")
    for command in ("inspect", "prune", "eval", "bench"):
        prunec(command, "--help")


def make_model(folder: Path, tokens: int = 256) -> int:
    """Save a tiny Llama with random weights; its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=64,
        intermediate_size=224,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def with_torch(folder: Path) -> None:
    """What `pip install prunec[torch]` gives."""
    check_origin()
    dense, out = folder / "dense", folder / "out"
    parameters = make_model(dense)
    groups = json.loads(prunec("inspect", str(dense), "--json"))
    assert groups, "inspect found nothing"
    prunec("inspect", str(dense))
    prunec(
        *("prune", str(dense), "-o", str(out), "--target", f"params={TARGET:.0%}"),
        *("--method", "magnitude", "--calibration", "none", "--format", "hf,onnx,torchscript"),
    )
    check_outputs(out, parameters)


def check_outputs(out: Path, dense_parameters: int) -> None:
    """Each format loads with its own runtime, and the two that run alike agree."""
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM

    print("files:", *sorted(str(p.relative_to(out)) for p in out.rglob("*")), sep="\n  ")
    for file in ("plan.json", "report.json", "report.html", "recipe.yaml", "README.md"):
        assert (out / file).is_file(), f"{file} is missing"
    model = AutoModelForCausalLM.from_pretrained(out / "hf")
    left = sum(p.numel() for p in model.parameters()) / dense_parameters
    assert abs(left - TARGET) <= TOLERANCE, f"{left:.2%} of the parameters are left"

    session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx")
    for batch, length in ((1, 5), (3, 11)):
        ids = torch.randint(0, 256, (batch, length))
        known = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())}
        feed = {i.name: known[i.name] for i in session.get_inputs()}
        with torch.no_grad():
            expected = model(input_ids=ids).logits.numpy()
        found = session.run(None, feed)[0]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    script = out / "torchscript" / "model.pt"
    subprocess.run([sys.executable, "-P", "-c", LOAD_TORCHSCRIPT, str(script)], check=True)
    print(f"smoke: {left:.2%} of the parameters left; all three formats load")


def with_tools(folder: Path) -> None:
    """What others run, in the versions that docs/integrations speaks of."""
    check_origin()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    tools = importlib.import_module("toolchain").TOOLS
    wanted = [package for name in QUICK for package in tools[name]]
    pip = (sys.executable, "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt"))
    subprocess.run([*pip, *wanted], check=True)
    dense = folder / "dense"
    make_model(dense, tokens=1024)
    for name in QUICK:
        script = ROOT / "benchmarks" / "integrations" / f"with_{name}.py"
        work = folder / name
        work.mkdir()
        run = [sys.executable, str(script), str(dense), str(work)]
        told = json.loads(subprocess.run(run, stdout=subprocess.PIPE, check=True).stdout)
        print(f"smoke: {name} {told['versions'][name]}: {len(told['steps'])} commands", flush=True)


PARTS = {"torch": with_torch, "tools": with_tools}


def main(part: str) -> None:
    """Run one part in a folder of its own."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    if part == "core":
        return core()
    folder = Path(tempfile.mkdtemp(prefix="prunec-smoke-"))
    try:
        return PARTS[part](folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
