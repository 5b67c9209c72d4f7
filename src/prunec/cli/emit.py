"""The verb `emit` of the command line."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.command import FILE, JSON, TRUST, Grouped, listed, option
from prunec.cli.shared_options import OUT, WRITE, typed

__all__ = ["emit"]


@click.command(
    cls=Grouped,
    short_help="Write a model in other formats, with nothing removed.",
    epilog="""
    prunec emit ./healed -o shipped --format onnx,torchscript --verify
    prunec emit model.gguf -o model --format hf
    """,
)
@click.argument("model", required=False)
@OUT
@option(
    "--format",
    "formats",
    metavar="NAME,...",
    callback=listed,
    heading=WRITE,
    help="hf, onnx, torchscript. [onnx]",
)
@option("--verify", is_flag=True, help="Run every format and compare.")
@option("--overwrite", is_flag=True, heading=WRITE, help="Replace OUT when all is done.")
@option("--dry-run", is_flag=True, heading=WRITE, help="Read the model and report; write nothing.")
@option("--recipe", type=FILE, help="Take MODEL and options from a recipe.yaml; others win.")
@TRUST
@JSON
@click.pass_context
def emit(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Write MODEL, as it is, in the formats asked for into the folder OUT.

    For models that come without a `prune` behind them: what `recover` has trained, a checkpoint,
    a .gguf file. OUT holds the formats, recipe.yaml, report.json and a model card.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.options.request import emit_options

        options = emit_options(typed(ctx, given), as_json=as_json)
        from prunec.cli.show_emitted import show_emit
        from prunec.verbs.emitting import emit_model

        report = emit_model(options, console)
    console.tell(report, show_emit)
    ctx.exit(int(report.exit_code))
