"""Prune SmolLM2-135M to 85 % of its parameters and set it beside the dense model.

    make demo                              or: python examples/demo.py
    make demo ARGS="notes.txt book.txt"    perplexity on these texts too

The model writes its own calibration text, so no data set is needed. Everything lands in out/demo:
`pruned/` is what `prunec prune` writes (Hugging Face, ONNX, TorchScript, plan, recipe, report),
`dense/` the dense ONNX file that latency is compared with. Takes a few minutes on two cores.

The same from the command line:

    prunec prune smollm2 -o pruned --target params=85% --calibration self \\
        --format hf,onnx,torchscript
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from models import MissingPackage, ensure

from prunec.cli.console import Console
from prunec.cli.guard import guarded
from prunec.measuring.feeds import Array, example_feeds, token_feeds
from prunec.measuring.runners import Runner
from prunec.reports.data import PruneReport

Predict = Callable[[Array], Array]

PROMPT = "The three most important things to know about the sea are"
WORDS = 48
"""Tokens of the continuation."""
HELD_OUT = 8
"""Windows of the model's own text that only serve to measure."""
WINDOW, MOST = 1024, 10
"""Tokens and number of windows of a text that is given."""
LENGTH, REPEAT = 128, 15
"""Tokens in the sequence whose latency is measured, and runs of each model."""


@dataclass
class Side:
    """What is shown of one model."""

    folder: Path
    onnx: Path
    params: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)
    latency: float = 0.0
    continuation: str = ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("texts", nargs="*", type=Path, help="texts to measure perplexity on as well")
    add("--model", help="a model folder instead of SmolLM2-135M")
    add("--target", default="params=85%", help="what is to remain [params=85%%]")
    add("--samples", type=int, default=24, help="windows of calibration text [24]")
    add("--length", type=int, default=256, help="tokens in each [256]")
    add("--seed", type=int, default=0, help="for the text that the model writes [0]")
    add("--out", type=Path, default=Path("out/demo"), help="[out/demo]")
    asked = parser.parse_args(arguments)
    console = Console(as_json=False)

    def run() -> int:
        with console.working():
            return _demo(asked, console)

    return guarded(run, stdout=sys.stdout, as_json=False)


def _demo(asked: argparse.Namespace, console: Console) -> int:
    from prunec.frontends.text import read_text

    started = time.monotonic()
    for text in asked.texts:
        read_text(text)  # what is not there is told before any work
    try:
        folder = Path(asked.model) if asked.model else ensure("smollm2")
    except MissingPackage as missing:
        print(missing, file=sys.stderr)
        return 1
    report = _prune(asked, folder, console)
    out = asked.out / "pruned"
    dense = Side(folder, asked.out / "dense" / "model.onnx", report.dense.params)
    pruned = Side(out / "hf", out / "onnx" / "model.onnx", report.pruned.params)
    with console.step("Writing the dense model as ONNX"):
        _write_dense(folder, dense.onnx)
    texts = _texts(asked, folder, console)
    for name, side in (("dense", dense), ("pruned", pruned)):
        _measure(name, side, texts, console)
    with console.step("Measuring latency in ONNX Runtime", total=REPEAT) as advance:
        _race(dense, pruned, advance)
    pruned.bytes["TorchScript"] = next(f.bytes for f in report.formats if f.name == "torchscript")
    _show(dense, pruned, report)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.line(f"{minutes} min {seconds} s in all; the pruned model is in {out}")
    return int(report.exit_code)


def _prune(asked: argparse.Namespace, folder: Path, console: Console) -> PruneReport:
    from prunec.options.prune import PruneOptions
    from prunec.options.target import parse_targets
    from prunec.verbs.pipeline import prune

    options = PruneOptions(
        model=str(folder),
        out=asked.out / "pruned",
        targets=parse_targets([asked.target]),
        calibration="self",
        calibration_samples=asked.samples,
        calibration_length=asked.length,
        formats=("hf", "onnx", "torchscript"),
        seed=asked.seed,
        overwrite=True,
    )
    return prune(options.settle(), console)


def _write_dense(folder: Path, path: Path) -> None:
    from prunec.backends import onnx
    from prunec.progress import Silent
    from prunec.runs.loading import load

    loaded = load(str(folder), trust_remote_code=False, need_weights=True, progress=Silent())
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.emit(loaded.graph, loaded.weights, path)


def _texts(asked: argparse.Namespace, folder: Path, console: Console) -> dict[str, Array]:
    """Windows of tokens by the name of their text: the model's own, drawn anew, and those given."""
    from prunec.frontends import hf
    from prunec.frontends.calibration import calibration
    from prunec.frontends.source import resolve
    from prunec.measuring.artifacts import find_artifacts
    from prunec.measuring.corpus import read_corpus

    source = resolve(str(folder))
    model = hf.build_meta(hf.load_config(source))
    with console.step("Writing text to measure on"):
        own = calibration(source, model, "self", HELD_OUT, asked.length, asked.seed + 1)
    found = {"its own text": own.inputs["input_ids"]}
    artifacts = find_artifacts(str(folder))
    for path in asked.texts:
        corpus = read_corpus(path, artifacts, tokenizer=None, window=WINDOW, most=MOST)
        found[path.name] = corpus.windows
    return found


def _measure(name: str, side: Side, texts: dict[str, Array], console: Console) -> None:
    """Perplexity of one side on every text, and what it writes on its own."""
    from prunec.measuring.evaluate import perplexity
    from prunec.measuring.runners import open_hf

    runner = open_hf(str(side.folder))
    side.bytes["Hugging Face"] = runner.bytes
    predict = _predictor(runner)
    for title, windows in texts.items():
        what = f"Perplexity of the {name} model on {title}"
        with console.step(what, total=len(windows)) as advance:
            side.perplexity[title] = perplexity(predict, windows, advance)
    with console.step(f"The {name} model writes"):
        side.continuation = _continuation(side.folder)


def _predictor(runner: Runner) -> Predict:
    return lambda tokens: runner.run(token_feeds(runner.inputs, tokens))["logits"]


def _continuation(folder: Path) -> str:
    """What stock transformers makes of the folder, always taking the likeliest token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        return "(it has no tokenizer)"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    model.eval()
    given = tokenizer(PROMPT, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=WORDS, do_sample=False)
    text: str = tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def _race(dense: Side, pruned: Side, advance: Callable[[int], None]) -> None:
    """Median latency of both in turns."""
    from prunec.measuring.bench import measure
    from prunec.measuring.runners import open_onnx

    sides = (dense, pruned)
    runners = [open_onnx(side.onnx) for side in sides]
    feeds = [example_feeds(runner.inputs, batch=1, length=LENGTH) for runner in runners]
    times = measure(runners, feeds, REPEAT, advance)
    for side, runner, taken in zip(sides, runners, times, strict=True):
        side.latency = statistics.median(taken)
        side.bytes["ONNX"] = runner.bytes


def _show(dense: Side, pruned: Side, report: PruneReport) -> None:
    from rich import box
    from rich.console import Console as Rich
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    table.title = f"{Path(report.model).name}, dense and pruned ({report.targets[0].text})"
    table.add_column("", max_width=30)
    for name in ("dense", "pruned"):
        table.add_column(name, justify="right", ratio=1)
    table.add_column("ratio", justify="right")

    def row(title: str, a: float | None, b: float, form: str, scale: float = 1.0) -> None:
        shown = "-" if a is None else f"{a / scale:{form}}"
        ratio = "" if a is None else f"{b / a:.2f}"
        table.add_row(title, shown, f"{b / scale:{form}}", ratio)

    row("parameters, millions", dense.params, pruned.params, ".1f", 1e6)
    for title in ("Hugging Face", "ONNX", "TorchScript"):
        row(f"{title}, MB", dense.bytes.get(title), pruned.bytes[title], ",.0f", 1e6)
    for title, value in dense.perplexity.items():
        row(f"perplexity, {title}", value, pruned.perplexity[title], ".2f")
    latency = f"ONNX Runtime, ms for 1 x {LENGTH}"
    row(latency, dense.latency, pruned.latency, ".1f", 1e-3)
    table.add_section()
    told = (Text(side.continuation, justify="left") for side in (dense, pruned))
    table.add_row(Text(f"“{PROMPT} …”"), *told)
    out = sys.__stdout__ or sys.stdout
    Rich(file=out, width=None if out.isatty() else 120, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
