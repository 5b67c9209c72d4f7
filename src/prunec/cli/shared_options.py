"""Options that commands share which change the weights of a model and write it to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from prunec.cli.command import FILE, JSON, TRUST, Decorator, Function, listed, option

__all__ = ["CALIBRATION", "FORMAT", "HOW", "OUT", "WHAT", "WRITE", "WRITING", "together", "typed"]

WHAT = "What to remove"
HOW = "How"
WRITE = "What to write"


def together(*options: Decorator[Any]) -> Decorator[Any]:
    """Several options as one decorator, in their order."""

    def apply(function: Function) -> Function:
        for decorate in reversed(options):
            function = decorate(function)
        return function

    return apply


CALIBRATION = together(
    option(
        "--calibration",
        metavar="SOURCE[:WEIGHT],...",
        heading=HOW,
        help="What to measure activations on: text or .jsonl files, folders of `datasets`, arrays "
        "as .npz or a folder of them; self (default): the model writes the text; none. The report "
        "tells the loss on each source.",
    ),
    option(
        "--calibration-samples",
        type=int,
        metavar="N",
        heading=HOW,
        help="Windows (or images) in all. [64; 32 of self alone]",
    ),
    option(
        "--calibration-length",
        type=int,
        metavar="N",
        heading=HOW,
        help="Tokens in each window. [512; 256 with self]",
    ),
    option("--seed", type=int, metavar="N", heading=HOW, help="For sampling and ties. [0]"),
    option(
        "--activation-budget",
        type=int,
        metavar="MB",
        heading=HOW,
        help="Memory for activations while calibrating; what is beyond it goes to disk. [256]",
    ),
)
"""What a verb that looks at activations is told about them."""

FORMAT = option(
    "--format",
    "formats",
    metavar="NAME,...",
    callback=listed,
    heading=WRITE,
    help="hf, onnx, torchscript. Default: the kind that MODEL is.",
)

WRITING = together(
    option("--overwrite", is_flag=True, heading=WRITE, help="Replace OUT when all is done."),
    option("--dry-run", is_flag=True, heading=WRITE, help="Plan and report; write nothing."),
    option("--resume", is_flag=True, help="Save steps beside OUT, and go on from them."),
    option("--recipe", type=FILE, help="Take MODEL and options from a recipe.yaml; others win."),
    TRUST,
    JSON,
)
"""What a verb that writes OUT is told about that."""

OUT = option(
    "-o", "--out", type=FILE, heading=WRITE, help="The folder to write; it must not exist."
)


def typed(ctx: click.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given on the command line, defaults left out."""
    default = click.core.ParameterSource.DEFAULT
    return {n: value for n, value in given.items() if ctx.get_parameter_source(n) is not default}
