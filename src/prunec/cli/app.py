"""The command line: verbs and their options; the work is done elsewhere and imported late."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from prunec import __version__
from prunec.cli.bench import bench
from prunec.cli.command import ENGINE, FILE, JSON, MODEL, TRUST, WORKERS, Grouped, listed, option
from prunec.cli.compress import factorize, quantize, sparsify
from prunec.cli.emit import emit
from prunec.cli.road import run as run_road
from prunec.cli.sensitivity import sensitivity
from prunec.cli.shared_options import CALIBRATION, FORMAT, HOW, OUT, WHAT, WRITE, WRITING, typed

if TYPE_CHECKING:
    from prunec.cli.console import Console

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="prunec %(version)s")
def cli() -> None:
    """Make a trained network smaller: a dense model that every standard runtime runs faster.

    MODEL is a Hugging Face directory or hub id, a .gguf or an .onnx file. Start with
    `prunec inspect MODEL`, then `prunec prune MODEL -o OUT --target params=75%`.

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 target or verification not met.
    PRUNEC_TRACEBACK=1 adds tracebacks to errors, PRUNEC_DEBUG=1 what libraries say.
    """


@cli.command(
    cls=Grouped,
    short_help="Show what can be removed from a model, and why the rest cannot.",
    epilog="""
    prunec inspect ./smollm2
    prunec inspect ./llama-7b/config.json          no weights are needed
    prunec inspect ./smollm2 --json | jq '.groups[].role' | sort | uniq -c
    """,
)
@MODEL
@TRUST
@JSON
def inspect(model: str, trust_remote_code: bool, as_json: bool) -> None:
    """Show which indices of which dimensions of MODEL can be removed together.

    Every group has a role (neuron, query_head, hidden ...), a size, and the parameters where it
    occurs; what cannot be pruned is listed with its reason. Nothing is changed.
    """
    console = _console(as_json)
    with console.working():
        from prunec.cli.show import show_inspect
        from prunec.options.prune import InspectOptions
        from prunec.verbs.pipeline import inspect as run

        report = run(InspectOptions(model, trust_remote_code), console)
    console.tell(report, show_inspect)


LEARN = "What to learn"


@cli.command(
    cls=Grouped,
    short_help="Write a smaller dense version of a model.",
    epilog="""
    prunec prune ./smollm2 -o small --target params=85%
    prunec prune ./smollm2 -o small --target blocks=60% --groups neuron --format hf,onnx
    prunec prune ./smollm2 -o small --target params=113.3M --calibration valid.txt --verify
    prunec prune ./smollm2 -o small --target params=80% --calibration en.txt:0.7,sw.jsonl:0.3
    prunec prune ./smollm2 -o small --target speedup=1.5x --runtime onnxruntime --format onnx
    prunec prune ./smollm2 --target flops=70% --dry-run --json > plan-report.json
    prunec prune ./smollm2 -o again --plan small/plan.json
    prunec prune -o again --recipe small/recipe.yaml
    """,
)
@click.argument("model", required=False)
@OUT
@option(
    "--target",
    "targets",
    multiple=True,
    metavar="METRIC=VALUE",
    heading=WHAT,
    help="What is to remain: params=75%, blocks=60% (without embeddings and head), flops=70%, "
    "memory=2GB (weights and the cache of keys and values), params=113.3M, speedup=1.5x, "
    "latency=80ms. Several may be combined.",
)
@option("--batch", type=int, metavar="N", heading=WHAT, help="Sequences that costs are for. [1]")
@option("--length", type=int, metavar="N", heading=WHAT, help="Tokens in each of them. [512]")
@option(
    "--dtype",
    metavar="NAME",
    heading=WHAT,
    help="What memory= counts weights and cache in: stored, f32, bf16, f16. [that of the files]",
)
@option(
    "--method",
    metavar="NAME|PART=NAME,...",
    heading=HOW,
    help="auto (default), a published method (magnitude, taylor, llm-pruner, wanda-sp, flap, fasp, "
    "ziplm, osscar, slimgpt, slimllm, adapt-pruner, minitron), or parts: "
    "criterion=obs,allocate=dp,restore=ls. See docs/methods.md.",
)
@option(
    "--groups",
    metavar="ROLE,...",
    callback=listed,
    heading=WHAT,
    help="Only groups with these roles, such as neuron,query_head; see `prunec inspect`.",
)
@option(
    "--allocate",
    metavar="NAME",
    heading=WHAT,
    help="How much of each layer: uniform (the only one for --layout uniform), global, "
    "block-influence, log-depth, dp, evolutionary. [the method's]",
)
@option(
    "--depth",
    metavar="NAME",
    heading=WHAT,
    help="With --groups layer or sublayer, which of them go: sleb (default), shortgpt, angular, "
    "evopress.",
)
@option(
    "--experts",
    metavar="NAME",
    heading=WHAT,
    help="Which experts of a mixture go: reap (default), frequency, or weights (the method's own "
    "criterion; what is used without calibration data).",
)
@option(
    "--runtime",
    metavar="NAME",
    heading=WHAT,
    help="What latency= and speedup= are measured in: onnxruntime (default), openvino, torch.",
)
@option(
    "--phase",
    metavar="NAME",
    heading=WHAT,
    help="What is measured: prefill, which reads all tokens at once (default), or decode, the next "
    "token of each sequence after --length of them.",
)
@option("--threads", type=int, metavar="N", heading=WHAT, help="Threads of it. [all cores]")
@option(
    "--round-to",
    type=int,
    metavar="N",
    heading=WHAT,
    help="Keep multiples of N. [1; for latency= and speedup= what the runtime likes]",
)
@option(
    "--steps",
    type=int,
    metavar="N",
    heading=HOW,
    help="Reach the target in N steps, each planned on what the one before has left. [1]",
)
@option(
    "--keep-tokens",
    type=FILE,
    heading=WHAT,
    help="Leave all tokens out but those whose ids the file lists, and those that they need: "
    "embedding, output head, tokenizer. In a run of its own, without --target.",
)
@option("--plan", type=FILE, heading=WHAT, help="Keep exactly what a plan.json says.")
@option(
    "--allow-interface-change",
    is_flag=True,
    heading=WHAT,
    help="Of an .onnx decoder: KV heads and layers may go, and with them a part of its cache "
    "inputs and outputs, which the report lists.",
)
@CALIBRATION
@option(
    "--restore",
    metavar="NAME",
    heading=HOW,
    help="Refit what remains: none, bias, ls (least squares), obs, cross. [the method's]",
)
@option(
    "--recover-every",
    metavar="STEP",
    heading=HOW,
    help="Reach the target in rounds of this much (10% to 15% of the model), with a training after "
    "each, taught by MODEL.",
)
@option(
    "--recover",
    metavar="KEY=VALUE,...",
    heading=HOW,
    help="Options of that training: steps=200,train=full ... as `prunec recover` has them.",
)
@FORMAT
@option(
    "--layout",
    metavar="NAME",
    heading=WRITE,
    help="uniform (default): stock classes load it; per-layer: widths may differ by layer.",
)
@option("--verify", is_flag=True, help="Check pruning against masking, and all formats.")
@ENGINE
@WORKERS
@WRITING
@click.pass_context
def prune(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Write a smaller dense version of MODEL to the folder OUT.

    Percentages say what remains. OUT appears only when it is whole; it holds the formats in
    folders, plan.json (what was kept), recipe.yaml (how to repeat it), report.json, the same as a
    page (report.html) and a model card. For long runs add --resume from the start: when
    interrupted, the same command goes on.
    """
    console = _console(as_json)
    with console.working(), ExitStack() as meanwhile:
        if str(given["model"]).endswith(".onnx") and given["out"] and not given["dry_run"]:
            from prunec.resume.hashes import hashing  # which takes as long as all else

            meanwhile.enter_context(hashing(given["model"]))
        from prunec.cli.show import show_prune
        from prunec.options.request import prune_options

        options = prune_options(typed(ctx, given), as_json=as_json)
        from prunec.verbs.pipeline import prune as run  # heavy: after all that can go wrong at once

        report = run(options, console)
    console.tell(report, show_prune)
    ctx.exit(int(report.exit_code))


@cli.command(
    "eval",
    cls=Grouped,
    short_help="Measure quality, size and latency on a text.",
    epilog="""
    prunec eval ./small --data wiki.test.txt
    prunec eval ./small --data wiki.test.txt --against ./smollm2 --max-windows 10
    prunec eval small/onnx/model.onnx --data wiki.test.txt --tokenizer ./smollm2 --json
    """,
)
@MODEL
@option("--data", type=FILE, required=True, help="A text or .jsonl file, or a data set.")
@option("--against", metavar="DENSE", help="A model to compare with; encoders need it.")
@option("--tokenizer", metavar="DIR", help="Where the tokenizer is, when MODEL has none by it.")
@option("--max-windows", type=int, metavar="N", help="Use the first N windows only.")
@option("--window", type=int, default=1024, metavar="N", help="Tokens in a window. [1024]")
@TRUST
@JSON
def evaluate(as_json: bool, **given: Any) -> None:
    """Measure quality, size and latency of MODEL on a text.

    Language models get their perplexity over windows of 1,024 tokens that do not overlap;
    encoders the cosine similarity of their mean-pooled output to that of DENSE. MODEL may also be
    an .onnx or TorchScript file, or a folder that `prunec prune` wrote: then every format in it.
    """
    console = _console(as_json)
    with console.working():
        from prunec.cli.show_measured import show_eval
        from prunec.measuring.evaluate import EvalOptions
        from prunec.measuring.evaluate import evaluate as run

        report = run(EvalOptions(**given), console)
    console.tell(report, show_eval)


@cli.command(
    cls=Grouped,
    short_help="Train a pruned model briefly, to get its quality back.",
    epilog="""
    prunec recover ./small -o healed --teacher ./smollm2 --data train.txt
    prunec recover ./small -o healed --teacher ./smollm2 --data self --steps 500 --resume
    prunec recover ./small -o healed --data train.txt --train full --loss ce
    prunec recover ./small -o healed --teacher ./smollm2 --data train.txt --blockwise
    prunec recover ./small -o healed --teacher ./smollm2 --data a.txt:0.8,b.txt:0.2 --loss kl,ce=0.2
    """,
)
@click.argument("model", metavar="PRUNED")
@option("-o", "--out", type=FILE, required=True, heading=WRITE, help="The folder to write.")
@option("--teacher", metavar="DENSE", heading=LEARN, help="The model that PRUNED was made from.")
@option(
    "--data",
    metavar="SOURCE[:WEIGHT],...",
    required=True,
    heading=LEARN,
    help="What to train on: as --calibration of prune; self: the teacher writes the text.",
)
@option(
    "--loss",
    "losses",
    metavar="NAME[=WEIGHT],...",
    default="",
    heading=LEARN,
    help="kl: divergence from the teacher's distribution of the next token; ce: cross-entropy of "
    "the text; hidden: states of the layers; output: the first output. [kl, or what fits]",
)
@option("--top-k", type=int, default=64, metavar="N", heading=LEARN,
        help="Tokens of the teacher's distribution that kl looks at; 0: all. [64]")  # fmt: skip
@option("--store-logits", is_flag=True, heading=LEARN,
        help="Run the teacher over the data once, before training, and let it go.")  # fmt: skip
@option("--blockwise", is_flag=True, heading=LEARN,
        help="Train one block after the other to give what the dense model's gives, with one in "
        "memory.")  # fmt: skip
@option(
    "--train",
    metavar="WHAT",
    default="lora",
    heading=HOW,
    help="lora (default): adapters, merged at the end; qlora: the same beside weights in four "
    "bits; full; last:N: the last N layers.",
)
@option("--rank", type=int, default=16, metavar="N", heading=HOW, help="Of the adapters. [16]")
@option("--steps", type=int, default=300, metavar="N", heading=HOW, help="[300]")
@option("--batch", type=int, default=8, metavar="N", heading=HOW, help="Windows in a step. [8]")
@option("--length", type=int, default=256, metavar="N", heading=HOW, help="Tokens of one. [256]")
@option("--samples", type=int, metavar="N", heading=HOW,
        help="Windows to read; they are read again when there are more steps. [steps x batch; "
        "256 with self]")  # fmt: skip
@option("--lr", type=float, metavar="RATE", heading=HOW,
        help="Highest learning rate. [lora 5e-4, full 5e-5, last 1e-4]")  # fmt: skip
@option("--precision", default="float32", metavar="NAME", heading=HOW,
        help="float32 (default) or bfloat16.")  # fmt: skip
@option("--save-every", type=int, default=50, metavar="N", heading=HOW,
        help="Steps between checkpoints, and looks at the held-out windows. [50]")  # fmt: skip
@option("--patience", type=int, metavar="N", heading=HOW,
        help="Stop after so many looks without a better one.")  # fmt: skip
@option("--seed", type=int, default=0, metavar="N", heading=HOW, help="For order and adapters. [0]")
@option("--overwrite", is_flag=True, heading=WRITE, help="Replace OUT when all is done.")
@option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run.")
@TRUST
@JSON
def recover(as_json: bool, **given: Any) -> None:
    """Train PRUNED, a folder that prune wrote or any Hugging Face model, and write it to OUT.

    Windows of the data are held out: the report tells the loss on them before and after, and the
    weights that were best on them are kept. Checkpoints lie beside OUT until it is whole; when a
    run was interrupted, the same command with --resume goes on and ends with the same result.
    """
    console = _console(as_json)
    with console.working():
        from prunec.recovery.options import RecoverOptions

        options = RecoverOptions(**given).settle()
        from prunec.recovery.run import recover as run  # heavy: after all that can go wrong at once
        from prunec.recovery.show import show_recover

        report = run(options, console)
    console.tell(report, show_recover)


cli.add_command(sparsify)
cli.add_command(factorize)
cli.add_command(quantize)
cli.add_command(emit)
cli.add_command(sensitivity)
cli.add_command(bench)
cli.add_command(run_road)


def _console(as_json: bool) -> Console:
    from prunec.cli.console import Console

    return Console(as_json=as_json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's) and return its exit code."""
    from prunec.backends.heap import frugal
    from prunec.cli.guard import guarded, over

    frugal()
    atexit.register(over)
    atexit.register(gc.freeze)  # no look for cycles in memory that goes with the process anyway
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `prunec ... >&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        if "_PRUNEC_COMPLETE" in os.environ:  # the shell asks for completions
            return int(cli.main(arguments, prog_name="prunec", standalone_mode=False) or 0)
        # Not `cli.main`, which has its own ways with Ctrl-C and closed pipes.
        with cli.make_context("prunec", arguments) as context:
            cli.invoke(context)
        return 0

    return guarded(run, stdout=sys.stdout, as_json="--json" in arguments)
