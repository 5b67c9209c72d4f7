"""Hugging Face Optimum: prunec as a subcommand, and the file by which `optimum-cli` finds it.

    python -m prunec.integrations optimum
    optimum-cli prunec prune ./smollm2 -o small --target params=85%

`optimum-cli` looks for subcommands in the files of `optimum/commands/register`, a namespace that
packages may add to. The file is written there and not shipped: transformers would take the folder
for an installed Optimum.
"""

from __future__ import annotations

import sys
from argparse import REMAINDER, ArgumentParser
from importlib.util import find_spec
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from prunec.cli.app import cli, main

__all__ = ["PrunecCommand", "register"]

REGISTRATION = f"""\
from {__name__} import PrunecCommand

REGISTER_COMMANDS = [PrunecCommand]
"""


class PrunecCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Everything after the verb is what `prunec` takes after it."""

    COMMAND = CommandInfo(name="prunec", help="Prune a model with prunec, and what goes with it.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("verb", choices=sorted(cli.commands))
        parser.add_argument("arguments", nargs=REMAINDER, help="`VERB --help` lists them")

    def run(self) -> None:
        """Leaves the process with the exit code of prunec."""
        sys.exit(main([self.args.verb, *self.args.arguments]))


def register(*, remove: bool) -> Path:
    """Write the file by which `optimum-cli` finds the subcommand, or remove it; gives its path."""
    base = find_spec("optimum.commands.base")
    assert base is not None, "it was imported"
    assert base.origin is not None, "it is a file"
    file = Path(base.origin).parent / "register" / "register_prunec.py"
    if remove:
        file.unlink(missing_ok=True)
        return file
    file.parent.mkdir(exist_ok=True)
    file.write_text(REGISTRATION, encoding="utf-8")
    return file
