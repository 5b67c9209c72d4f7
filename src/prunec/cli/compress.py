"""Commands that compress in other ways than by removing indices."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.command import FILE, JSON, TRUST, Grouped, listed, option
from prunec.cli.shared_options import CALIBRATION, FORMAT, HOW, OUT, WHAT, WRITE, WRITING, typed

__all__ = ["factorize", "quantize", "sparsify"]


@click.command(
    cls=Grouped,
    short_help="Set single weights to zero, as a share or in an N:M pattern.",
    epilog="""
    prunec sparsify ./smollm2 -o sparse --sparsity 50% --calibration train.txt
    prunec sparsify ./smollm2 -o sparse --sparsity 2:4 --method sparsegpt --format hf,onnx
    prunec sparsify ./smollm2 -o sparse --sparsity 60% --ratios owl --leave '*.down_proj.weight'
    prunec sparsify ./smollm2 -o sparse --sparsity 30% --method magnitude --ratios global
    """,
)
@click.argument("model", required=False)
@OUT
@option(
    "--sparsity",
    metavar="SHARE|N:M",
    heading=WHAT,
    help="What becomes zero of each layer: 50%; or a pattern: of each 4 neighbours along the "
    "inputs 2 stay (2:4).",
)
@option(
    "--ratios",
    metavar="NAME",
    heading=WHAT,
    help="How much of each layer: uniform (default), owl (less where outliers are), global (one "
    "threshold, for magnitudes).",
)
@option(
    "--leave",
    metavar="WEIGHT,...",
    callback=listed,
    heading=WHAT,
    help="Weights that stay as they are; `*` stands for any text.",
)
@option(
    "--method",
    metavar="NAME",
    heading=HOW,
    help="wanda (default), sparsegpt (the other weights make up for it), magnitude.",
)
@option(
    "--compare",
    metavar="NAME",
    heading=HOW,
    help="Which weights compete: those of a row (wanda's default) or of a layer (magnitude's).",
)
@CALIBRATION
@FORMAT
@option("--verify", is_flag=True, help="Run every format and compare.")
@WRITING
@click.pass_context
def sparsify(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Set single weights of MODEL to zero and write it to the folder OUT, its shapes unchanged.

    Layers within blocks become sparse one after the other, each judged by what it reads once
    those before it are. OUT holds the formats, masks.safetensors (a bit for each weight),
    recipe.yaml, report.json and a model card. Zeros make no file smaller and, but for runtimes
    with kernels for 2:4, no model faster: see docs/sparsity.md.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.cli.show_sparse import show_sparsify
        from prunec.options.request import sparsify_options

        options = sparsify_options(typed(ctx, given), as_json=as_json)
        from prunec.verbs.sparsifying import sparsify as run

        report = run(options, console)
    console.tell(report, show_sparsify)
    ctx.exit(int(report.exit_code))


@click.command(
    cls=Grouped,
    short_help="Write matrices as products of two of low rank.",
    epilog="""
    prunec factorize ./smollm2 -o small --target params=80% --calibration train.txt
    prunec factorize ./smollm2 -o small --target blocks=60% --ranks energy --round-to 16
    prunec factorize ./minilm -o small --target params=80% --method svd --format onnx,torchscript
    prunec factorize ./minilm -o small --target blocks=60% --ranks gates --calibration train.txt
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
    help="What is to remain: params=80%, or blocks=60% (without embeddings and head).",
)
@option(
    "--ranks",
    metavar="NAME",
    heading=WHAT,
    help="How much of each layer: uniform (default), the same share of each; energy, ranks that "
    "carry the most for what they take; gates, those that training leaves open (FLOP).",
)
@option("--round-to", type=int, metavar="N", heading=WHAT, help="Keep multiples of N ranks. [1]")
@option(
    "--method",
    metavar="NAME",
    heading=HOW,
    help="svd-llm (default): the best for the inputs of a layer; svd: for its weights alone.",
)
@option(
    "--steps",
    type=int,
    metavar="N",
    heading=HOW,
    help="Train the factors, taught by MODEL. [0; 300 with --ranks gates]",
)
@option("--batch", type=int, metavar="N", heading=HOW, help="Windows in a step. [8]")
@option("--lr", type=float, metavar="RATE", heading=HOW, help="Learning rate. [2e-4]")
@CALIBRATION
@FORMAT
@option("--verify", is_flag=True, help="Run every format and compare.")
@WRITING
@click.pass_context
def factorize(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Write linear layers and 1x1 convolutions of MODEL as two of low rank, into the folder OUT.

    A matrix of m x n numbers becomes one of m x k and one of k x n; it stays whole where these are
    not smaller. The axis between them is a group of role rank, whose indices are kept in the order
    of the singular values. OUT holds the formats (ONNX unless others are named), recipe.yaml,
    report.json and a model card; a Hugging Face class has no place for two factors.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.cli.show_factorized import show_factorize
        from prunec.options.request import factorize_options

        options = factorize_options(typed(ctx, given), as_json=as_json)
        from prunec.verbs.factorizing import factorize_model as run

        report = run(options, console)
    console.tell(report, show_factorize)
    ctx.exit(int(report.exit_code))


@click.command(
    cls=Grouped,
    short_help="Store weights in 8 or 4 bits, as an ONNX file.",
    epilog="""
    prunec quantize ./small -o small-int8 --quantize int8
    prunec quantize ./small -o small-int8 --quantize int8 --activations float
    prunec quantize small/onnx/model.onnx -o small-int4 --quantize int4 --block 32
    prunec quantize ./small -o small-static --quantize int8 --activations static --calibration t.txt
    """,
)
@click.argument("model", required=False)
@OUT
@option("--quantize", metavar="NAME", heading=HOW, help="int8 or int4 (of weights in blocks).")
@option(
    "--activations",
    metavar="NAME",
    heading=HOW,
    help="With int8: dynamic (default), scaled as they come, static, scaled as in calibration, or "
    "float, left as they are; float is what models with large activations need.",
)
@option(
    "--block",
    type=int,
    metavar="N",
    heading=HOW,
    help="With int4 or float: inputs that share a scale: 16, 32, 64, 128 or 256. Prune with "
    "--round-to N, so that it divides the widths. [32]",
)
@CALIBRATION
@option("--overwrite", is_flag=True, heading=WRITE, help="Replace OUT when all is done.")
@option("--recipe", type=FILE, help="Take MODEL and options from a recipe.yaml; others win.")
@TRUST
@JSON
@click.pass_context
def quantize(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Quantise MODEL, a folder that prune wrote, a checkpoint or an ONNX file, into OUT.

    The tools are those of ONNX Runtime. With --calibration the report tells how far the outputs
    move. A model that is quantised already is refused. OUT holds onnx/model.onnx, recipe.yaml,
    report.json and a model card.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.cli.show_quantized import show_quantize
        from prunec.options.request import quantize_options

        options = quantize_options(typed(ctx, given), as_json=as_json)
        from prunec.verbs.quantizing import quantize as run

        report = run(options, console)
    console.tell(report, show_quantize)
