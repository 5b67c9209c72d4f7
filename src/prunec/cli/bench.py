"""The verb `bench` of the command line."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.command import JSON, TRUST, Grouped, option
from prunec.options.workload import PHASES, PREFILL

__all__ = ["bench"]


@click.command(
    "bench",
    cls=Grouped,
    short_help="Measure and compare the latency of models.",
    epilog="""
    prunec bench smollm2.onnx small/onnx/model.onnx
    prunec bench ./smollm2 ./small --runtime torch --batch 4 --length 256 --threads 2
    prunec bench ./smollm2 ./small --phase decode --length 1024 --runtime onnxruntime
    """,
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@option(
    "--runtime",
    type=click.Choice(("onnxruntime", "openvino", "torch")),
    help="Default: onnxruntime where there is an ONNX file, else torch.",
)
@option(
    "--phase",
    type=click.Choice(PHASES),
    default=PREFILL,
    help="prefill reads all tokens at once (default); decode is the next token of each sequence "
    "after so many.",
)
@option("--batch", type=int, default=1, metavar="N", help="Sequences at once. [1]")
@option("--length", type=int, default=128, metavar="N", help="Tokens in each. [128]")
@option("--threads", type=int, metavar="N", help="Threads to compute with. [all cores]")
@option("--repeat", type=int, default=10, metavar="N", help="Measurements of each model. [10]")
@TRUST
@JSON
def bench(as_json: bool, **given: Any) -> None:
    """Measure the latency of every MODEL, in turns, and compare with the first one.

    Turns (A B A B ...) share out what else the machine is doing. The median is reported.
    """
    from prunec.cli.console import Console

    console = Console(as_json=as_json)
    with console.working():
        from prunec.cli.show_measured import show_bench
        from prunec.measuring.bench import BenchOptions
        from prunec.measuring.bench import bench as run

        report = run(BenchOptions(**given), console)
    console.tell(report, show_bench)
