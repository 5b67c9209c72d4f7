"""Register prunec with a tool of others: `python -m prunec.integrations TOOL`."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from prunec.cli.command import FILE
from prunec.cli.guard import guarded
from prunec.ir.diagnostics import fail


@click.group()
def register() -> None:
    """Register prunec with a tool that is installed beside it."""


@register.command()
@click.argument("file", type=FILE)
def olive(file: Path) -> None:
    """Write FILE for `olive run --package-config FILE`: Olive's passes, and PrunecPrune."""
    _needed("olive", "olive-ai")
    from prunec.integrations.olive import package_config

    file.write_text(json.dumps(package_config(), indent=1), encoding="utf-8")
    click.echo(f"wrote {file}")


@register.command()
@click.option("--remove", is_flag=True, help="Undo it.")
def optimum(remove: bool) -> None:
    """Give `optimum-cli` the subcommand `prunec`, by a file beside its own."""
    _needed("optimum", "optimum")
    from prunec.integrations.optimum import register

    file = register(remove=remove)
    click.echo(f"{'removed' if remove else 'wrote'} {file}")


def _needed(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise fail("P891", f"{package} is not installed", help=f"pip install {package}")


def main() -> int:
    """Run on the arguments of the process and return its exit code."""

    def run() -> int:
        with register.make_context("python -m prunec.integrations", sys.argv[1:]) as context:
            register.invoke(context)
        return 0

    return guarded(run, stdout=sys.stdout, as_json=False)


if __name__ == "__main__":
    sys.exit(main())
