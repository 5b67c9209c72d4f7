"""The verb `sensitivity` of the command line."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.command import ENGINE, FILE, JSON, MODEL, TRUST, WORKERS, Grouped, listed, option

__all__ = ["sensitivity"]


@click.command(
    "sensitivity",
    cls=Grouped,
    short_help="Measure what each head, sublayer and layer alone is worth.",
    epilog="""
    prunec sensitivity ./smollm2 --calibration wiki.valid.txt -o sensitivity
    prunec sensitivity ./smollm2 --calibration wiki.valid.txt --groups layer,kv_head --json
    prunec sensitivity ./smollm2 --calibration wiki.valid.txt --fast
    """,
)
@MODEL
@option("-o", "--out", type=FILE, help="A folder for the report as JSON and a picture.")
@option(
    "--groups",
    metavar="ROLE,...",
    callback=listed,
    help="Only these: query_head, kv_head, neuron, channel, expert, sublayer, layer. [all there "
    "are]",
)
@option("--calibration", default="self", metavar="SOURCE", help="As in prunec prune. [self]")
@option("--calibration-samples", type=int, default=16, metavar="N", help="Windows. [16]")
@option("--calibration-length", type=int, default=512, metavar="N", help="Tokens in each. [512]")
@option("--fast", is_flag=True, help="Estimate from one backward pass a window.")
@option("--plot", type=click.Choice(("svg", "png")), default="svg", help="The picture. [svg]")
@ENGINE
@WORKERS
@option("--seed", type=int, default=0, metavar="N", help="For text that the model writes. [0]")
@option("--overwrite", is_flag=True, help="Replace OUT when all is done.")
@TRUST
@JSON
def sensitivity(as_json: bool, **given: Any) -> None:
    """Measure the increase in loss, perplexity and divergence when one thing alone is removed.

    Each removal runs again only what follows it. With -o a run that was interrupted goes on from
    what it had measured. With --engine ray the windows are measured by several processes, on this
    machine or a cluster, with the same result.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.cli.show_measured import show_sensitivity
        from prunec.verbs.sensitivity import SensitivityOptions
        from prunec.verbs.sensitivity import sensitivity as run

        report = run(SensitivityOptions(**given), console)
    console.tell(report, show_sensitivity)
