"""The command that does several stages one after the other."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.command import FILE, JSON, TRUST, Grouped, option
from prunec.cli.shared_options import WRITE

__all__ = ["run"]


@click.command(
    cls=Grouped,
    short_help="Do several stages in one resumable run: prune, recover, quantize, eval ...",
    epilog="""
    prunec run road.yaml -o shipped
    prunec run road.yaml ./another-model -o other --dry-run
    prunec run small/recipe.yaml -o again          a recipe that any verb wrote is one stage
    """,
)
@click.argument("recipe", type=FILE)
@click.argument("model", required=False)
@option(
    "-o", "--out", type=FILE, required=True, heading=WRITE,
    help="The folder with one folder for each stage; if it is there, finished stages are kept.",
)  # fmt: skip
@option("--overwrite", is_flag=True, heading=WRITE, help="Do finished stages again.")
@option("--dry-run", is_flag=True, heading=WRITE, help="Check the recipe, tell what is to be done.")
@TRUST
@JSON
@click.pass_context
def run(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Do the stages of RECIPE one after the other, each on what the one before wrote.

    A recipe names the model and its stages: verbs with the options of their command lines.

    \b
      model: ./smollm2
      stages:
        - prune: {target: params=75%, calibration: train.txt, round-to: 32}
        - recover: {data: train.txt, steps: 500}
        - quantize: {quantize: int8}
        - eval: {data: test.txt}

    Stages are prune, recover, sparsify, factorize, emit, quantize and eval. recover learns from the
    model, and eval compares with it, unless `teacher` or `against` names another. Paths are those
    of the folder where the command runs. MODEL takes the place of the recipe's.

    Everything is checked before the first stage starts. Each stage writes a folder of its own,
    OUT/1-prune and so on, which appears when it is whole. When a stage fails or is interrupted,
    the others stay, and the same command goes on with it; a stage whose options, data or
    predecessors changed is done again. OUT/recipe.yaml repeats the run, OUT/report.json tells all.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.road.show import show_road
        from prunec.road.travel import RoadOptions, travel

        report = travel(RoadOptions(**given), console)
    console.tell(report, show_road)
    ctx.exit(int(report.exit_code))
